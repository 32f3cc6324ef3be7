"""The inventory and what depends on it outside: links, CDI specs, state. In the event loop only.

An order is kept: what a path leads to is changed before a front hears of a device, and what a
container is given is on disk before the kubelet gets its answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from usbplugin.custody.changelog import log_changes
from usbplugin.custody.saving import Saving
from usbplugin.custody.shares import MOST_SHARES, device_of
from usbplugin.custody.starting import start_problem
from usbplugin.discovery import AllPorts, PortPresent, Readiness
from usbplugin.foundation.pulse import Pulse
from usbplugin.inventory import HealthPolicy, Inventory, Update

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from usbplugin.custody import CdiDirectory, LinkDirectory, Offer, StateStore
    from usbplugin.discovery import Fact, Port
    from usbplugin.inventory import (
        Change,
        Device,
        GrantedPort,
        HeldDevice,
        ResourceRule,
        Snapshot,
    )

_log = logging.getLogger(__name__)


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
        holders_can_tell: bool = False,
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
            holders_can_tell: Whether the kubelet can be asked who holds what.
        """
        self._links = links
        self._cdi = cdi
        self._publish_snapshot = publish
        self._tell = tell
        self._wake_at = wake_at
        self._changed = Pulse()
        self._offers = {offer.resource: offer for offer in offers}
        self._inventory = Inventory(
            rules,
            policy,
            states.load(),
            time.monotonic(),
            holders_can_tell=holders_can_tell,
        )
        self._saving = Saving(states)

    @property
    def awaits_holders(self) -> bool:
        """Whether the kubelet should be asked soon who holds what."""
        return self._inventory.awaits_holders

    async def changed(self) -> None:
        """Wait until a device changes, or is given to a container."""
        await self._changed.wait()

    @property
    def devices(self) -> tuple[Device, ...]:
        """All devices of all resources."""
        return tuple(device for name in self._offers for device in self.snapshot(name).devices)

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
        self._carry_out(self._inventory.apply(batch, time.monotonic()), _noticed(batch))
        if any(isinstance(fact, AllPorts) and fact.reason == "period" for fact in batch):
            self._mend()

    def hold(self, held: Iterable[HeldDevice], asked_at: float) -> None:
        """Take in who holds what, by the kubelet's word."""
        devices = [replace(h, device_id=self._device_of(h)) for h in held]
        self._carry_out(self._inventory.hold(devices, asked_at, time.monotonic()))
        self._saving.save()

    def look(self) -> None:
        """See whether links and states are there still; called now and then."""
        if self._links.is_disturbed():
            self._mend()

    def clean_up(self) -> None:
        """Remove what earlier runs left of devices that are not known any longer."""
        self._links.keep_only({device.id for device in self.devices})

    def reconfigure(
        self, rules: Sequence[ResourceRule], offers: Sequence[Offer], policy: HealthPolicy
    ) -> None:
        """Apply new rules and offers, and keep all that is known."""
        before, with_cdi = self._inventory, self._with_cdi()
        now = time.monotonic()
        self._offers = {offer.resource: offer for offer in offers}
        self._inventory = before.reconfigured(rules, policy, now)
        self._carry_out(self._inventory.apply(_everything(before), now))
        for resource in with_cdi - self._with_cdi():
            self._cdi.remove(resource)
        self._write_cdi()

    def release(self) -> None:
        """On the way out: CDI specs of resources that nobody holds go, all else stays."""
        self._saving.save()
        for resource in self._with_cdi():
            if not any(device.holders for device in self.snapshot(resource).devices):
                self._cdi.remove(resource)

    def host_path(self, device: Device, port: Port) -> str:
        """Where on the host a port's node is found."""
        return self._links.host_path(device, port)

    def locate(self, device_id: str) -> str | None:
        """The resource that knows a device ID."""
        device = self._inventory.find(device_id)
        return device.resource if device else None

    def grant(self, device: Device, paths: Mapping[str, str] | None) -> None:
        """A container gets the device: by slot, the path it is given; None: as it was given."""
        if paths is None:
            given = self._inventory.granted(device.id)
            paths = {port.slot: self._path_given(device, port, given) for port in device.ports}
        self._carry_out(self._inventory.grant(device.id, paths, time.monotonic()))
        self._changed.beat()  # the next holder may well be given what the last one was
        self._saving.restore(self._inventory.state(device.id))
        self._saving.save()  # before the kubelet gets its answer

    def container_ended(self, device_id: str) -> None:
        """The container that has the device asked to be started anew, and may not yet."""
        self._carry_out(self._inventory.container_ended(device_id, time.monotonic()))
        if self._inventory.find(device_id) is not None:
            self._saving.restore(self._inventory.state(device_id))
            self._saving.save()

    def start_problem(self, device: Device) -> str:
        """Why a container that holds the device must not start now; empty if it may.

        What the kubelet replays has to lead to this very device, and not to one that has taken
        its place.
        """
        self._links.update(device)  # whatever happened to them meanwhile
        given = self._inventory.granted(device.id)
        paths = {port.slot: self._path_given(device, port, given) for port in device.ports}
        return start_problem(device, paths)

    def _path_given(self, device: Device, port: Port, given: Mapping[str, GrantedPort]) -> str:
        earlier = given.get(port.slot)
        if earlier is not None and not self._offers[device.resource].cdi:
            return earlier.path
        return self._links.host_path(device, port)

    def _device_of(self, held_device: HeldDevice) -> str:
        """Of which device a share is held; also of a resource that a reload has ended."""
        offer = self._offers.get(held_device.resource)
        if offer is None and self._inventory.find(held_device.device_id) is not None:
            return held_device.device_id
        return device_of(held_device.device_id, offer.shares if offer else MOST_SHARES)

    def _with_cdi(self) -> set[str]:
        return {offer.resource for offer in self._offers.values() if offer.cdi}

    def _write_cdi(self) -> None:
        for resource in self._with_cdi():
            self._cdi.write(self.snapshot(resource), self._offers[resource])

    def _carry_out(self, update: Update, noticed: float | None = None) -> None:
        for change in update.changes:
            if change.after is None:
                self._forget(change.device.id)
            else:
                self._links.update(change.device)
        for snapshot in update.snapshots:
            offer = self._offers[snapshot.resource]
            if offer.cdi:
                self._cdi.write(snapshot, offer)
            self._publish_snapshot(snapshot, noticed)
        self._saving.add(update.to_save)
        # The streams first, then the clock, files and log.
        loop = asyncio.get_running_loop()
        loop.call_soon(self._set_clock)
        if update.changes or update.to_save:
            self._changed.beat()
            loop.call_soon(self._saving.save)
            loop.call_soon(log_changes, update.changes)
            loop.call_soon(self._tell, update.changes)

    def _set_clock(self) -> None:
        self._wake_at(self._inventory.deadline)

    def _forget(self, device_id: str) -> None:
        self._saving.drop(device_id)
        self._links.forget(device_id)

    def _mend(self) -> None:
        """Make again what somebody has deleted, or what could not be made."""
        for device in self.devices:
            self._links.update(device)
            self._saving.restore(self._inventory.state(device.id))
        self._saving.save()
        self._write_cdi()


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
