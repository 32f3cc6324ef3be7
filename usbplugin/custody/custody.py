"""The inventory and what depends on it outside: links, CDI specs, state. In the event loop only.

An order is kept: what a path leads to is changed before a front hears of a device, and what a
container is given is on disk before the kubelet gets its answer. What could not be written is part
of the truth: such a device is listed as Unhealthy, and neither granted nor started.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from usbplugin.custody.admission import LOOK_TIMEOUT, Admission
from usbplugin.custody.changelog import log_changes
from usbplugin.custody.claims import ClaimedDevices
from usbplugin.custody.effects import Effects
from usbplugin.custody.saving import Saving
from usbplugin.custody.starting import Eyes
from usbplugin.custody.witness import grants_of
from usbplugin.discovery import AllPorts, PortPresent, Readiness
from usbplugin.discovery.identity import is_ours
from usbplugin.errors import KubeletError
from usbplugin.foundation.pulse import Pulse
from usbplugin.inventory import HealthPolicy, Inventory, Update
from usbplugin.inventory.book import is_told_by
from usbplugin.inventory.shares import device_of
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from usbplugin.custody import CdiDirectory, LinkDirectory, Offer, StateStore
    from usbplugin.discovery import Fact, Port
    from usbplugin.foundation.workers import Workers
    from usbplugin.inventory import (
        Change,
        Device,
        Grant,
        GrantKey,
        HeldDevice,
        ResourceRule,
        Snapshot,
    )
    from usbplugin.kubelet import Checkpoint

_log = logging.getLogger(__name__)

_MOST_ROUNDS = 3


class Custody:
    """Keeps the devices, and all that depends on them."""

    def __init__(
        self,
        rules: Sequence[ResourceRule],
        offers: Sequence[Offer],
        policy: HealthPolicy,
        links: LinkDirectory,
        states: StateStore,
        cdi: CdiDirectory,
        publish: Callable[[Snapshot, float | None], None],
        tell: Callable[[Sequence[Change]], None],
        wake_at: Callable[[float | None], None],
        *,
        workers: Workers,
        checkpoint: Checkpoint | None = None,
        eyes: Eyes | None = None,
        holders_can_tell: bool = False,
        boot: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with the state that an earlier process left.

        Args:
            rules: What is selected; the first match wins.
            offers: On what terms the selected devices are offered; one for each rule.
            policy: How long things are remembered and waited for.
            links: Stable paths to the nodes.
            states: What outlives this process.
            cdi: The specs that container runtimes read.
            publish: Takes each new snapshot, and when a source noticed what led to it, if it did.
            tell: Told of what has changed, after it was published.
            wake_at: Told when to call ``apply`` at the latest, with no facts if need be:
                ``time.monotonic`` seconds, or None; replaces what it was told before.
            workers: Run what may hang.
            checkpoint: The kubelet's own notes about what containers were given.
            eyes: Looks at nodes and ports as they are at this moment.
            holders_can_tell: Whether the kubelet can be asked who holds what.
            boot: Names the present boot.
            clock: Tells the time; every moment that custody is told, or tells, is of it.
        """
        self._clock = clock
        self._publish_snapshot = publish
        self._tell = tell
        self._wake_at = wake_at
        self._workers = workers
        self._checkpoint = checkpoint
        self._eyes = eyes or Eyes()
        self._changed = Pulse()
        self._offers = {offer.resource: offer for offer in offers}
        known = states.load()
        self._inventory = Inventory(
            rules,
            policy,
            known,
            self._clock(),
            holders_can_tell=holders_can_tell,
            boot=boot,
        )
        self._effects = Effects(self._inventory, offers, links, cdi, Saving(states, known))
        self._admission = Admission(lambda: self._inventory, self._effects, workers, self._eyes)
        self._states = states
        self._complaint = ""
        self.claimed = ClaimedDevices(lambda: self._inventory, self._change)

    @property
    def awaits_holders(self) -> bool:
        """Whether the kubelet should be asked soon who holds what."""
        return self._inventory.awaits_holders

    async def changed(self) -> None:
        """Wait until a device changes, or is given to a container."""
        await self._changed.wait()

    @property
    def devices(self) -> tuple[Device, ...]:
        """All devices of all resources, then those that are here for their holders alone."""
        order = {name: index for index, name in enumerate(self._offers)}
        last = len(order)
        return tuple(sorted(self._inventory.devices, key=lambda d: order.get(d.resource, last)))

    @property
    def ports(self) -> Mapping[tuple[str, str], Port]:
        """All ports that are there, by source and name; also those that no resource selects."""
        return self._inventory.ports

    def snapshot(self, resource: str) -> Snapshot:
        """The latest of a resource."""
        return self._inventory.snapshot(resource)

    def apply(self, facts: Iterable[Fact]) -> None:
        """Take in what sources found."""
        batch = list(facts)
        self._carry_out(self._inventory.apply(batch, self._clock()), _noticed(batch))
        if any(isinstance(fact, AllPorts) and fact.reason == "period" for fact in batch):
            self._mend()

    async def hear(self, held: Iterable[HeldDevice], asked_at: float) -> None:
        """Take in who holds what, by the kubelet's word, and what they were given if need be."""
        listed = list(held)
        if any(is_ours(one.device_id) and not self._knows_grant(one.key) for one in listed):
            self.heed(await self.notes())
        self.hold(listed, asked_at)

    def hold(self, held: Collection[HeldDevice], asked_at: float) -> None:
        """Take in who holds what, by the kubelet's word."""
        self.claimed.hear(held, asked_at)
        self._carry_out(self._inventory.hold(held, asked_at, self._clock()))
        self._save()

    async def notes(self) -> tuple[Grant, ...]:
        """What containers were given by the kubelet's own notes; nothing if they cannot be read."""
        if self._checkpoint is None:
            return ()
        checkpoint, number_at = self._checkpoint, self._eyes.number_at
        try:
            # A kubelet that has never allocated anything has not written it yet.
            grants = await self._workers.answer(
                lambda: grants_of(checkpoint.read() if checkpoint.is_there else (), number_at),
                LOOK_TIMEOUT,
            )
        except (KubeletError, TimeoutError) as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                _log.info("the kubelet's checkpoint tells nothing", extra=fields(reason=error))
            return ()
        self._complaint = ""
        return grants

    def heed(self, notes: Iterable[Grant]) -> None:
        """Take in the kubelet's own notes, which count."""
        if news := [grant for grant in notes if self._is_news(grant)]:
            self._carry_out(self._inventory.learn(news, self._clock()))
            self._save()

    def _knows_grant(self, key: GrantKey) -> bool:
        holding = self._inventory.holding(key)
        return holding is not None and holding.grant is not None

    def _is_news(self, grant: Grant) -> bool:
        """Whether the kubelet says something else than we know; that is logged."""
        holding = self._inventory.holding(grant.key)
        if holding is None or holding.grant is None:
            return True
        if is_told_by(holding.grant, grant):
            return False
        _log.warning(
            "the kubelet will replay other paths than we know of; its word counts",
            extra=fields(device=holding.device_id, known=holding.grant.paths, replayed=grant.paths),
        )
        return True

    def begin(self, left: Iterable[str]) -> None:
        """Before anything is written: these resources are kept by another instance until now."""
        self._effects.mark()
        for resource in left:
            self._effects.leave(resource)

    def leave(self, resource: str) -> None:
        """Another instance is registered for a resource, and keeps what containers are given.

        Whatever is known here is on disk by then, and what happens from now on is written by that
        one. Links go on being kept here if it keeps its own elsewhere.
        """
        self._save()
        self._effects.leave(resource)

    async def take_charge(self, resource: str) -> None:
        """We are registered for a resource, and keep what containers are given."""
        if self._effects.has_left(resource):
            await self._recall()
            self._effects.take_back(resource)
            self._mend()

    async def catch_up(self, resource: str) -> None:
        """Learn what another instance has granted of a resource, if one may have."""
        if self._effects.has_left(resource):
            await self._recall()

    async def _recall(self) -> None:
        """Take in what another instance may have written: of what was left to it, that counts."""
        try:
            states = await self._workers.answer(self._states.load, LOOK_TIMEOUT)
        except TimeoutError:
            _log.warning("states cannot be read in time; what another instance granted is unknown")
            return
        left = [state for state in states if self._effects.has_left(state.resource)]
        self._carry_out(self._inventory.recall(left, self._clock()))

    def look(self) -> None:
        """See whether links and states are there still; called now and then."""
        self._effects.mark()
        if self._effects.is_disturbed():
            self._mend()

    def clean_up(self) -> None:
        """Remove what earlier runs left of devices that are not known any longer."""
        self._effects.clean_up()

    def reconfigure(
        self, rules: Sequence[ResourceRule], offers: Sequence[Offer], policy: HealthPolicy
    ) -> None:
        """Apply new rules and offers, and keep all that is known."""
        before, resources = self._inventory, set(self._offers)
        now = self._clock()
        self._offers = {offer.resource: offer for offer in offers}
        self._inventory = before.reconfigured(rules, policy, now)
        self._effects.rebase(self._inventory, offers)
        self._carry_out(self._inventory.apply(_everything(before), now))
        for resource in resources - self._offers.keys():
            self._effects.remove_spec(resource)
        self._effects.write_specs()

    def release(self, *, is_last: bool) -> None:
        """On the way out: CDI specs of resources that nobody holds go, all else stays.

        Args:
            is_last: Whether no other instance lives that may need them.
        """
        self._save()
        self._effects.unmark()
        if not (is_last and self._inventory.knows_holders):
            return  # who does not know who holds what, removes nothing
        for resource in self._offers:
            if not self._inventory.is_of_use(resource):
                self._effects.remove_spec(resource)

    def host_path(self, device: Device, port: Port) -> str:
        """Where on the host a port's node is found."""
        return self._effects.host_path(device, port.slot)

    def locate(self, device_id: str) -> str | None:
        """The resource that knows a device ID."""
        found = map(self._inventory.find, (device_id, device_of(device_id)))
        device = next(filter(None, found), None)
        return device.resource if device else None

    async def grant_problem(self, devices: Sequence[Device]) -> str:
        """Why these devices are not at this moment what they are known to be; empty if they are."""
        return await self._admission.grant_problem(devices)

    def grant(self, device: Device, paths: Mapping[str, str], listed_ids: Sequence[str]) -> str:
        """A container gets the device.

        Args:
            device: As it was looked up.
            paths: By slot, the path on the host that it is given; empty by CDI.
            listed_ids: The IDs that the kubelet knows it by.

        Returns:
            Why it must not; empty if it may.
        """
        if problem := self._effects.problem_of_links(device):
            return problem
        self._carry_out(self._inventory.grant(device.id, paths, self._clock(), listed_ids))
        self._changed.beat()  # the next holder may well be given what the last one was
        self._effects.keep(self._inventory.state(device.id))
        self._save()  # before the kubelet gets its answer
        return self._effects.obstacles.get(device.id, "")

    async def start(self, resource: str, listed_ids: Sequence[str]) -> str:
        """A container that holds these asks to be started.

        Returns:
            Why it must not start now; empty if it may: then it runs with the present numbers.
        """
        keys = [(resource, listed_id) for listed_id in listed_ids]
        await self.catch_up(resource)
        self.heed(grant for grant in await self.notes() if grant.key in keys)
        problem = await self._admission.start_problem(keys)
        now = self._clock()
        if problem:
            self._carry_out(self._inventory.ended(keys, now))
        else:
            self._carry_out(self._inventory.started(keys, now))
            self._changed.beat()
        held = [one for key in keys if (one := self._inventory.holding(key))]
        for holding in held:
            self._effects.keep(self._inventory.state(holding.device_id))
        self._save()
        obstacles = (self._effects.obstacles.get(holding.device_id, "") for holding in held)
        return problem or next(filter(None, obstacles), "")

    def _change(self, change: Callable[[float], Update]) -> None:
        self._carry_out(change(self._clock()))
        self._changed.beat()  # a container may have it soon

    def _carry_out(self, update: Update, noticed: float | None = None) -> None:
        update = self._make_true(update)
        self.claimed.make_true(update.changes)
        for snapshot in update.snapshots:
            self._publish_snapshot(snapshot, noticed)
        # The streams first, then the clock, files and log.
        loop = asyncio.get_running_loop()
        loop.call_soon(self._set_clock)
        if update.changes or update.to_save:
            self._changed.beat()
            loop.call_soon(self._save)
            loop.call_soon(log_changes, update.changes)
            loop.call_soon(self._tell, update.changes)

    def _make_true(self, update: Update) -> Update:
        """Do what has to be done before anybody hears of these changes.

        Returns:
            The changes, with those that follow from what could not be done.
        """
        step = update
        for _ in range(_MOST_ROUNDS):
            if not (news := self._effects.do(step)):
                break
            step = self._inventory.obstruct(news, self._clock())
            update = update.then(step)
        return update

    def _save(self) -> None:
        """Write what is not on disk, and tell if that fails."""
        if news := self._effects.save():
            self._carry_out(self._inventory.obstruct(news, self._clock()))

    def _set_clock(self) -> None:
        self._wake_at(self._inventory.deadline)

    def _mend(self) -> None:
        if freed := self._effects.mend():
            self._carry_out(self._inventory.obstruct(freed, self._clock()))


def _everything(inventory: Inventory) -> list[AllPorts]:
    ports = inventory.ports
    return [
        AllPorts(
            name, tuple(inventory.settled_port(key) for key in ports if key[0] == name), "reload"
        )
        for name in sorted({source for source, _ in ports})
    ]


def _noticed(facts: Iterable[Fact]) -> float | None:
    """When the first was noticed of those facts that may change a device."""
    moments = [
        fact.noticed
        for fact in facts
        if fact.noticed is not None
        and not (isinstance(fact, PortPresent) and fact.port.readiness is Readiness.SETTLING)
    ]
    return min(moments, default=None)
