"""The one owner of device state: facts and the time go in, immutable snapshots come out.

No I/O, no clock, no locks: only the event loop calls it, and a test can replay any history.
"""

from __future__ import annotations

import math
from collections import defaultdict
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
from usbplugin.discovery.identity import (
    candidate_ids,
    descriptors,
    fingerprint,
    is_by_serial,
    is_device_id,
)
from usbplugin.inventory.device import Device, DeviceState, GrantedPort, Snapshot, Update
from usbplugin.inventory.health import Health, HealthPolicy
from usbplugin.inventory.publication import Publication
from usbplugin.inventory.record import Key, Record
from usbplugin.inventory.selector import ResourceRule, first_match

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from usbplugin.inventory.device import HeldDevice

MOST_ABSENT = 256
"""Unplugged devices remembered at most: a device that invents serials must not fill the memory."""


class Inventory:
    """Turns facts about ports into devices with stable IDs and a health."""

    def __init__(
        self,
        rules: Sequence[ResourceRule],
        policy: HealthPolicy = HealthPolicy(),
        states: Iterable[DeviceState] = (),
        now: float = 0.0,
        *,
        holders_can_tell: bool = False,
    ) -> None:
        """Start with what is remembered, all of it away.

        Args:
            rules: The resources, first match wins; their names are unique.
            policy: How long things are remembered and waited for.
            states: What an earlier inventory wanted to be remembered.
            now: Seconds of the clock that ``apply`` uses.
            holders_can_tell: Whether the kubelet can be asked who holds what: until it answers,
                what was granted counts as held.
        """
        self._rules = tuple(rules)
        self._policy = policy
        self._ports: dict[Key, Port] = {}
        self._records: dict[str, Record] = {}
        self._record_of: dict[Key, Record] = {}
        self._key_of: dict[DeviceNumber, Key] = {}
        self._superseded: dict[Key, Key] = {}
        """Ports whose device was seen under a later name, and that name."""
        self._asked_at = -math.inf if holders_can_tell else None
        self._dirty: set[str] = set()
        self._published = Publication(rule.name for rule in self._rules)
        for state in states:
            self._restore(state, now)

    def snapshot(self, resource: str) -> Snapshot:
        """The latest snapshot of a resource.

        Raises:
            KeyError: there is no such resource.
        """
        return self._published.snapshot(resource)

    def find(self, device_id: str) -> Device | None:
        """The device of that ID, of whatever resource."""
        return self._published.find(device_id)

    @property
    def ports(self) -> Mapping[Key, Port]:
        """All ports that are present, also those that belong to no resource or are settling."""
        return self._ports

    def granted(self, device_id: str) -> Mapping[str, GrantedPort]:
        """What the container that holds a device was given, by slot; empty if nobody was."""
        record = self._records.get(device_id)
        return record.granted if record else {}

    def state(self, device_id: str) -> DeviceState:
        """What is to be remembered of a device that is listed."""
        return self._published.state(device_id)

    def reconfigured(
        self, rules: Sequence[ResourceRule], policy: HealthPolicy, now: float
    ) -> Inventory:
        """A new inventory with other rules, which knows what this one does but sees no port yet."""
        successor = Inventory(rules, policy)
        successor._asked_at = self._asked_at
        for record in self._records.values():
            if copy := successor._restore(record.state(), now):
                copy.holders, copy.departures = record.holders, record.departures
                copy.held_as, copy.granted_at = record.held_as, record.granted_at
                copy.health, copy.since = record.health, record.since
                # If the new rules give it another ID, nothing is left of this one.
                copy.listed, copy.was_listed = not record.present, record.listed
        # What is published from now on are the differences.
        successor._dirty |= successor._published.take_over(self._published)
        return successor

    def settled_port(self, key: Key) -> Port:
        """A port as its device was last seen with, though udevd may be looking at it again."""
        record = self._record_of.get(key)
        return (record and record.port_at(key)) or self._ports[key]

    @property
    def awaits_holders(self) -> bool:
        """Whether the kubelet's next word on who holds what will decide something."""
        records = self._records.values()
        return any(record.awaits_holders(self._asked_at, self._policy) for record in records)

    @property
    def deadline(self) -> float | None:
        """When time alone will change something: call ``apply`` then, with no facts if need be."""
        wakes = [record.wake for record in self._records.values() if record.wake is not None]
        return min(wakes, default=None)

    def apply(self, facts: Iterable[Fact], now: float) -> Update:
        """Take in a batch of facts, at ``now`` (seconds of any clock that never goes back)."""
        gone, present = self._reduce(facts)
        # What has gone is taken out before what has come is taken in: a device that moved would
        # else be its own twin.
        for key in gone:
            self._leave(key, now)
        for key, port in present.items():
            before = self._ports.get(key)
            if before is not None and fingerprint(before) != fingerprint(port):
                self._leave(key, now)  # another device took the name, and nobody saw this one leave
        for key, port in present.items():
            self._arrive(key, port, now)
        return self._conclude(now)

    def _reduce(self, facts: Iterable[Fact]) -> tuple[set[Key], dict[Key, Port]]:
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
                    missing = {key for key in (*self._ports, *present) if key[0] == source} - listed
                    gone |= missing
                    for key in missing & present.keys():
                        del present[key]
                    # Who came first keeps a disputed ID, and udevd's times make a restarted plugin
                    # agree.
                    for port in sorted(ports, key=lambda port: (port.initialized_usec, port.name)):
                        present[source, port.name] = port
        return gone, present

    def grant(self, device_id: str, paths: Mapping[str, str], now: float) -> Update:
        """A container gets the device, or gets it anew, under its present numbers.

        Args:
            device_id: Of a device that is present.
            paths: By slot, the path on the host that the container is given.
            now: As for ``apply``.
        """
        record = self._records[device_id]
        record.granted = {
            slot: GrantedPort(record.ports[slot].number, path) for slot, path in paths.items()
        }
        record.granted_at = now
        self._dirty.add(device_id)
        return self._conclude(now)

    def container_ended(self, device_id: str, now: float) -> Update:
        """The container that has the device does not run, and so has none of its old numbers open.

        What it was given is kept: it will be given the same when it starts.
        """
        record = self._records.get(device_id)
        if record is None:
            return Update()
        record.granted = {
            slot: GrantedPort(None, given.path) for slot, given in record.granted.items()
        }
        self._dirty.add(device_id)
        return self._conclude(now)

    def hold(self, held: Iterable[HeldDevice], asked_at: float, now: float) -> Update:
        """These are all who hold a device, by the kubelet's word; it was asked at ``asked_at``."""
        self._asked_at = asked_at
        holders: dict[str, set[str]] = defaultdict(set)
        held_as: dict[str, set[str]] = defaultdict(set)
        by_name = {rule.name: rule for rule in self._rules}
        for one in held:
            if one.device_id not in self._records:
                rule = by_name.get(one.resource)
                if rule is None or not is_device_id(one.device_id):
                    continue  # another plugin's: ours have no such names
                # Nothing else is known of it, but the kubelet reports an unlisted one as healthy.
                self._records[one.device_id] = Record(one.device_id, rule, listed=True)
            holders[one.device_id].add(one.holder)
            held_as[one.device_id].add(one.resource)
        for record in self._records.values():
            found = tuple(sorted(holders.get(record.id, ()))), frozenset(held_as.get(record.id, ()))
            if found != (record.holders, record.held_as):
                record.holders, record.held_as = found
                self._dirty.add(record.id)
            if record.granted and not record.is_held(asked_at, self._policy):
                record.granted = {}
                self._dirty.add(record.id)
        return self._conclude(now)

    def _arrive(self, key: Key, port: Port, now: float) -> None:
        before = self._ports.get(key)
        if before == port and (
            key in self._record_of or self._superseded.get(key) in self._record_of
        ):
            return
        self._ports[key] = port
        record = self._record_of.get(key)
        if port.readiness is Readiness.SETTLING:
            return  # not yet; and a known one is no less usable while udevd looks at it again
        if record is None:
            record = self._recognise(key, port, now)
            if record is None:
                return
            self._record_of[key] = record
        elif before is not None:
            self._release(before.number, key)
        self._key_of[port.number] = key
        record.arrive(key, port, now)
        self._dirty.add(record.id)

    def _leave(self, key: Key, now: float) -> None:
        self._lose(key, now)
        self._ports.pop(key, None)
        self._superseded.pop(key, None)

    def _lose(self, key: Key, now: float) -> None:
        """No device is behind that port any longer."""
        record = self._record_of.pop(key, None)
        if record is not None:
            slot = self._ports[key].slot
            record.leave(slot, now)
            self._release(record.ports[slot].number, key)
            self._dirty.add(record.id)

    def _release(self, number: DeviceNumber, key: Key) -> None:
        if self._key_of.get(number) == key:
            del self._key_of[number]

    def _recognise(self, key: Key, port: Port, now: float) -> Record | None:
        """The record of the device behind ``port``: one that is there, was away, or is new."""
        rule = first_match(self._rules, port)
        elsewhere = self._key_of.get(port.number)
        if rule is None or (elsewhere is not None and elsewhere[0] != key[0]):
            return None  # nobody's, or another source has this very character device
        device_id = self._identify(key, port, rule, now)
        record = self._records.get(device_id)
        if record is None:
            record = self._records[device_id] = Record(device_id, rule)
        record.rule = rule
        return record

    def _identify(self, key: Key, port: Port, rule: ResourceRule, now: float) -> str:
        candidates = candidate_ids(port, rule.identity, rule.unit)
        known = [self._records[name] for name in candidates if name in self._records]
        whole = fingerprint(port, rule.unit)
        for record in known:
            # Another port of a device that is here, or a device back where it was: certainly it.
            if record.fingerprint() == whole:
                seen_as = record.present.get(port.slot)
                if seen_as is None:
                    return record.id
                if seen_as[0] == key[0]:
                    # A place holds one device: it is here under a new name, and the loss of the
                    # old one is still to be heard of.
                    self._lose(seen_as, now)
                    self._superseded[seen_as] = key
                    return record.id
        for candidate in candidates[:-1]:
            holder = self._records.get(candidate)
            if holder is None or not self._is_anothers(holder, port):
                return candidate
        return candidates[-1]

    def _is_anothers(self, record: Record, port: Port) -> bool:
        """Whether a known device is certainly, or perhaps, another one than the one of ``port``."""
        if not record.present:
            if not is_by_serial(record.id):
                return False  # whatever is plugged in there now
            is_the_same = not record.ports or descriptors(port, record.rule.unit) in record.claims()
            return not is_the_same or record.has_twin or self._has_twin(record)
        if descriptors(port, record.rule.unit) in record.claims():
            record.has_twin = True  # not to be forgotten, even if the other one is
            self._dirty.add(record.id)
        return True

    def _has_twin(self, record: Record) -> bool:
        """Whether its serial is known from another device too, and so tells nobody from anybody."""
        others = (other for other in self._records.values() if other is not record)
        return not {claim for other in others for claim in other.claims()}.isdisjoint(
            record.claims()
        )

    def _restore(self, state: DeviceState, now: float) -> Record | None:
        """Know a device again; None if it belongs to no resource any longer."""
        matches = (rule for port in state.ports if (rule := first_match(self._rules, port)))
        same = (rule for rule in self._rules if rule.name == state.resource)
        rule = next(same, None) or next(matches, None)
        if rule is None:
            return None
        record = Record(
            state.id,
            rule,
            ports={port.slot: port for port in state.ports},
            granted=dict(state.granted),
            has_twin=state.has_twin,
            listed=True,
            # Held until the kubelet's first word, which counts at once.
            granted_at=now - self._policy.holder_grace if state.granted else -math.inf,
            health=Health.UNPLUGGED,
            since=now if state.absent_since is None else min(state.absent_since, now),
        )
        self._records[state.id] = record
        self._published.restore(state)
        self._dirty.add(state.id)
        return record

    def _conclude(self, now: float) -> Update:
        due = (r.id for r in self._records.values() if r.wake is not None and r.wake <= now)
        self._dirty.update(due)
        for device_id in self._dirty & self._records.keys():
            self._records[device_id].assess(self._asked_at, self._policy, now)
        self._forget(now)
        update = self._published.publish(self._dirty, self._records)
        self._dirty.clear()
        return update

    def _forget(self, now: float) -> None:
        away = [record for record in self._records.values() if not record.present]
        excess = len(away) - MOST_ABSENT
        if excess > 0:
            away.sort(key=lambda record: record.since)
        for position, record in enumerate(away):
            if record.is_held(self._asked_at, self._policy):
                continue
            # Gone within the batch it came in, or known from nothing but a holder who has gone.
            is_nothing = not record.listed or not record.ports
            if position < excess or is_nothing or record.since + self._policy.retention <= now:
                del self._records[record.id]
                self._dirty.add(record.id)
