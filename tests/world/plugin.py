"""The plugin, one process after another over the same directories, as the agent runs it.

It sees ports, the kubelet's answers and its own files, and nothing of the truth.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from tests.fuzz.support import AbortedError, Context
from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.custody import CdiDirectory, Custody, LinkDirectory, StateStore
from usbplugin.custody.starting import Eyes
from usbplugin.deviceplugin import DevicePlugin
from usbplugin.deviceplugin.list_writer import HEALTHY, ListWriter
from usbplugin.foundation.workers import Workers
from usbplugin.inventory import HealthPolicy
from usbplugin.kubelet import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from pathlib import Path

    from tests.world.hardware import Kernel
    from tests.world.terms import Terms
    from usbplugin.custody import Offer
    from usbplugin.discovery import DeviceNumber, Fact, Port
    from usbplugin.inventory import Device, HeldDevice, Snapshot

    _Result = TypeVar("_Result")

POLICY = HealthPolicy()
WORKERS = Workers()


class Sight(Eyes):
    """Sees the kernel's nodes and ports as they are."""

    def __init__(self, kernel: Kernel, resolve: Callable[[str], DeviceNumber | None]) -> None:
        super().__init__(resolve)
        self._kernel = kernel

    def is_unchanged(self, port: Port) -> bool:
        return self._kernel.is_unchanged(port)


class Plugin:
    """One process. What it leaves behind is on disk."""

    def __init__(
        self,
        root: Path,
        terms: Terms,
        kernel: Kernel,
        resolve: Callable[[str], DeviceNumber | None],
        clock: Callable[[], float],
        boot: str,
        checkpoint: Path,
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self.terms = terms
        self.wake: float | None = None
        self._services: dict[str, DevicePlugin] = {}
        self._snapshots: dict[str, Snapshot] = {}
        links = root / terms.links
        self.custody = Custody(
            terms.rules,
            terms.offers,
            POLICY,
            LinkDirectory(links),
            StateStore(root / "states", links),
            CdiDirectory(root / "cdi"),
            self._publish,
            lambda changes: None,
            self._wake_at,
            workers=WORKERS,
            checkpoint=Checkpoint(checkpoint),
            eyes=Sight(kernel, resolve),
            holders_can_tell=True,
            boot=boot,
            clock=clock,
        )

    def begin(self, facts: Sequence[Fact], held: Sequence[HeldDevice] | None, now: float) -> None:
        """Learn everything before anything is served; ``held`` if the kubelet tells."""

        async def begin() -> None:
            self.take_up()
            notes = await self.custody.notes()
            self.custody.apply(facts)
            self.custody.heed(notes)
            if held is not None:
                await self.custody.hear(held, now)
            self.custody.clean_up()
            self._open(self.terms.offers)
            self.opened()

        self._run(begin)

    def kill(self) -> None:
        """End without any farewell; what was put off is never done."""
        self._loop.close()

    def stop(self, held: Sequence[HeldDevice] | None, now: float) -> None:
        """End as on SIGTERM."""

        async def stop() -> None:
            if held is not None:
                await self.custody.hear(held, now)
            self.custody.release(is_last=True)

        self._run(stop)
        self._loop.close()

    def reload(self, terms: Terms) -> None:
        """The configuration file has changed."""

        async def reload() -> None:
            kept = [offer for offer in terms.offers if offer in self.terms.offers]
            names = {offer.resource for offer in kept}
            self._services = {
                name: service for name, service in self._services.items() if name in names
            }
            self.terms = terms
            self.custody.reconfigure(terms.rules, terms.offers, POLICY)
            self.reconfigured()
            self._open(offer for offer in terms.offers if offer not in kept)

        self._run(reload)

    def tell(self, facts: Iterable[Fact], *, abruptly: bool = False) -> None:
        """A source has found something.

        Args:
            facts: What.
            abruptly: Whether the process is killed before it does what it has put off.
        """

        async def tell() -> None:
            self.custody.apply(facts)

        self._run(tell, abruptly=abruptly)

    def hear(self, held: Sequence[HeldDevice], asked_at: float) -> None:
        """PodResources has answered."""
        self._run(lambda: self.custody.hear(held, asked_at))

    def look(self) -> None:
        """Some time has passed, or a directory has changed."""

        async def look() -> None:
            self.custody.look()
            self.looked()

        self._run(look)

    # For what has more than one front.

    def take_up(self) -> None:
        """Before anything is known of what is plugged in."""

    def opened(self) -> None:
        """All is known, and what is served is."""

    def reconfigured(self) -> None:
        """The terms are others now."""

    def looked(self) -> None:
        """Custody has looked after what is on disk."""

    @property
    def devices(self) -> tuple[Device, ...]:
        return self.custody.devices

    @property
    def offered(self) -> list[Device]:
        """The devices that the kubelet may be told of, as far as they are fit."""
        return [
            device
            for name in self._services
            for device in self.custody.snapshot(name).devices
            if device.health.is_usable
        ]

    def serves(self, resource: str) -> bool:
        return resource in self._services

    def healthy(self, resource: str) -> list[str]:
        """What the kubelet was told last."""
        if resource not in self._services:
            return []
        shares = next(o.shares for o in self.terms.offers if o.resource == resource)
        message = ListWriter(shares).write(self._snapshots[resource])
        devices = v1beta1.ListAndWatchResponse.FromString(message).devices
        return [device.ID for device in devices if device.health == HEALTHY]

    def preferred(self, resource: str, available: Sequence[str], size: int) -> list[str]:
        request = v1beta1.PreferredAllocationRequest(
            container_requests=[
                v1beta1.ContainerPreferredAllocationRequest(
                    available_deviceIDs=available, allocation_size=size
                )
            ]
        )
        service = self._services[resource]
        answer = self._run(
            lambda: service.GetPreferredAllocation(request, Context())  # type: ignore[arg-type]
        )
        return list(answer.container_responses[0].deviceIDs)

    def allocate(
        self, resource: str, ids: Sequence[str], *, abruptly: bool = False
    ) -> v1beta1.ContainerAllocateResponse | None:
        """The answer; None if it is a refusal."""
        request = v1beta1.AllocateRequest(
            container_requests=[v1beta1.ContainerAllocateRequest(devices_ids=ids)]
        )
        service = self._services[resource]

        async def allocate() -> v1beta1.ContainerAllocateResponse | None:
            try:
                answer = await service.Allocate(request, Context())  # type: ignore[arg-type]
            except AbortedError:
                return None
            return answer.container_responses[0]

        return self._run(allocate, abruptly=abruptly)

    def pre_start(self, resource: str, ids: Sequence[str]) -> bool:
        """Whether a container with these may start."""
        request = v1beta1.PreStartContainerRequest(devices_ids=ids)
        service = self._services[resource]

        async def pre_start() -> bool:
            try:
                await service.PreStartContainer(request, Context())  # type: ignore[arg-type]
            except AbortedError:
                return False
            return True

        return self._run(pre_start)

    def _open(self, offers: Iterable[Offer]) -> None:
        for offer in offers:
            if offer.by_claim:
                continue
            snapshot = self.custody.snapshot(offer.resource)
            self._snapshots[offer.resource] = snapshot
            self._services[offer.resource] = DevicePlugin(
                offer, snapshot, self.custody, lambda: None
            )

    def _publish(self, snapshot: Snapshot, noticed: float | None) -> None:
        del noticed
        if service := self._services.get(snapshot.resource):
            self._snapshots[snapshot.resource] = snapshot
            service.publish(snapshot)

    def _wake_at(self, moment: float | None) -> None:
        self.wake = moment

    def run(self, action: Callable[[], Awaitable[_Result]], *, abruptly: bool = False) -> _Result:
        """Do something in the plugin's event loop."""
        return self._run(action, abruptly=abruptly)

    def _run(self, action: Callable[[], Awaitable[_Result]], *, abruptly: bool = False) -> _Result:
        async def inside() -> _Result:
            result = await action()
            if abruptly:
                self._loop.stop()
            else:
                await asyncio.sleep(0)
            return result

        return self._loop.run_until_complete(inside())
