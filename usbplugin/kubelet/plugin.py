"""One resource's ``v1beta1.DevicePlugin`` service: streams snapshots, answers the kubelet.

It reads the latest snapshot and never changes one; a stream that is slow skips to the newest.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, NoReturn, Protocol

import grpc

from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.api import deviceplugin_v1beta1_pb2_grpc as rpc
from usbplugin.errors import AllocationError
from usbplugin.inventory import Health
from usbplugin.kubelet.allocation import Handover, allocate, prefer, usable_devices
from usbplugin.kubelet.shares import share_ids
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

    from usbplugin.discovery import Port
    from usbplugin.inventory import Device, Snapshot

_log = logging.getLogger(__name__)

HEALTHY = "Healthy"
UNHEALTHY = "Unhealthy"


class Custody(Protocol):
    """What a plugin asks of the rest of the program, which keeps what containers are given."""

    def host_path(self, device: Device, port: Port) -> str:
        """Where on the host a port's node is found."""

    def locate(self, device_id: str) -> str | None:
        """The resource that knows a device ID."""

    def hand_over(self, device: Device, paths: Mapping[str, str] | None) -> None:
        """A container gets the device: by slot, the path it is given; None: as it was given."""

    def container_ended(self, device_id: str) -> None:
        """The container that has the device asked to be started anew, and may not yet."""

    def start_problem(self, device: Device) -> str:
        """Why a container that holds the device must not start now; empty if it may."""


class DevicePlugin(rpc.DevicePluginServicer):
    """The service of one generation: it begins with a socket, and is closed with it."""

    def __init__(
        self,
        handover: Handover,
        snapshot: Snapshot,
        custody: Custody,
        on_stream: Callable[[], None],
    ) -> None:
        """Serve ``snapshot`` until the next is published.

        Args:
            handover: How the resource's devices appear in containers.
            snapshot: The latest.
            custody: Keeps what containers are given.
            on_stream: Called whenever a ListAndWatch stream opens or ends.
        """
        self._handover = handover
        self._snapshot = snapshot
        self._message = list_message(snapshot, handover.shares)
        self._custody = custody
        self._on_stream = on_stream
        self._streams = 0
        self._opened = 0
        self._closed = False
        self._changed = asyncio.Event()

    @property
    def options(self) -> v1beta1.DevicePluginOptions:
        """What the kubelet is to ask of us."""
        return v1beta1.DevicePluginOptions(
            pre_start_required=self._handover.pre_start, get_preferred_allocation_available=True
        )

    @property
    def streams(self) -> int:
        """How many ListAndWatch streams are open."""
        return self._streams

    @property
    def has_streamed(self) -> bool:
        """Whether there was ever a stream, however short."""
        return self._opened > 0

    def publish(self, snapshot: Snapshot) -> None:
        """Send ``snapshot`` on all streams, unless a newer one comes before they get to it."""
        self._snapshot = snapshot
        message = list_message(snapshot, self._handover.shares)
        if message != self._message:  # what changed may be nothing that the kubelet is told
            self._message = message
            self._wake()

    def close(self) -> None:
        """End all streams."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def GetDevicePluginOptions(  # noqa: N802, D102 -- the API's name
        self, request: v1beta1.Empty, context: grpc.aio.ServicerContext[object, object]
    ) -> v1beta1.DevicePluginOptions:
        del request, context
        return self.options

    async def ListAndWatch(  # noqa: N802, D102
        self, request: v1beta1.Empty, context: grpc.aio.ServicerContext[object, object]
    ) -> AsyncIterator[v1beta1.ListAndWatchResponse]:
        del request, context
        self._streams += 1
        self._opened += 1
        self._on_stream()
        try:
            sent = None
            while not self._closed:
                if sent is self._message:
                    await self._changed.wait()
                    continue
                sent = self._message
                yield sent
        finally:
            self._streams -= 1
            self._on_stream()

    async def GetPreferredAllocation(  # noqa: N802, D102
        self,
        request: v1beta1.PreferredAllocationRequest,
        context: grpc.aio.ServicerContext[object, object],
    ) -> v1beta1.PreferredAllocationResponse:
        del context
        return v1beta1.PreferredAllocationResponse(
            container_responses=[
                prefer(container, self._snapshot, self._handover.shares)
                for container in request.container_requests
            ]
        )

    async def Allocate(  # noqa: N802, D102
        self, request: v1beta1.AllocateRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> v1beta1.AllocateResponse:
        ids = [list(container.devices_ids) for container in request.container_requests]
        try:
            response, devices = allocate(
                request,
                self._snapshot,
                self._handover,
                self._custody.host_path,
                self._custody.locate,
            )
        except AllocationError as error:
            await self._refuse("allocation refused", ids, error, context)
        for device in devices:
            self._custody.hand_over(
                device, {port.slot: self._host_path(device, port) for port in device.ports}
            )
        # The answer first, then the log.
        asyncio.get_running_loop().call_soon(self._log_allocation, ids)
        return response

    def _host_path(self, device: Device, port: Port) -> str:
        # CDI follows no links: the spec names the node.
        return port.node if self._handover.cdi else self._custody.host_path(device, port)

    def _log_allocation(self, ids: list[list[str]]) -> None:
        _log.info("allocated", extra=fields(resource=self._handover.resource, devices=ids))

    async def PreStartContainer(  # noqa: N802, D102
        self,
        request: v1beta1.PreStartContainerRequest,
        context: grpc.aio.ServicerContext[object, object],
    ) -> v1beta1.PreStartContainerResponse:
        try:
            devices = self._startable(request.devices_ids)
        except AllocationError as error:
            if self._handover.shares == 1:
                for device_id in request.devices_ids:
                    self._custody.container_ended(device_id)
            await self._refuse("container start refused", request.devices_ids, error, context)
        for device in devices:
            self._custody.hand_over(device, None)
        return v1beta1.PreStartContainerResponse()

    def _startable(self, device_ids: Iterable[str]) -> Iterable[Device]:
        """The devices, if a container that holds them may start.

        Raises:
            AllocationError: one is away, or the container would open another one.
        """
        devices = usable_devices(
            device_ids,
            self._snapshot,
            self._handover.shares,
            self._custody.locate,
            also=(Health.DISPLACED,),  # that is what a restart mends
        ).values()
        for device in devices:
            if problem := self._custody.start_problem(device):
                raise AllocationError(grpc.StatusCode.FAILED_PRECONDITION, problem)
        return devices

    async def _refuse(
        self,
        event: str,
        device_ids: object,
        error: AllocationError,
        context: grpc.aio.ServicerContext[object, object],
    ) -> NoReturn:
        _log.warning(
            event,
            extra=fields(
                resource=self._handover.resource,
                devices=device_ids,
                status=error.status.name,
                reason=error,
            ),
        )
        await context.abort(error.status, str(error))


def list_message(snapshot: Snapshot, shares: int = 1) -> v1beta1.ListAndWatchResponse:
    """The whole list of devices, as the kubelet is to see it."""
    return v1beta1.ListAndWatchResponse(
        devices=[
            v1beta1.Device(ID=share_id, health=health, topology=topology)
            for device in snapshot.devices
            for health, topology in [_state(device)]
            for share_id in share_ids(device.id, shares)
        ]
    )


def _state(device: Device) -> tuple[str, v1beta1.TopologyInfo | None]:
    nodes = {port.numa_node for port in device.ports if port.numa_node is not None}
    topology = v1beta1.TopologyInfo(nodes=[v1beta1.NUMANode(ID=node) for node in sorted(nodes)])
    return HEALTHY if device.health.is_usable else UNHEALTHY, topology if nodes else None
