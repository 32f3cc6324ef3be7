"""How a device stands with other devices and their containers, in words for people. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usbplugin.inventory.record import Standing
from usbplugin.inventory.shares import is_listed

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from collections.abc import Set as AbstractSet

    from usbplugin.discovery import DeviceNumber
    from usbplugin.inventory.book import GrantBook
    from usbplugin.inventory.grant import GrantKey, Holding
    from usbplugin.inventory.presence import Presence
    from usbplugin.inventory.recognition import Recognition
    from usbplugin.inventory.record import Record


class Standings:
    """Compares each device with all others; what it looks at is live."""

    def __init__(
        self,
        records: Mapping[str, Record],
        presence: Presence,
        recognition: Recognition,
        book: GrantBook,
    ) -> None:
        """Look at all known devices by their IDs, at ports and resources, and who has what."""
        self._records = records
        self._presence = presence
        self._recognition = recognition
        self._book = book

    def of(self, record: Record) -> Standing:
        """How a device stands."""
        if not record.present:
            return Standing()
        if not record.is_offered:
            return Standing("; ".join(self._by_number(record)), self._fate(record))
        ways = [
            _held_as(holding)
            for holding in self._book.held(record.id)
            if not _is_as_offered(record, holding)
        ]
        for key in record.present.values():
            for retired in self._presence.retired_at(key):
                ways += map(_held_as, self._book.held(retired.id))
        return Standing("; ".join(dict.fromkeys((*ways, *self._by_number(record)))))

    def rivals(self, record: Record, keys: Collection[GrantKey]) -> list[str]:
        """Which containers may have a device open besides the one that was given ``keys``."""
        ways = [
            f"{holding.who} may have it open as {' '.join(holding.key)}: delete one of the pods"
            for key in record.present.values()
            for other in (*self._presence.retired_at(key), self._presence.offered_at.get(key))
            if other is not None and other is not record
            for holding in self._book.held(other.id)
            if holding.may_run and holding.key not in keys
        ]
        return [*dict.fromkeys(ways), *self._by_number(record, keys)]

    def concerned_by(
        self, device_ids: AbstractSet[str], numbers: Iterable[DeviceNumber]
    ) -> set[str]:
        """The devices that may stand otherwise once the holders of these have changed."""
        found = {record.id for number in numbers for record in self._presence.with_number(number)}
        for device_id in device_ids & self._records.keys():
            found.add(device_id)
            for key in self._records[device_id].present.values():
                found |= {record.id for record in self._presence.retired_at(key)}
                if (offered := self._presence.offered_at.get(key)) is not None:
                    found.add(offered.id)
        return found

    def _by_number(self, record: Record, keys: Collection[GrantKey] = ()) -> list[str]:
        """Which containers that were given another device may open this one, and what helps."""
        ways: dict[str, None] = {}
        for slot, key in record.present.items():
            number = record.ports[slot].number
            if number.is_pty:  # its container has a mount, which no other pty takes over
                continue
            for holding in self._book.with_number(number):
                other = self._records[holding.device_id]
                if (
                    other is not record
                    and holding.key not in keys
                    and key not in other.present.values()
                ):
                    way_out = "restart that container or delete its pod"
                    if not self._is_asked(holding):
                        way_out = "delete that pod"
                    ways[
                        f"{holding.who} was given {holding.device_id} with the number {number}, and"
                        f" may open it: {way_out}"
                    ] = None
        return list(ways)

    def _is_asked(self, holding: Holding) -> bool:
        """Whether the kubelet asks us before it starts that container."""
        rule = self._recognition.rule_named(holding.key[0])
        return rule is not None and rule.checks_starts

    def outdated_ids(self, record: Record) -> tuple[str, ...]:
        """The listed IDs of its resource under which a device is held, and offered no longer."""
        return tuple(
            sorted(
                holding.key[1]
                for holding in self._book.held(record.id)
                if holding.key[0] == record.rule.name and not _is_as_offered(record, holding)
            )
        )

    def _fate(self, record: Record) -> str:
        """What becomes of a device that is not offered any longer."""
        others = {
            f"{other.rule.name} {other.id}": None
            for key in record.present.values()
            if (other := self._presence.offered_at.get(key))
        }
        fate = f"offers it as {', '.join(others)}" if others else "offers it no longer"
        until = ""
        if self._recognition.rule_named(record.rule.name) is None:
            until = " until its container ends, for its resource is no more"
        return f"its pod may go on using it{until}; the configuration {fate}"


def _is_as_offered(record: Record, holding: Holding) -> bool:
    if holding.claim or record.rule.by_claim:
        is_of_it = holding.grant is not None and holding.grant.resource == record.rule.name
        return is_of_it and record.rule.by_claim and bool(holding.claim)
    resource, listed_id = holding.key
    return resource == record.rule.name and is_listed(listed_id, record.id, record.rule.shares)


def _held_as(holding: Holding) -> str:
    if holding.claim:
        return f"claim {holding.claim} is prepared for it; free once its pod is gone"
    resource, listed_id = holding.key
    return f"{holding.who} holds it as {resource} {listed_id}; free once that pod is gone"
