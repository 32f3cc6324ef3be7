"""The two kinds of registration: we call Register, or the kubelet finds our socket."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

import grpc

from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.api import deviceplugin_v1beta1_pb2_grpc as v1beta1_rpc
from usbplugin.api import pluginregistration_v1_pb2 as registration
from usbplugin.api import pluginregistration_v1_pb2_grpc as registration_rpc
from usbplugin.errors import KubeletError
from usbplugin.kubelet.directory import CHANNEL_OPTIONS, Incarnation, PluginDirectory, unix_target

if TYPE_CHECKING:
    from pathlib import Path

API_VERSION = "v1beta1"

REGISTER_TIMEOUT = 15.0
"""The kubelet dials back for up to 10 s before it answers."""


class Registrar(Protocol):
    """How one resource's plugin registers."""

    directory: PluginDirectory
    """Where the plugin's socket goes."""
    longest_delay: float
    """The longest pause between two attempts, in seconds."""
    can_repeat: bool
    """Whether the same socket can be registered again."""

    def kubelet(self) -> Incarnation | None:
        """The kubelet to register with; None if there is none."""

    def add_services(self, server: grpc.aio.Server, resource: str) -> None:
        """Add whatever must be served besides DevicePlugin, for one generation."""

    async def register(
        self, resource: str, socket: Path, options: v1beta1.DevicePluginOptions
    ) -> None:
        """Return once the kubelet has accepted the plugin.

        Raises:
            KubeletError: it refused or does not answer.
        """


class ClassicRegistrar:
    """We call ``Register`` on kubelet.sock, and again after each restart of the kubelet."""

    longest_delay = 5.0
    can_repeat = True

    def __init__(self, directory: PluginDirectory) -> None:
        """Register with the kubelet of ``directory``."""
        self.directory = directory

    def kubelet(self) -> Incarnation | None:  # noqa: D102 -- Registrar.kubelet
        return self.directory.kubelet()

    def add_services(self, server: grpc.aio.Server, resource: str) -> None:  # noqa: D102
        del server, resource

    async def register(  # noqa: D102
        self, resource: str, socket: Path, options: v1beta1.DevicePluginOptions
    ) -> None:
        request = v1beta1.RegisterRequest(
            version=API_VERSION, endpoint=socket.name, resource_name=resource, options=options
        )
        target = unix_target(self.directory.kubelet_socket)
        try:
            async with grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS) as channel:
                await v1beta1_rpc.RegistrationStub(channel).Register(
                    request, timeout=REGISTER_TIMEOUT
                )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                raise KubeletError(
                    f"the kubelet does not answer on {self.directory.kubelet_socket}"
                ) from error
            raise KubeletError(
                f"the kubelet refused {resource}: {error.code().name}: {error.details()}"
            ) from error


class WatcherRegistrar:
    """The kubelet's plugin watcher finds our socket and registers us by itself."""

    can_repeat = False  # a socket is found once
    longest_delay = 1.0  # waiting spares the kubelet nothing, and it cannot find us meanwhile

    def __init__(self, registry: PluginDirectory) -> None:
        """Be found in ``registry``."""
        self.directory = registry
        self._verdict: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def kubelet(self) -> Incarnation | None:  # noqa: D102 -- Registrar.kubelet
        return Incarnation(0, 0)  # it finds us whenever it is there

    def add_services(self, server: grpc.aio.Server, resource: str) -> None:  # noqa: D102
        self._verdict = asyncio.get_running_loop().create_future()
        registration_rpc.add_RegistrationServicer_to_server(
            _WatcherServicer(resource, self._verdict), server
        )

    async def register(  # noqa: D102
        self, resource: str, socket: Path, options: v1beta1.DevicePluginOptions
    ) -> None:
        del socket, options
        if refusal := await self._verdict:
            raise KubeletError(f"the kubelet refused {resource}: {refusal}")


class _WatcherServicer(registration_rpc.RegistrationServicer):
    """Tells the plugin watcher who we are, and receives its verdict."""

    def __init__(self, resource: str, verdict: asyncio.Future[str]) -> None:
        self._resource = resource
        self._verdict = verdict

    async def GetInfo(  # noqa: N802 -- the API's name
        self,
        request: registration.InfoRequest,
        context: grpc.aio.ServicerContext[object, object],
    ) -> registration.PluginInfo:
        del request, context
        return registration.PluginInfo(
            type="DevicePlugin",
            name=self._resource,
            # No endpoint: the kubelet may see this socket under another path than ours, and uses
            # the one where it found us.
            supported_versions=[API_VERSION],
        )

    async def NotifyRegistrationStatus(  # noqa: N802
        self,
        request: registration.RegistrationStatus,
        context: grpc.aio.ServicerContext[object, object],
    ) -> registration.RegistrationStatusResponse:
        del context
        if not self._verdict.done():  # a restarted kubelet sends it again
            self._verdict.set_result(
                "" if request.plugin_registered else request.error or "no reason given"
            )
        return registration.RegistrationStatusResponse()
