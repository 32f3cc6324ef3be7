"""Which device is behind a port: by what it says of itself, where it is, and who else is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usbplugin.discovery.identity import (
    candidate_ids,
    descriptors,
    fingerprint,
    is_by_serial,
    is_device_id,
    may_be_of,
    possible_ids,
    unit_of,
)
from usbplugin.inventory.selector import ResourceRule, first_match, part_of
from usbplugin.inventory.shares import device_of, is_share

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from usbplugin.discovery import Port
    from usbplugin.inventory.record import Key, Record


class Recognition:
    """Recognises devices among the known ones, which others add and remove."""

    def __init__(
        self,
        rules: Sequence[ResourceRule],
        records: Mapping[str, Record],
    ) -> None:
        """Recognise by these rules, among these records by ID; the mapping is live."""
        self._rules = tuple(rules)
        self._parts = {rule.name: part_of(rule, self._rules) for rule in self._rules}
        self._records = records

    def rule_of(self, port: Port) -> ResourceRule | None:
        """The resource that a port belongs to; None if it belongs to none."""
        return first_match(self._rules, port)

    def rule_named(self, resource: str) -> ResourceRule | None:
        """The resource of that name; None if there is none."""
        return next((rule for rule in self._rules if rule.name == resource), None)

    def terms(
        self, device_id: str, resource: str, ports: Sequence[Port]
    ) -> tuple[ResourceRule, bool]:
        """On what terms a device is known, and whether it is offered on these.

        Args:
            device_id: Its ID.
            resource: The one it was of when it was last seen, or is held as.
            ports: Its ports as last seen. Without any, only its next port will tell.
        """
        for port in ports:
            rule = self.rule_of(port)
            if (
                rule is not None
                and device_id in self._candidates(port, rule)
                and not self.is_makeshift(device_id, port, rule)
            ):
                return rule, True
        named = self.rule_named(resource)
        return (
            ResourceRule(
                resource,
                unit=unit_of(device_id),
                checks_starts=named is None or named.checks_starts,
                shares=named.shares if named else 1,
            ),
            False,
        )

    def is_makeshift(self, device_id: str, port: Port, rule: ResourceRule) -> bool:
        """Whether an ID was given because all others were taken, and lasts as long as that."""
        *others, last = self._candidates(port, rule)
        return bool(others) and device_id == last

    def has_other_name(self, record: Record) -> bool:
        """Whether a device would go by a serial that it has, if no other one did."""
        if not record.is_offered:
            return False
        firsts = {self._candidates(port, record.rule)[0] for port in record.ports.values()}
        return record.id not in firsts and any(map(is_by_serial, firsts))

    def identify(self, key: Key, port: Port, rule: ResourceRule) -> tuple[str, Key | None]:
        """The ID of the device behind ``port``.

        Returns:
            The ID, and the key under which that very port was seen until now, if it was: a place
            holds one device, which is here under a new name, and the loss of the old one is still
            to be heard of.
        """
        candidates = self._candidates(port, rule)
        whole = fingerprint(port, rule.unit)
        for record in (self._records[name] for name in candidates if name in self._records):
            # Another port of a device that is here, or a device back where it was: certainly it.
            if record.fingerprint() == whole:
                seen_as = record.present.get(port.slot)
                if seen_as is None:
                    return record.id, None
                if seen_as[0] == key[0]:
                    return record.id, seen_as
        for candidate in candidates[:-1]:
            holder = self._records.get(candidate)
            if holder is None or not self._is_anothers(holder, port):
                return candidate, None
        return candidates[-1], None

    def meant_by(self, resource: str, listed_id: str) -> str | None:
        """The ID of the device that the kubelet means by a listed one; None if it is none of ours.

        It need not be known.
        """
        rule = self.rule_named(resource)
        meant = device_of(listed_id, rule.shares) if rule else listed_id
        for device_id in (meant, listed_id, device_of(listed_id)):
            if device_id in self._records:
                return device_id
        if meant == listed_id and is_share(listed_id):
            meant = device_of(listed_id)
        return meant if is_device_id(meant) else None

    def is_of(self, retired: Record, port: Port) -> bool:
        """Whether a port is the hardware of a device that is not offered any longer."""
        if not may_be_of(port, retired.id):
            return False  # cheap, and true of nearly all
        unit, whole = retired.rule.unit, fingerprint(port, retired.rule.unit)
        seen_as = {fingerprint(known, unit) for known in retired.ports.values()}
        if whole in seen_as:
            return True
        if retired.id not in possible_ids(port, retired.rule.name):
            return False
        if not seen_as or not is_by_serial(retired.id):
            return True  # whatever is plugged in there now
        return descriptors(port, unit) in retired.claims() and not retired.has_twin

    def _candidates(self, port: Port, rule: ResourceRule) -> tuple[str, ...]:
        return candidate_ids(port, rule.identity, rule.unit, self._parts[rule.name])

    def _is_anothers(self, record: Record, port: Port) -> bool:
        """Whether a known device is certainly, or perhaps, another one than the one of ``port``."""
        if not record.present:
            if not is_by_serial(record.id):
                return False  # whatever is plugged in there now
            is_the_same = not record.ports or descriptors(port, record.rule.unit) in record.claims()
            return not is_the_same or record.has_twin
        return True
