"""The one owner of device state: facts and the time go in, immutable snapshots come out.

No I/O, no clock, no locks: only the event loop calls it, and a test can replay any history.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING

from usbplugin.discovery.identity import is_device_id
from usbplugin.inventory.book import GrantBook
from usbplugin.inventory.device import Device, DeviceState, Snapshot, Update
from usbplugin.inventory.grant import Grant, GrantedPort
from usbplugin.inventory.health import Health, HealthPolicy
from usbplugin.inventory.presence import Presence
from usbplugin.inventory.publication import Publication
from usbplugin.inventory.recognition import Recognition
from usbplugin.inventory.record import Key, Record
from usbplugin.inventory.standing import Standings

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from usbplugin.discovery import Fact, Port
    from usbplugin.inventory.grant import GrantKey, HeldDevice, Holding
    from usbplugin.inventory.selector import ResourceRule

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
        boot: str = "",
    ) -> None:
        """Start with what is remembered, all of it away.

        Args:
            rules: The resources, first match wins; their names are unique.
            policy: How long things are remembered and waited for.
            states: What an earlier inventory wanted to be remembered.
            now: Seconds of the clock that ``apply`` uses.
            holders_can_tell: Whether the kubelet can be asked who holds what: until it answers,
                what was granted counts as held.
            boot: Names the present boot: numbers and times of another one mean nothing now.
        """
        self._policy = policy
        self._boot = boot
        self._records: dict[str, Record] = {}
        self._retired: set[str] = set()
        """Devices that the configuration does not offer, which is nearly always none."""
        self._dirty: set[str] = set()
        self._recognition = Recognition(rules, self._records)
        self._book = GrantBook(policy.holder_grace, boot, holders_can_tell=holders_can_tell)
        self._presence = Presence(
            self._records, self._retired, self._recognition, self._moved, self._soil
        )
        self._standings = Standings(self._records, self._presence, self._recognition, self._book)
        self._published = Publication(rule.name for rule in rules)
        for state in states:
            record = self._restore(state, now, is_held=bool(state.grants))
            if record is None:
                continue
            # Version 0.1 named a device by its place, despite its serial, only if it had a twin.
            record.has_twin |= not state.boot and self._recognition.has_other_name(record)
            for grant in state.grants:
                self._book.take_over(state.id, grant, now)
        self._presence.tell_twins()

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
        return self._presence.ports

    def holding(self, key: GrantKey) -> Holding | None:
        """What the container has that was given a listed ID; None if none was, for all we know."""
        return self._book.find(key)

    def holdings(self, device_id: str) -> tuple[Holding, ...]:
        """What containers have of a device, for all we know."""
        return self._book.held(device_id)

    @property
    def devices(self) -> tuple[Device, ...]:
        """All devices, those included that are here for their holders alone."""
        return self._published.devices

    @property
    def knows_holders(self) -> bool:
        """Whether the kubelet has said who holds what."""
        return self._book.asked_at not in (None, -math.inf)

    @property
    def has_cdi_grants(self) -> bool:
        """Whether a container was given a CDI name."""
        return self._book.has_cdi_grants

    def conflict(self, device_id: str, keys: Collection[GrantKey]) -> str:
        """Which other container may have a device open; empty if none may.

        Args:
            device_id: What is about to be opened.
            keys: What the container was given that is about to start.
        """
        return "; ".join(self._standings.rivals(self._records[device_id], keys))

    def is_of_use(self, resource: str) -> bool:
        """Whether a container was given something of a resource, for all we know."""
        return self._book.holds(resource)

    def state(self, device_id: str) -> DeviceState | None:
        """What is to be remembered of a device; None if it is not listed, or not yet."""
        return self._published.state(device_id)

    def reconfigured(
        self, rules: Sequence[ResourceRule], policy: HealthPolicy, now: float
    ) -> Inventory:
        """A new inventory with other rules, which knows what this one does but sees no port yet."""
        successor = Inventory(rules, policy, boot=self._boot)
        successor._book.asked_at = self._book.asked_at
        for record in self._records.values():
            is_held = bool(self._book.held(record.id))
            copy = successor._restore(self._state(record), now, is_held=is_held)
            if copy is None:
                continue
            successor._book.inherit(self._book, record.id)
            copy.departures, copy.must_calm_down = record.departures, record.must_calm_down
            copy.last_move, copy.obstacle = record.last_move, record.obstacle
            copy.health, copy.since = record.health, record.since
            # If the new rules give it another ID, nothing is left of this one.
            copy.listed, copy.was_listed = not record.present, record.listed
        successor._dirty |= successor._published.take_over(self._published)  # to tell differences
        return successor

    def settled_port(self, key: Key) -> Port:
        """A port as its device was last seen with, though udevd may be looking at it again."""
        return self._presence.settled_port(key)

    @property
    def awaits_holders(self) -> bool:
        """Whether the kubelet's next word on who holds what will decide something."""
        return any(
            self._book.awaits_holders(record.id, is_ready=record.health is Health.READY)
            for record in self._records.values()
        )

    @property
    def deadline(self) -> float | None:
        """When time alone will change something: call ``apply`` then, with no facts if need be."""
        wakes = [record.wake for record in self._records.values() if record.wake is not None]
        return min(wakes, default=None)

    def apply(self, facts: Iterable[Fact], now: float) -> Update:
        """Take in a batch of facts, at ``now`` (seconds of a clock that never goes back)."""
        self._presence.apply(facts, now)
        return self._conclude(now)

    def grant(
        self,
        device_id: str,
        paths: Mapping[str, str],
        now: float,
        listed_ids: Sequence[str] = (),
    ) -> Update:
        """A container gets the device under its present numbers.

        Args:
            device_id: Of a device that is present.
            paths: By slot, the path on the host that the container is given; empty by CDI.
            now: As for ``apply``.
            listed_ids: The IDs that the kubelet knows, if they are not the device's own.
        """
        record = self._records[device_id]
        ports = {slot: GrantedPort(record.ports[slot].number, path) for slot, path in paths.items()}
        for listed_id in listed_ids or (device_id,):
            self._book.grant(device_id, Grant(record.rule.name, listed_id, ports), now)
        return self._conclude(now)

    def prepare(self, device_id: str, grant: Grant, now: float) -> Update:
        """A claim has the device until it is released, whether or not the device is known."""
        if device_id in self._records or is_device_id(device_id):
            record = self._records.get(device_id) or self._take_in(device_id, grant.resource)
            self._book.prepare(record.id, grant, now)
        return self._conclude(now)

    def release(self, claim: str, now: float) -> Update:
        """A claim has nothing any longer."""
        self._book.release(claim)
        return self._conclude(now)

    def learn(self, grants: Iterable[Grant], now: float) -> Update:
        """The kubelet's own books say what containers were given: that counts.

        Args:
            grants: Of any device; their numbers count only where we knew of none.
            now: As for ``apply``.
        """
        for grant in grants:
            if (record := self._record_of_listed(*grant.key)) is not None:
                self._book.learn(record.id, grant, now)
        return self._conclude(now)

    def recall(self, states: Iterable[DeviceState], now: float) -> Update:
        """Another instance kept these meanwhile: what it wrote counts."""
        for state in states:
            record = self._records.get(state.id)
            if record is None:
                record = self._restore(state, now, is_held=bool(state.grants))
                if record is None:
                    continue
                if not record.is_offered:
                    self._presence.find_ports_of(record)
            if state.has_twin and not record.has_twin:
                record.has_twin = True
                self._soil(record)
            for grant in state.grants:
                self._book.recall(record.id, grant, now)
        self._presence.tell_twins()
        return self._conclude(now)

    def started(self, keys: Iterable[GrantKey], now: float) -> Update:
        """The container that has these starts anew, and gets the present numbers."""
        for key in keys:
            if holding := self._book.find(key):
                ports = self._records[holding.device_id].ports
                self._book.started(key, {slot: port.number for slot, port in ports.items()})
        return self._conclude(now)

    def ended(self, keys: Iterable[GrantKey], now: float) -> Update:
        """The container that has these does not run, and so has none of its old numbers open.

        What it was given is kept: it will be given the same when it starts.
        """
        for key in keys:
            self._book.ended(key)
        return self._conclude(now)

    def hold(self, held: Iterable[HeldDevice], asked_at: float, now: float) -> Update:
        """These are all who hold a device, by the kubelet's word; it was asked at ``asked_at``."""
        names: dict[GrantKey, set[str]] = defaultdict(set)
        device_of: dict[GrantKey, str] = {}
        for one in held:
            record = self._record_of_listed(*one.key)
            if record is not None:  # else another plugin's: ours have no such names
                names[one.key].add(one.holder)
                device_of[one.key] = record.id
        self._book.hear(names, device_of.__getitem__, asked_at)
        return self._conclude(now)

    def obstruct(self, obstacles: Mapping[str, str], now: float) -> Update:
        """What containers need of these devices could not be written; empty: it could."""
        for device_id, obstacle in obstacles.items():
            record = self._records.get(device_id)
            if record is not None and record.obstacle != obstacle:
                record.obstacle = obstacle
                self._dirty.add(device_id)
        return self._conclude(now)

    def _moved(self, record: Record, arrived: Port | None) -> None:
        self._soil(record)
        if arrived is not None:
            checked = record.rule.checks_starts and not record.rule.by_claim
            self._book.may_start_with(record.id, arrived.slot, arrived.number, claims_only=checked)

    def _restore(self, state: DeviceState, now: float, *, is_held: bool) -> Record | None:
        """Know a device again; None if nobody offers it any longer, and nobody holds it."""
        rule, is_offered = self._recognition.terms(state.id, state.resource, state.ports)
        if not is_offered and not is_held:
            return None
        is_of_this_boot = state.boot in ("", self._boot)
        absent_since = state.absent_since if is_of_this_boot else None
        record = Record(
            state.id,
            rule,
            ports={port.slot: port for port in state.ports},
            is_offered=is_offered,
            has_twin=state.has_twin,
            listed=True,
            health=Health.UNPLUGGED,
            since=now if absent_since is None else min(absent_since, now),
        )
        self._add(record)
        self._published.restore(state)
        return record

    def _add(self, record: Record) -> None:
        self._records[record.id] = record
        if not record.is_offered:
            self._retired.add(record.id)
        self._dirty.add(record.id)

    def _record_of_listed(self, resource: str, listed_id: str) -> Record | None:
        """The device that the kubelet means; None if it is none of ours.

        One that nothing else is known of is taken in: the kubelet reports an unlisted device as
        healthy, and nobody else may get it.
        """
        if known := self._book.find((resource, listed_id)):
            return self._records[known.device_id]
        meant = self._recognition.meant_by(resource, listed_id)
        if meant is None:
            return None
        return self._records.get(meant) or self._take_in(meant, resource)

    def _take_in(self, device_id: str, resource: str) -> Record:
        """Know a device of which nothing is known but that somebody has it."""
        rule, is_offered = self._recognition.terms(device_id, resource, ())
        record = Record(device_id, rule, is_offered=is_offered, listed=True)
        self._add(record)
        self._presence.find_ports_of(record)
        return record

    def _soil(self, record: Record) -> None:
        self._dirty.add(record.id)

    def _heed_book(self) -> None:
        """Who holds what has changed, which other devices may have waited for."""
        self._dirty |= self._standings.concerned_by(*self._book.changes())

    def _state(self, record: Record) -> DeviceState:
        return DeviceState(
            id=record.id,
            resource=record.rule.name,
            ports=record.in_order(),
            grants=self._book.grants(record.id),
            absent_since=None if record.present else record.since,
            has_twin=record.has_twin,
            boot=self._boot,
        )

    def _describe(self, device_id: str) -> tuple[Device, DeviceState] | None:
        record = self._records.get(device_id)
        if record is None or record.health is None:
            return None
        record.listed = True
        device = Device(
            id=record.id,
            resource=record.rule.name,
            health=record.health,
            reason=record.reason,
            ports=record.in_order(),
            since=record.since,
            holders=self._book.holders(device_id),
            also_listed=self._standings.outdated_ids(record),
            has_twin=record.has_twin,
            has_moved=record.has_moved,
        )
        return device, self._state(record)

    def _conclude(self, now: float) -> Update:
        self._heed_book()
        due = (r.id for r in self._records.values() if r.wake is not None and r.wake <= now)
        self._dirty.update(due)
        for device_id in self._dirty & self._records.keys():
            record = self._records[device_id]
            held = self._book.held(device_id)
            record.assess(self._policy, now, held, self._standings.of(record))
        self._forget(now)
        update = self._published.publish(self._dirty, self._describe)
        self._dirty.clear()
        return update

    def _forget(self, now: float) -> None:
        away = [r for r in self._records.values() if not r.present or not r.is_offered]
        excess = len(away) - MOST_ABSENT
        if excess > 0:
            away.sort(key=lambda record: record.since)
        for position, record in enumerate(away):
            if self._book.held(record.id):
                continue
            # Gone within the batch it came in, or known from nothing but a holder who has gone.
            is_nothing = not record.listed or not record.ports or not record.is_offered
            if position < excess or is_nothing or record.since + self._policy.retention <= now:
                self._book.forget(record.id)
                del self._records[record.id]
                self._retired.discard(record.id)
                self._dirty.add(record.id)
