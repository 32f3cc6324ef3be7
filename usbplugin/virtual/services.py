"""Two further doors of the embedded kubelet: PodResources, and the plugin watcher.

They tell and ask what the kubelet's other parts know; they keep no state but which sockets the
watcher has found.
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

_log = logging.getLogger(__name__)

_ASK_TIMEOUT = 5.0

_Found: TypeAlias = "tuple[Path, int, int]"
"""A socket's path, inode and ctime: a new one may have an old one's path."""


class PodResourcesService(podresources_rpc.PodResourcesListerServicer):
    """Serves ``v1.PodResourcesLister``: containers that were admitted, pods that hold nothing."""

    def __init__(
        self, holders: Callable[[], Iterable[Holder]], others: Callable[[], Iterable[str]]
    ) -> None:
        self._holders = holders
        self._others = others

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
        return answer


class PluginWatcher:
    """Registers the device plugins whose sockets appear in ``directory``, each socket once.

    When a socket goes, it hangs up on the plugin that has its resource. As with a kubelet's, that
    may be another one by then, which has registered since.
    """

    def __init__(
        self,
        directory: Path,
        register: Callable[[v1beta1.RegisterRequest], Awaitable[str]],
        hang_up: Callable[[str], Awaitable[object]],
    ) -> None:
        self._directory = directory
        self._register = register
        self._hang_up = hang_up

    async def run(self) -> None:
        """Watch until cancelled. A kubelet that starts registers all that is there."""
        meetings: dict[_Found, asyncio.Task[str]] = {}
        try:
            async for _ in follow(self._directory, asyncio.Event()):
                found = self._sockets()
                gone = meetings.keys() - found
                # Before a successor is met: what fails late would strike that off the list.
                over = [meetings.pop(entry) for entry in sorted(gone)]
                await _give_up(over)
                for meeting in over:
                    if _succeeded(meeting) and (resource := meeting.result()):
                        await self._hang_up(resource)
                # Side by side: a plugin that is dying answers late or never.
                for new in sorted(found - meetings.keys()):
                    meetings[new] = asyncio.create_task(self._meet(new[0]))
                    meetings[new].add_done_callback(_tell_of_failure)
        finally:
            await _give_up(meetings.values())

    def _sockets(self) -> set[_Found]:
        found = set()
        with suppress(FileNotFoundError):  # the directory has gone meanwhile
            for path in self._directory.glob("*.sock"):
                with suppress(FileNotFoundError):  # the socket has
                    status = path.lstat()
                    if stat.S_ISSOCK(status.st_mode):
                        found.add((path, status.st_ino, status.st_ctime_ns))
        return found

    async def _meet(self, path: Path) -> str:
        """Ask a plugin who it is, register it, tell it the outcome; its resource if it has one."""
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
                return ""  # it has gone, or is no plugin; the kubelet logs that, and goes on
            return "" if refusal else request.resource_name


def _succeeded(meeting: asyncio.Task[str]) -> bool:
    return meeting.done() and not meeting.cancelled() and meeting.exception() is None


async def _give_up(meetings: Iterable[asyncio.Task[str]]) -> None:
    meetings = list(meetings)
    for meeting in meetings:
        meeting.cancel()
    await asyncio.gather(*meetings, return_exceptions=True)


def _tell_of_failure(meeting: asyncio.Task[str]) -> None:
    """Say what ended a meeting, if it was a defect: nobody else would."""
    if not meeting.cancelled() and (error := meeting.exception()):
        _log.error(
            "meeting a plugin failed", exc_info=error, extra=fields(reason=type(error).__name__)
        )
