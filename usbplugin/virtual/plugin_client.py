"""Device plugins as the embedded kubelet sees them: their resources, and a connection to one.

This module owns the client side of the device plugin API, turning a plugin's answers into plain
values or a PluginCallError. It makes no decisions and remembers nothing between calls.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

import grpc

from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.api import deviceplugin_v1beta1_pb2_grpc as rpc
from usbplugin.errors import UsbPluginError
from usbplugin.kubelet.directory import CHANNEL_OPTIONS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

MAX_DEVICE_ID = 63
"""Characters, according to the API's comment on Device.ID; no kubelet checks it."""

_HEALTHY = "Healthy"

# sizeof(sun_path) on Linux, minus the terminating NUL.
_MAX_SOCKET_PATH = 107

_Answer = TypeVar("_Answer")


class EmbeddedKubeletError(UsbPluginError):
    """The embedded kubelet cannot do what was asked: it is not running, for example."""


class PluginCallError(EmbeddedKubeletError):
    """A call to a plugin failed; the text is what a kubelet would log."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        name = "".join(word.capitalize() for word in code.name.split("_"))
        # grpc-go spells this one code differently.
        name = "Canceled" if code is grpc.StatusCode.CANCELLED else name
        super().__init__(f"rpc error: code = {name} desc = {details}")
        self.code = code
        self.details = details


@dataclass(frozen=True, slots=True)
class Device:
    """A device as the kubelet sees it."""

    id: str
    healthy: bool
    numa: tuple[int, ...] = ()
    """IDs of its NUMA nodes; empty if the plugin names none."""


@dataclass(frozen=True, slots=True)
class PluginOptions:
    """What GetDevicePluginOptions answered."""

    pre_start_required: bool = False
    preferred_allocation: bool = False


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource at one moment."""

    name: str
    connected: bool = False
    """Whether a plugin is registered and the kubelet has not disconnected it."""
    options: PluginOptions | None = None
    """None until a plugin registers, and again after each start of the kubelet."""
    devices: Mapping[str, Device] = field(default_factory=lambda: MappingProxyType({}))
    """By ID, as in the last stream message; all unhealthy once disconnected.

    An older instance of the plugin may still have its stream: devices in its next message count
    again, but no pod gets any.
    """

    @property
    def healthy(self) -> frozenset[str]:
        """IDs of the healthy devices, held ones included."""
        return frozenset(device.id for device in self.devices.values() if device.healthy)

    @property
    def capacity(self) -> int:
        """Number of devices, healthy and unhealthy."""
        return len(self.devices)

    @property
    def allocatable(self) -> int:
        """Number of healthy devices, held ones included."""
        return len(self.healthy)


def check_socket_path(path: str) -> None:
    """Raise EmbeddedKubeletError if no Unix socket can have this path."""
    size = len(os.fsencode(path))
    if size > _MAX_SOCKET_PATH:
        raise EmbeddedKubeletError(
            f"the socket path {path} has {size} bytes, more than the limit of {_MAX_SOCKET_PATH}; "
            "choose a directory with a shorter path"
        )


def read_devices(message: v1beta1.ListAndWatchResponse) -> tuple[dict[str, Device], list[str]]:
    """Read a stream message as a kubelet does, and report what in it breaks the API's rules.

    Of two devices with the same ID, the last counts. Any health but ``Healthy`` is unhealthy.
    """
    devices = {}
    violations = []
    for device in message.devices:
        if not 0 < len(device.ID) <= MAX_DEVICE_ID:
            violations.append(
                f"device {device.ID[:MAX_DEVICE_ID]!r}: the ID has {len(device.ID)} characters "
                f"instead of 1 to {MAX_DEVICE_ID}"
            )
        if device.ID in devices:
            violations.append(f"device {device.ID!r} is listed twice in one message")
        if device.health not in (_HEALTHY, "Unhealthy"):
            violations.append(
                f"device {device.ID!r}: health is {device.health!r}, "
                "instead of 'Healthy' or 'Unhealthy'"
            )
        numa = tuple(node.ID for node in device.topology.nodes)
        devices[device.ID] = Device(device.ID, device.health == _HEALTHY, numa)
    return devices, violations


class PluginClient:
    """The kubelet's connection to one registered instance of a plugin."""

    def __init__(self, resource: str, endpoint: str, directory: Path) -> None:
        self.resource = resource
        self.endpoint = endpoint
        self.dialled = False
        """Whether the plugin has accepted the connection."""
        self._closed = False
        self._socket = os.path.normpath(os.path.join(directory, endpoint))  # noqa: PTH118
        self._channel = grpc.aio.insecure_channel(f"unix:{quote(self._socket)}", CHANNEL_OPTIONS)
        self._stub = rpc.DevicePluginStub(self._channel)

    async def dial(self, within: float) -> None:
        """Wait up to ``within`` seconds for the plugin to accept a connection.

        Raises:
            EmbeddedKubeletError: it did not.
        """
        try:
            check_socket_path(self._socket)
            async with asyncio.timeout(within):
                await self._channel.channel_ready()
        except EmbeddedKubeletError as error:
            raise EmbeddedKubeletError(f"failed to dial device plugin: {error}") from None
        except TimeoutError:
            raise EmbeddedKubeletError(
                "failed to dial device plugin: context deadline exceeded"
            ) from None
        self.dialled = True

    async def options(self, within: float) -> PluginOptions:
        """Call GetDevicePluginOptions, with a limit of ``within`` seconds.

        Raises:
            EmbeddedKubeletError: the plugin answered with an error, or not in time.
        """
        try:
            answer = await self._finish(
                self._stub.GetDevicePluginOptions(v1beta1.Empty(), timeout=within)
            )
        except PluginCallError as error:
            raise EmbeddedKubeletError(f"failed to get device plugin options: {error}") from error
        return PluginOptions(answer.pre_start_required, answer.get_preferred_allocation_available)

    async def follow(self, receive: Callable[[v1beta1.ListAndWatchResponse], None]) -> str:
        """Pass every ListAndWatch message to ``receive``; return why the stream ended."""
        try:
            await self._finish(self._drain(receive))
        except PluginCallError as error:
            return str(error)
        except grpc.aio.UsageError:  # closed before the stream was opened
            return "grpc: the client connection is closing"
        return "EOF"

    async def _drain(self, receive: Callable[[v1beta1.ListAndWatchResponse], None]) -> None:
        async for message in self._stub.ListAndWatch(v1beta1.Empty()):
            receive(message)

    async def prefer(self, available: Sequence[str], size: int) -> list[str]:
        """Ask which of the available devices the plugin prefers. Raises PluginCallError."""
        request = v1beta1.ContainerPreferredAllocationRequest(
            available_deviceIDs=available, allocation_size=size
        )
        answer = await self._finish(
            self._stub.GetPreferredAllocation(
                v1beta1.PreferredAllocationRequest(container_requests=[request])
            )
        )
        responses = answer.container_responses
        return list(responses[0].deviceIDs) if responses else []

    async def allocate(self, device_ids: Sequence[str]) -> v1beta1.AllocateResponse:
        """Call Allocate for one container. Raises PluginCallError."""
        request = v1beta1.ContainerAllocateRequest(devices_ids=device_ids)
        return await self._finish(
            self._stub.Allocate(v1beta1.AllocateRequest(container_requests=[request]))
        )

    async def pre_start(self, device_ids: Sequence[str], within: float) -> None:
        """Call PreStartContainer, with a limit of ``within`` seconds. Raises PluginCallError."""
        request = v1beta1.PreStartContainerRequest(devices_ids=device_ids)
        await self._finish(self._stub.PreStartContainer(request, timeout=within))

    async def close(self) -> None:
        """Cancel all calls, including the stream, and disconnect."""
        self._closed = True
        await self._channel.close()

    async def _finish(self, call: Awaitable[_Answer]) -> _Answer:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise PluginCallError(error.code(), error.details() or "") from error
        except asyncio.CancelledError:
            # grpc.aio also raises this for a call cancelled by closing its channel. Re-raise it
            # only if the waiting task itself is being cancelled.
            task = asyncio.current_task()
            if not self._closed or (task is not None and task.cancelling()):
                raise
            raise PluginCallError(
                grpc.StatusCode.CANCELLED, "grpc: the client connection is closing"
            ) from None
