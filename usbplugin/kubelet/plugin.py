"""One resource's ``v1beta1.DevicePlugin`` service: streams snapshots, answers the kubelet.

It reads the latest snapshot and never changes one; a stream that is slow skips to the newest.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, NoReturn

from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.api import deviceplugin_v1beta1_pb2_grpc as rpc
from usbplugin.errors import AllocationError
from usbplugin.kubelet.allocation import Handover, allocate, prefer, usable_devices
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import grpc

    from usbplugin.inventory import Device, Snapshot
    from usbplugin.kubelet.allocation import HostPath, Locate

_log = logging.getLogger(__name__)

HEALTHY = "Healthy"
UNHEALTHY = "Unhealthy"

OPTIONS = v1beta1.DevicePluginOptions(
    pre_start_required=True, get_preferred_allocation_available=True
)


class DevicePlugin(rpc.DevicePluginServicer):
    """The service of one generation: it begins with a socket, and is closed with it."""

    def __init__(
        self,
        handover: Handover,
        snapshot: Snapshot,
        host_path: HostPath,
        locate: Locate,
        on_stream: Callable[[], None],
    ) -> None:
        """Serve ``snapshot`` until the next is published.

        Args:
            handover: How the resource's devices appear in containers.
            snapshot: The latest.
            host_path: Where a port's node is found on the host.
            locate: Which resource knows a device ID.
            on_stream: Called whenever a ListAndWatch stream opens or ends.
        """
        self._handover = handover
        self._snapshot = snapshot
        self._message = list_message(snapshot)
        self._host_path = host_path
        self._locate = locate
        self._on_stream = on_stream
        self._streams = 0
        self._opened = 0
        self._closed = False
        self._changed = asyncio.Event()

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
        message = list_message(snapshot)
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
        return OPTIONS

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
                prefer(container, self._snapshot) for container in request.container_requests
            ]
        )

    async def Allocate(  # noqa: N802, D102
        self, request: v1beta1.AllocateRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> v1beta1.AllocateResponse:
        ids = [list(container.devices_ids) for container in request.container_requests]
        try:
            response = allocate(
                request, self._snapshot, self._handover, self._host_path, self._locate
            )
        except AllocationError as error:
            await self._refuse("allocation refused", ids, error, context)
        # The answer first, then the log.
        asyncio.get_running_loop().call_soon(self._log_allocation, ids)
        return response

    def _log_allocation(self, ids: list[list[str]]) -> None:
        _log.info("allocated", extra=fields(resource=self._handover.resource, devices=ids))

    async def PreStartContainer(  # noqa: N802, D102
        self,
        request: v1beta1.PreStartContainerRequest,
        context: grpc.aio.ServicerContext[object, object],
    ) -> v1beta1.PreStartContainerResponse:
        try:
            usable_devices(request.devices_ids, self._snapshot, self._locate)
        except AllocationError as error:
            await self._refuse("container start refused", request.devices_ids, error, context)
        return v1beta1.PreStartContainerResponse()

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


def list_message(snapshot: Snapshot) -> v1beta1.ListAndWatchResponse:
    """The whole list of devices, as the kubelet is to see it."""
    return v1beta1.ListAndWatchResponse(devices=[_device(device) for device in snapshot.devices])


def _device(device: Device) -> v1beta1.Device:
    nodes = {port.numa_node for port in device.ports if port.numa_node is not None}
    return v1beta1.Device(
        ID=device.id,
        health=HEALTHY if device.health.is_usable else UNHEALTHY,
        topology=v1beta1.TopologyInfo(nodes=[v1beta1.NUMANode(ID=node) for node in sorted(nodes)])
        if nodes
        else None,
    )
