"""Two further doors of the embedded kubelet: PodResources, and the plugin watcher.

They tell and ask what the kubelet's other parts know; they keep no state but which sockets the
watcher has found.
"""

from __future__ import annotations

import asyncio
import stat
from typing import TYPE_CHECKING
from urllib.parse import quote

import grpc

from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.api import pluginregistration_v1_pb2 as registration
from usbplugin.api import pluginregistration_v1_pb2_grpc as registration_rpc
from usbplugin.api import podresources_v1_pb2 as v1
from usbplugin.api import podresources_v1_pb2_grpc as podresources_rpc
from usbplugin.watch import follow

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from pathlib import Path

    from usbplugin.virtual.containers import Holder

_ASK_TIMEOUT = 5.0


class PodResourcesService(podresources_rpc.PodResourcesListerServicer):
    """Serves ``v1.PodResourcesLister`` from the containers that the kubelet has admitted."""

    def __init__(self, holders: Callable[[], Iterable[Holder]]) -> None:
        self._holders = holders

    async def List(  # noqa: D102, N802 -- the method's name in the API
        self,
        request: v1.ListPodResourcesRequest,
        context: grpc.aio.ServicerContext[v1.ListPodResourcesRequest, v1.ListPodResourcesResponse],
    ) -> v1.ListPodResourcesResponse:
        del request, context
        answer = v1.ListPodResourcesResponse()
        for holder in self._holders():
            pod = answer.pod_resources.add(name=holder.pod, namespace=holder.namespace)
            container = pod.containers.add(name=holder.container)
            container.devices.add(resource_name=holder.resource, device_ids=holder.device_ids)
        return answer


class PluginWatcher:
    """Registers the device plugins whose sockets appear in ``directory``, each socket once."""

    def __init__(
        self, directory: Path, register: Callable[[v1beta1.RegisterRequest], Awaitable[str]]
    ) -> None:
        self._directory = directory
        self._register = register

    async def run(self) -> None:
        """Watch until cancelled. A kubelet that starts registers all that is there."""
        seen: set[tuple[Path, int, int]] = set()
        async for _ in follow(self._directory, asyncio.Event()):
            found = set()
            for path in self._directory.glob("*.sock") if self._directory.is_dir() else ():
                status = path.lstat()
                if stat.S_ISSOCK(status.st_mode):
                    found.add((path, status.st_ino, status.st_ctime_ns))
            for entry in sorted(found - seen):
                await self._meet(entry[0])
            seen = found

    async def _meet(self, path: Path) -> None:
        """Ask a plugin who it is, register it, and tell it the outcome."""
        async with grpc.aio.insecure_channel(f"unix:{quote(str(path))}") as channel:
            stub = registration_rpc.RegistrationStub(channel)
            try:
                info = await stub.GetInfo(
                    registration.InfoRequest(), timeout=_ASK_TIMEOUT, wait_for_ready=True
                )
                request = v1beta1.RegisterRequest(
                    version=info.supported_versions[0] if info.supported_versions else "",
                    endpoint=info.endpoint or str(path),
                    resource_name=info.name,
                )
                if info.type == "DevicePlugin":
                    refusal = await self._register(request)
                else:
                    refusal = f"plugin type {info.type} has no handler"
                await stub.NotifyRegistrationStatus(
                    registration.RegistrationStatus(plugin_registered=not refusal, error=refusal),
                    timeout=_ASK_TIMEOUT,
                )
            except grpc.aio.AioRpcError:
                return  # it has gone, or is no plugin; the kubelet logs that, and goes on
