"""How a device stands with other devices and their containers, in words for people. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usbplugin.inventory.record import Standing
from usbplugin.inventory.shares import is_listed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usbplugin.inventory.book import GrantBook
    from usbplugin.inventory.grant import Holding
    from usbplugin.inventory.presence import Presence
    from usbplugin.inventory.record import Record


class Standings:
    """Compares each device with all others; what it looks at is live."""

    def __init__(
        self,
        records: Mapping[str, Record],
        presence: Presence,
        book: GrantBook,
    ) -> None:
        """Look at all known devices by their IDs, at which ports are there, and who has what."""
        self._records = records
        self._presence = presence
        self._book = book

    def of(self, record: Record) -> Standing:
        """How a device stands."""
        if not record.present:
            return Standing()
        if not record.is_offered:
            return Standing("; ".join(self.by_number(record)), self._fate(record))
        ways = [
            _held_as(holding)
            for holding in self._book.held(record.id)
            if not _is_as_offered(record, holding)
        ]
        for key in record.present.values():
            for retired in self._presence.retired_at(key):
                ways += map(_held_as, self._book.held(retired.id))
        return Standing("; ".join(dict.fromkeys((*ways, *self.by_number(record)))))

    def by_number(self, record: Record) -> list[str]:
        """Which containers that were given another device may open this one, and what helps."""
        ways: dict[str, None] = {}
        for slot, key in record.present.items():
            number = record.ports[slot].number
            if number.is_pty:  # its container has a mount, which no other pty takes over
                continue
            for holding in self._book.with_number(number):
                other = self._records[holding.device_id]
                if other is not record and key not in other.present.values():
                    ways[
                        f"{holding.who} was given {holding.device_id} with the number {number}, and"
                        " may open it: restart that container or delete its pod"
                    ] = None
        return list(ways)

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
        return f"its pod may go on using it; the configuration {fate}"


def _is_as_offered(record: Record, holding: Holding) -> bool:
    resource, listed_id = holding.key
    return resource == record.rule.name and is_listed(listed_id, record.id, record.rule.shares)


def _held_as(holding: Holding) -> str:
    resource, listed_id = holding.key
    return f"{holding.who} holds it as {resource} {listed_id}; free once that pod is gone"
