"""What version 0.1 does where another instance is: it registers, and stands by for nobody."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc

from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.api import deviceplugin_v1beta1_pb2_grpc as rpc
from usbplugin.kubelet import ClassicRegistrar, PluginDirectory
from usbplugin.kubelet.directory import unix_target

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

    _Context = grpc.aio.ServicerContext[object, object]


class OldPlugin(rpc.DevicePluginServicer):
    """Streams one list, allocates nothing, and lets no container start."""

    def __init__(self, device_ids: Iterable[str]) -> None:
        self._list = v1beta1.ListAndWatchResponse(
            devices=[v1beta1.Device(ID=name, health="Healthy") for name in device_ids]
        )
        self.hung_up = asyncio.Event()
        self.allocated: list[str] = []

    async def GetDevicePluginOptions(  # noqa: N802
        self, request: v1beta1.Empty, context: _Context
    ) -> v1beta1.DevicePluginOptions:
        return v1beta1.DevicePluginOptions(pre_start_required=True)

    async def ListAndWatch(  # noqa: N802
        self, request: v1beta1.Empty, context: _Context
    ) -> AsyncIterator[v1beta1.ListAndWatchResponse]:
        try:
            yield self._list
            await asyncio.Event().wait()
        finally:
            self.hung_up.set()

    async def Allocate(  # noqa: N802
        self, request: v1beta1.AllocateRequest, context: _Context
    ) -> v1beta1.AllocateResponse:
        answers = []
        for one in request.container_requests:
            self.allocated += one.devices_ids
            answers.append(v1beta1.ContainerAllocateResponse())
        return v1beta1.AllocateResponse(container_responses=answers)

    async def GetPreferredAllocation(  # noqa: N802
        self, request: v1beta1.PreferredAllocationRequest, context: _Context
    ) -> v1beta1.PreferredAllocationResponse:
        return v1beta1.PreferredAllocationResponse()

    async def PreStartContainer(  # noqa: N802
        self, request: v1beta1.PreStartContainerRequest, context: _Context
    ) -> v1beta1.PreStartContainerResponse:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not by this one")


@asynccontextmanager
async def old_instance(
    directory: Path, resource: str, device_ids: Iterable[str], name: str = ""
) -> AsyncIterator[OldPlugin]:
    """Registered within the block; its socket is named as 0.1 does, or by ``name``."""
    prefix = hashlib.sha256(resource.encode()).hexdigest()[:8]
    socket = directory / (name or f"usbplugin-{prefix}-{secrets.token_hex(4)}.sock")
    plugin = OldPlugin(device_ids)
    server = grpc.aio.server()
    rpc.add_DevicePluginServicer_to_server(plugin, server)
    server.add_insecure_port(unix_target(socket))
    await server.start()
    try:
        await ClassicRegistrar(PluginDirectory(directory)).register(
            resource, socket, v1beta1.DevicePluginOptions()
        )
        yield plugin
    finally:
        await server.stop(None)
        socket.unlink(missing_ok=True)
