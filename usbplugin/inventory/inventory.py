"""The one owner of device state: facts and the time go in, immutable snapshots come out.

No I/O, no clock, no locks: only the event loop calls it, and a test can replay any history.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from usbplugin.discovery import (
    AllPorts,
    DeviceNumber,
    Fact,
    Port,
    PortGone,
    PortPresent,
    Readiness,
)
from usbplugin.discovery.identity import candidate_ids
from usbplugin.inventory.device import Change, Device, Snapshot, Update
from usbplugin.inventory.health import Health
from usbplugin.inventory.selector import ResourceRule, first_match

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

RETENTION = 3600.0
"""Seconds for which an unplugged device stays listed, as Unhealthy."""
MOST_ABSENT = 256
"""Unplugged devices remembered at most: a device that invents serials must not fill the memory."""

_Key = tuple[str, str]
"""Source and port name: what identifies a port while it is present."""
_Fingerprint = tuple[object, ...]


@dataclass(slots=True)
class _Record:
    """One device, mutable, known to the inventory alone."""

    id: str
    resource: str
    port: Port
    key: _Key | None
    """None while the device is away."""
    health: Health
    reason: str
    since: float

    def device(self) -> Device:
        return Device(
            id=self.id,
            resource=self.resource,
            health=self.health,
            reason=self.reason,
            ports=(self.port,),
            since=self.since,
        )


class Inventory:
    """Turns facts about ports into devices with stable IDs and a health."""

    def __init__(self, rules: Sequence[ResourceRule], retention: float = RETENTION) -> None:
        """Start with nothing known.

        Args:
            rules: The resources, first match wins; their names are unique.
            retention: Seconds for which an unplugged device stays listed.
        """
        self._rules = tuple(rules)
        self._retention = retention
        self._ports: dict[_Key, Port] = {}
        self._records: dict[str, _Record] = {}
        self._record_of: dict[_Key, _Record] = {}
        self._key_of: dict[DeviceNumber, _Key] = {}
        self._dirty: set[str] = set()
        self._published: dict[str, Device] = {}
        self._snapshots = {rule.name: Snapshot(rule.name) for rule in self._rules}

    def snapshot(self, resource: str) -> Snapshot:
        """The latest snapshot of a resource.

        Raises:
            KeyError: there is no such resource.
        """
        return self._snapshots[resource]

    def find(self, device_id: str) -> Device | None:
        """The device of that ID, of whatever resource."""
        return self._published.get(device_id)

    @property
    def ports(self) -> tuple[Port, ...]:
        """All ports that are present, also those that belong to no resource or are settling."""
        return tuple(self._ports.values())

    @property
    def deadline(self) -> float | None:
        """When time alone will change something: call ``apply`` then, with no facts if need be."""
        away = [record.since for record in self._records.values() if record.key is None]
        return min(away) + self._retention if away else None

    def apply(self, facts: Iterable[Fact], now: float) -> Update:
        """Take in a batch of facts, at ``now`` (seconds of any clock that never goes back)."""
        for fact in facts:
            match fact:
                case PortPresent(source, port):
                    self._arrive((source, port.name), port, now)
                case PortGone(source, name):
                    self._leave((source, name), now)
                case AllPorts(source, ports):
                    self._replace(source, ports, now)
        self._expire(now)
        return self._publish()

    def _replace(self, source: str, ports: Sequence[Port], now: float) -> None:
        present = {port.name for port in ports}
        for key in [k for k in self._ports if k[0] == source and k[1] not in present]:
            self._leave(key, now)
        # Who came first keeps a disputed ID, and udevd's times make a restarted plugin agree.
        for port in sorted(ports, key=lambda port: (port.initialized_usec, port.name)):
            self._arrive((source, port.name), port, now)

    def _arrive(self, key: _Key, port: Port, now: float) -> None:
        before = self._ports.get(key)
        if before == port and key in self._record_of:
            return
        if before is not None and _fingerprint(before) != _fingerprint(port):
            self._leave(key, now)  # another device took the name, and its leaving went unseen
        self._ports[key] = port
        record = self._record_of.get(key)
        if record is None:
            if port.readiness is Readiness.SETTLING:
                return
            record = self._recognise(key, port, now)
            if record is None:
                return
            self._record_of[key] = record
            self._key_of[port.number] = key
        # udevd at work on a device again (a restart, a trigger) does not make it less usable.
        if port.readiness is not Readiness.SETTLING:
            self._release(record.port.number, key)
            self._key_of[port.number] = key
            record.port = port
        if port.fault:
            self._set(record, Health.BROKEN, port.fault, now)
        else:
            self._set(record, Health.READY, "", now)

    def _leave(self, key: _Key, now: float) -> None:
        self._ports.pop(key, None)
        record = self._record_of.pop(key, None)
        if record is not None:
            record.key = None
            self._release(record.port.number, key)
            self._set(record, Health.UNPLUGGED, f"{record.port.node} is gone: unplugged", now)

    def _release(self, number: DeviceNumber, key: _Key) -> None:
        if self._key_of.get(number) == key:
            del self._key_of[number]

    def _recognise(self, key: _Key, port: Port, now: float) -> _Record | None:
        """The record of the device behind ``port``: one that was away, or a new one."""
        rule = first_match(self._rules, port)
        elsewhere = self._key_of.get(port.number)
        if rule is None or (elsewhere is not None and elsewhere[0] != key[0]):
            return None  # nobody's, or another source has this very character device
        device_id = self._identify(port, rule)
        record = self._records.get(device_id)
        if record is None:
            record = _Record(device_id, rule.name, port, key, Health.READY, "", now)
            self._records[device_id] = record
        record.key, record.resource, record.port = key, rule.name, port
        return record

    def _identify(self, port: Port, rule: ResourceRule) -> str:
        candidates = candidate_ids(port, rule.identity)
        away = {
            candidate: record
            for candidate in candidates
            if (record := self._records.get(candidate)) and record.key is None
        }
        # Back where it was, with the descriptors it had: certainly the same device.
        for candidate, record in away.items():
            if _fingerprint(record.port) == _fingerprint(port):
                return candidate
        for candidate in candidates[:-1]:
            holder = self._records.get(candidate)
            if holder is None or (holder.key is None and not self._has_twin(holder)):
                return candidate
        return candidates[-1]

    def _has_twin(self, record: _Record) -> bool:
        """Whether its serial is known from another device too, and so tells nobody from anybody."""
        twin = _descriptors(record.port)
        return any(
            other is not record and _descriptors(other.port) == twin
            for other in self._records.values()
        )

    def _expire(self, now: float) -> None:
        away = sorted(
            (record for record in self._records.values() if record.key is None),
            key=lambda record: record.since,
        )
        excess = len(away) - MOST_ABSENT
        for position, record in enumerate(away):
            never_listed = record.id not in self._published
            if position < excess or never_listed or record.since + self._retention <= now:
                del self._records[record.id]
                self._dirty.add(record.id)

    def _set(self, record: _Record, health: Health, reason: str, now: float) -> None:
        if record.health is not health:
            record.since = now
        record.health, record.reason = health, reason
        self._dirty.add(record.id)

    def _publish(self) -> Update:
        changes = []
        touched: set[str] = set()
        for device_id in sorted(self._dirty):
            record = self._records.get(device_id)
            before = self._published.get(device_id)
            after = record.device() if record else None
            if after is not None:
                self._published[device_id] = after
            else:
                self._published.pop(device_id, None)
            if before == after:
                continue
            touched |= {device.resource for device in (before, after) if device is not None}
            if device := after or before:
                changes.append(
                    Change(
                        device,
                        before=before.health if before else None,
                        after=after.health if after else None,
                    )
                )
        self._dirty.clear()
        for resource in touched:
            listed = (device for device in self._published.values() if device.resource == resource)
            self._snapshots[resource] = Snapshot(resource, tuple(listed))
        return Update(
            tuple(self._snapshots[resource] for resource in sorted(touched)), tuple(changes)
        )


def _fingerprint(port: Port) -> _Fingerprint:
    """Equal for one device plugged into one place, whatever its name and numbers."""
    return (*_descriptors(port), port.usb and port.usb.location)


def _descriptors(port: Port) -> _Fingerprint:
    """Equal for all that a device may claim to be itself."""
    usb = port.usb
    if usb is None:
        # A bare entry is known by its place alone, whatever it leads to.
        return (port.origin, port.name)
    return (usb.vendor_id, usb.product_id, usb.serial, usb.interface, usb.port_number)
