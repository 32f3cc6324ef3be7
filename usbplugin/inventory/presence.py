"""Which ports are there, and of which devices they are. Pure, and mutable."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usbplugin.discovery import AllPorts, DeviceNumber, Fact, Port, PortGone, PortPresent, Readiness
from usbplugin.discovery.identity import fingerprint, serial_of
from usbplugin.inventory.record import Key, Record
from usbplugin.inventory.twins import Twins

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from usbplugin.inventory.recognition import Recognition
    from usbplugin.inventory.twins import Serial


_MOST_TWINS = 1024


class Presence:
    """Takes ports in and out, and keeps each with the devices that it is of."""

    def __init__(
        self,
        records: dict[str, Record],
        retired: set[str],
        recognition: Recognition,
        on_move: Callable[[Record, Port | None], None],
        on_twin: Callable[[Record], None],
    ) -> None:
        """Begin with no port.

        Args:
            records: All known devices by their IDs; a new one is added.
            retired: The IDs of those that are not offered; one that is offered again is taken out.
            recognition: Tells which device is behind a port.
            on_move: Told of each device of which a port has come, or gone (None).
            on_twin: Told of each device of which it is new that another one shows its serial.
        """
        self.ports: dict[Key, Port] = {}
        """All ports that are there."""
        self.offered_at: dict[Key, Record] = {}
        """The device that is offered, by each of its ports."""
        self._records = records
        self._retired = retired
        self._recognition = recognition
        self._on_move = on_move
        self._on_twin = on_twin
        self._twins = Twins()
        self._twin_serials: set[Serial] = set()
        self._key_of: dict[DeviceNumber, Key] = {}
        self._superseded: dict[Key, Key] = {}
        """Ports whose device was seen under a later name, and that name."""

    def apply(self, facts: Iterable[Fact], now: float) -> None:
        """Take in what sources found."""
        gone, present = _reduced(facts, self.ports)
        # What has gone is taken out before what has come is taken in: a device that moved would
        # else be its own twin.
        for key in gone:
            self._leave(key, now)
        for key, port in present.items():
            before = self.ports.get(key)
            if before is not None and fingerprint(before) != fingerprint(port):
                self._leave(key, now)  # another device took the name, and nobody saw this one leave
        for key, port in present.items():
            self._arrive(key, port, now)

    def settled_port(self, key: Key) -> Port:
        """A port as its device was last seen with, though udevd may be looking at it again."""
        record = self.offered_at.get(key)
        return (record and record.port_at(key)) or self.ports[key]

    def with_number(self, number: DeviceNumber) -> list[Record]:
        """The devices that have a port with that number now."""
        offered = self.offered_at.get(self._key_of[number]) if number in self._key_of else None
        retired = [
            record
            for record in map(self._records.__getitem__, self._retired)
            if any(record.ports[slot].number == number for slot in record.present)
        ]
        return [*retired, offered] if offered is not None else retired

    def find_ports_of(self, retired: Record) -> None:
        """A device that is not offered has just become known: perhaps some ports are its."""
        for key, port in self.ports.items():
            is_settled = port.readiness is not Readiness.SETTLING
            if is_settled and self._recognition.is_of(retired, port):
                self._enter(retired, key, port, retired.last_move)

    def retired_at(self, key: Key) -> list[Record]:
        """The devices that are not offered any longer, of which that port is one."""
        records = (self._records[device_id] for device_id in sorted(self._retired))
        return [record for record in records if key in record.present.values()]

    def _arrive(self, key: Key, port: Port, now: float) -> None:
        before = self.ports.get(key)
        if before == port and (
            key in self.offered_at or self._superseded.get(key) in self.offered_at
        ):
            return
        self.ports[key] = port
        twin = self._twins.arrive(key, port)
        if twin is not None:
            self._tell_twins(twin)
        record = self.offered_at.get(key)
        if port.readiness is Readiness.SETTLING:
            return  # not yet; and a known one is no less usable while udevd looks at it again
        if record is None:
            record = self._recognise(key, port, now)
            if record is not None:
                self.offered_at[key] = record
                record.has_twin |= serial_of(port) in self._twin_serials
        elif before is not None:
            self._release(before.number, key)
        if record is not None:
            self._key_of[port.number] = key
            self._enter(record, key, port, now)
        for retired in map(self._records.__getitem__, self._retired):
            if retired is not record and self._recognition.is_of(retired, port):
                self._enter(retired, key, port, now)

    def _enter(self, record: Record, key: Key, port: Port, now: float) -> None:
        record.arrive(key, port, now)
        self._on_move(record, port)

    def _recognise(self, key: Key, port: Port, now: float) -> Record | None:
        """The record of the device behind ``port``: one that is there, was away, or is new."""
        rule = self._recognition.rule_of(port)
        elsewhere = self._key_of.get(port.number)
        if rule is None or (elsewhere is not None and elsewhere[0] != key[0]):
            return None  # nobody's, or another source has this very character device
        device_id, seen_as = self._recognition.identify(key, port, rule)
        if seen_as is not None:
            self._lose(seen_as, now)
            self._superseded[seen_as] = key
        record = self._records.get(device_id)
        if record is None:
            record = self._records[device_id] = Record(device_id, rule)
        record.rule, record.is_offered = rule, True
        self._retired.discard(device_id)
        return record

    def tell_twins(self) -> None:
        """Of one device it is known that another one has its serial: so it is of all that have."""
        twins = (record for record in self._records.values() if record.has_twin)
        serials = {serial_of(port) for record in twins for port in record.ports.values()}
        self._twin_serials = {serial for serial in serials if serial is not None}
        for serial in self._twin_serials:
            self._tell_twins(serial)

    def _tell_twins(self, serial: Serial) -> None:
        if len(self._twin_serials) > _MOST_TWINS and serial not in self._twin_serials:
            self.tell_twins()  # devices that invent serials are forgotten, and so are these
        self._twin_serials = self._twin_serials | {serial}
        for record in self._records.values():
            if not record.has_twin and serial in map(serial_of, record.ports.values()):
                record.has_twin = True  # not to be forgotten, even if the other one is
                self._on_twin(record)

    def _leave(self, key: Key, now: float) -> None:
        self._lose(key, now)
        if (port := self.ports.pop(key, None)) is not None:
            self._twins.leave(key, port)
        self._superseded.pop(key, None)

    def _lose(self, key: Key, now: float) -> None:
        """No device is behind that port any longer."""
        record = self.offered_at.pop(key, None)
        if record is not None:
            slot = self.ports[key].slot
            record.leave(slot, now)
            self._release(record.ports[slot].number, key)
            if self._recognition.is_makeshift(record.id, self.ports[key], record.rule):
                # When it comes back it may well go by a better ID, which nobody else may get then.
                record.is_offered = False
                self._retired.add(record.id)
            self._on_move(record, None)
        for retired in self.retired_at(key):
            retired.leave(self.ports[key].slot, now)
            self._on_move(retired, None)

    def _release(self, number: DeviceNumber, key: Key) -> None:
        if self._key_of.get(number) == key:
            del self._key_of[number]


def _reduced(facts: Iterable[Fact], known: Collection[Key]) -> tuple[set[Key], dict[Key, Port]]:
    """The ports that left at some time during these facts, and those that are there at the end.

    A port that was replaced is in both.
    """
    gone: set[Key] = set()
    present: dict[Key, Port] = {}
    for fact in facts:
        match fact:
            case PortPresent(source, port):
                present[source, port.name] = port
            case PortGone(source, name):
                gone.add((source, name))
                present.pop((source, name), None)
            case AllPorts(source, ports):
                listed = {(source, port.name) for port in ports}
                missing = {key for key in (*known, *present) if key[0] == source} - listed
                gone |= missing
                for key in missing & present.keys():
                    del present[key]
                # Who came first keeps a disputed ID, and udevd's times make a restarted plugin
                # agree.
                for port in sorted(ports, key=lambda port: (port.initialized_usec, port.name)):
                    present[source, port.name] = port
    return gone, present
