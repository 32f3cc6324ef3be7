"""The floor we compare ourselves with: the least that any device plugin on grpc.aio must do."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from benchmarks.commands import obey
from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.api import deviceplugin_v1beta1_pb2_grpc as rpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

RESOURCE = "floor/serial"
SOCKET = "floor.sock"

Context = grpc.aio.ServicerContext[object, object]


def constant_answer() -> v1beta1.AllocateResponse:
    """An answer like ours in shape and size."""
    response = v1beta1.AllocateResponse()
    container = response.container_responses.add()
    container.devices.add(
        container_path="/dev/ttyUSB0",
        host_path="/run/usbplugin/usb-0403:6001-SN-0000-if00/if00",
        permissions="rw",
    )
    container.envs["USBPLUGIN_SERIAL_DEVICES"] = "/dev/ttyUSB0"
    container.envs["USBPLUGIN_SERIAL_IDS"] = "usb-0403:6001-SN-0000-if00"
    container.envs["USBPLUGIN_SERIAL_INFO"] = "x" * 190
    return response


def list_of(count: int, unhealthy: int) -> v1beta1.ListAndWatchResponse:
    """A list of ``count`` devices, all healthy but the one numbered ``unhealthy``."""
    return v1beta1.ListAndWatchResponse(
        devices=[
            v1beta1.Device(
                ID=f"usb-0403:6001-SN-{number:04}-if00",
                health="Unhealthy" if number == unhealthy else "Healthy",
            )
            for number in range(count)
        ]
    )


class Floor(rpc.DevicePluginServicer):
    """Returns constants and streams whatever it is given."""

    def __init__(self, count: int = 0) -> None:
        self._message = list_of(count, -1)
        self._answer = constant_answer()
        self._changed = asyncio.Event()

    def send(self, message: v1beta1.ListAndWatchResponse) -> None:
        self._message = message
        self._changed.set()

    async def GetDevicePluginOptions(  # noqa: N802
        self, request: v1beta1.Empty, context: Context
    ) -> v1beta1.DevicePluginOptions:
        return v1beta1.DevicePluginOptions(pre_start_required=True)

    async def ListAndWatch(  # noqa: N802
        self, request: v1beta1.Empty, context: Context
    ) -> AsyncIterator[v1beta1.ListAndWatchResponse]:
        while True:
            self._changed.clear()
            yield self._message
            await self._changed.wait()

    async def GetPreferredAllocation(  # noqa: N802
        self, request: v1beta1.PreferredAllocationRequest, context: Context
    ) -> v1beta1.PreferredAllocationResponse:
        return v1beta1.PreferredAllocationResponse()

    async def Allocate(  # noqa: N802
        self, request: v1beta1.AllocateRequest, context: Context
    ) -> v1beta1.AllocateResponse:
        return self._answer

    async def PreStartContainer(  # noqa: N802
        self, request: v1beta1.PreStartContainerRequest, context: Context
    ) -> v1beta1.PreStartContainerResponse:
        return v1beta1.PreStartContainerResponse()


async def serve(floor: Floor, directory: Path) -> grpc.aio.Server:
    """Serve it, and register it with the kubelet of ``directory``."""
    server = grpc.aio.server()
    rpc.add_DevicePluginServicer_to_server(floor, server)
    server.add_insecure_port(f"unix:{directory / SOCKET}")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{directory / 'kubelet.sock'}") as channel:
        await rpc.RegistrationStub(channel).Register(
            v1beta1.RegisterRequest(version="v1beta1", endpoint=SOCKET, resource_name=RESOURCE)
        )
    return server


async def _run(directory: Path, count: int) -> None:
    floor = Floor(count)
    loop = asyncio.get_running_loop()

    def send(message: v1beta1.ListAndWatchResponse) -> float:
        now = time.monotonic()
        loop.call_soon_threadsafe(floor.send, message)
        return now

    # The message is ready before the clock starts: all that is left is to send it.
    threading.Thread(
        target=lambda: obey(
            {
                "pull": lambda number: send(list_of(count, number)),
                "plug": lambda number: send(list_of(count, -1)),
            }
        ),
        daemon=True,
    ).start()
    server = await serve(floor, directory)
    await server.wait_for_termination()


def main() -> None:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    asyncio.run(_run(Path(sys.argv[1]) / "kubelet", int(sys.argv[2])))


if __name__ == "__main__":
    main()
