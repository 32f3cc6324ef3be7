"""Two more services of the embedded kubelet: PodResources and the plugin watcher.

Both rely on the kubelet's other parts; their only state is which sockets the watcher has found, and
what it has registered by them.
"""

from __future__ import annotations

import asyncio
import logging
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import quote

import grpc

from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.api import pluginregistration_v1_pb2 as registration
from usbplugin.api import pluginregistration_v1_pb2_grpc as registration_rpc
from usbplugin.api import podresources_v1_pb2 as v1
from usbplugin.api import podresources_v1_pb2_grpc as podresources_rpc
from usbplugin.foundation.watch import follow
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from pathlib import Path

    from usbplugin.virtual.containers import Holder
    from usbplugin.virtual.dra import ClaimContainer, DraManager
    from usbplugin.virtual.plugin_client import Resource

_log = logging.getLogger(__name__)

_ASK_TIMEOUT = 5.0

_Found: TypeAlias = "tuple[Path, int, int]"
"""A socket's path, inode and ctime, since a new socket may reuse an old path."""


class PodResourcesService(podresources_rpc.PodResourcesListerServicer):
    """Serves ``v1.PodResourcesLister``: the holders, pods without devices, and what is healthy."""

    def __init__(
        self,
        holders: Callable[[], Iterable[Holder]],
        others: Callable[[], Iterable[str]],
        resources: Callable[[], Iterable[Resource]],
        claim_containers: Callable[[], Iterable[ClaimContainer]],
    ) -> None:
        self._holders = holders
        self._others = others
        self._resources = resources
        self._claim_containers = claim_containers

    async def GetAllocatableResources(  # noqa: D102, N802
        self,
        request: v1.AllocatableResourcesRequest,
        context: grpc.aio.ServicerContext[
            v1.AllocatableResourcesRequest, v1.AllocatableResourcesResponse
        ],
    ) -> v1.AllocatableResourcesResponse:
        del request, context
        answer = v1.AllocatableResourcesResponse()
        for resource in self._resources():
            for device_id in sorted(resource.healthy):  # an entry each, as in the kubelet's
                answer.devices.add(resource_name=resource.name, device_ids=[device_id])
        return answer

    async def List(  # noqa: D102, N802 -- the method's name in the API
        self,
        request: v1.ListPodResourcesRequest,
        context: grpc.aio.ServicerContext[v1.ListPodResourcesRequest, v1.ListPodResourcesResponse],
    ) -> v1.ListPodResourcesResponse:
        del request, context
        answer = v1.ListPodResourcesResponse()
        for other in self._others():
            namespace, _, name = other.partition("/")
            answer.pod_resources.add(name=name, namespace=namespace)
        for holder in self._holders():
            pod = answer.pod_resources.add(name=holder.pod, namespace=holder.namespace)
            container = pod.containers.add(name=holder.container)
            container.devices.add(resource_name=holder.resource, device_ids=holder.device_ids)
        for one in self._claim_containers():
            pod = answer.pod_resources.add(name=one.pod, namespace=one.claim.namespace)
            given = pod.containers.add(name=one.name).dynamic_resources.add(
                claim_name=one.claim.name, claim_namespace=one.claim.namespace
            )
            for device in one.claim.devices:
                given.claim_resources.add(
                    driver_name=one.claim.driver, pool_name=device.pool, device_name=device.device
                )
        return answer


class PluginWatcher:
    """Registers the device plugins whose sockets appear in ``directory``, each socket once.

    When a socket disappears, it hangs up on its resource's plugin. As with a real kubelet, that may
    by then be a different plugin, which has registered since. Nor is a plugin registered again
    when another one has taken its resource over and gone: its socket is not new.
    """

    def __init__(
        self,
        directory: Path,
        register: Callable[[v1beta1.RegisterRequest], Awaitable[str]],
        hang_up: Callable[[str], Awaitable[object]],
        dra: DraManager | None = None,
    ) -> None:
        self._directory = directory
        self._register = register
        self._hang_up = hang_up
        self._dra = dra
        self._registered: dict[_Found, str] = {}

    async def run(self) -> None:
        """Watch until cancelled; first, register everything already there."""
        meetings: dict[_Found, asyncio.Task[None]] = {}
        try:
            async for _ in follow(self._directory, asyncio.Event()):
                found = self._sockets()
                gone = sorted(meetings.keys() - found)
                # Before meeting a successor: a late failure would take that off the list.
                await _give_up([meetings.pop(entry) for entry in gone])
                for entry in gone:
                    if self._dra is not None:
                        await self._dra.deregister(entry[0])
                    if resource := self._registered.pop(entry, ""):
                        await self._hang_up(resource)
                # Concurrently: a dying plugin answers late or never.
                for new in sorted(found - meetings.keys()):
                    meetings[new] = asyncio.create_task(self._meet(new))
                    meetings[new].add_done_callback(_tell_of_failure)
        finally:
            await _give_up(meetings.values())

    def _sockets(self) -> set[_Found]:
        found = set()
        with suppress(FileNotFoundError):  # the directory has gone
            for path in self._directory.glob("*.sock"):
                with suppress(FileNotFoundError):  # the socket has gone
                    status = path.lstat()
                    if stat.S_ISSOCK(status.st_mode):
                        found.add((path, status.st_ino, status.st_ctime_ns))
        return found

    async def _meet(self, found: _Found) -> None:
        """Ask a plugin who it is, register it and report back."""
        path = found[0]
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
                elif info.type == "DRAPlugin" and self._dra is not None:
                    refusal = self._dra.register(info, path)
                else:
                    refusal = f"plugin type {info.type} has no handler"
                if (
                    not refusal and info.type == "DevicePlugin"
                ):  # it is registered, whether or not it hears of that
                    self._registered[found] = request.resource_name
                await stub.NotifyRegistrationStatus(
                    registration.RegistrationStatus(plugin_registered=not refusal, error=refusal),
                    timeout=_ASK_TIMEOUT,
                )
            except grpc.aio.AioRpcError:
                pass  # it has gone or is not a plugin; a kubelet logs that and carries on


async def _give_up(meetings: Iterable[asyncio.Task[None]]) -> None:
    meetings = list(meetings)
    for meeting in meetings:
        meeting.cancel()
    await asyncio.gather(*meetings, return_exceptions=True)


def _tell_of_failure(meeting: asyncio.Task[None]) -> None:
    """Log what ended a meeting if it was a bug, since nobody else would."""
    if not meeting.cancelled() and (error := meeting.exception()):
        _log.error(
            "registering a plugin failed", exc_info=error, extra=fields(reason=type(error).__name__)
        )
