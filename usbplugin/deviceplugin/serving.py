"""A gRPC server on a socket of the kubelet's directory, for as long as a plugin is to be served."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING, NamedTuple

import grpc

from usbplugin.api import deviceplugin_v1beta1_pb2_grpc as rpc
from usbplugin.errors import KubeletError
from usbplugin.kubelet.directory import unix_target

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from usbplugin.deviceplugin.service import DevicePlugin
    from usbplugin.kubelet.directory import Incarnation
    from usbplugin.kubelet.registration import Registrar

_STOP_GRACE = 1.0


class Generation(NamedTuple):
    """One server on one socket, for one life of the kubelet."""

    path: Path
    plugin: DevicePlugin
    kubelet: Incarnation

    def obstacle(self, registrar: Registrar) -> str:
        """Why the kubelet cannot know us by that socket any more; empty if it can."""
        if registrar.kubelet() != self.kubelet:
            return "the kubelet has gone or was restarted"
        return "" if self.path.exists() else "our socket was deleted"


@asynccontextmanager
async def serving(plugin: DevicePlugin, path: Path, registrar: Registrar) -> AsyncIterator[None]:
    """Serve ``plugin`` on ``path``; on the way out its streams are ended first, then it stops.

    Raises:
        KubeletError: there can be no server on that path.
    """
    server = grpc.aio.server()
    rpc.add_DevicePluginServicer_to_server(plugin, server)
    registrar.add_services(server, plugin.resource)
    try:
        server.add_insecure_port(unix_target(path))
    except RuntimeError as error:
        raise KubeletError(f"cannot make {path}: {_reason(path) or error}") from error
    try:
        await server.start()
        yield
    finally:
        # First, so that siblings know why a stream ends.
        registrar.directory.remove_socket(path)
        plugin.close()
        await server.stop(_STOP_GRACE)


def _reason(path: Path) -> str:
    """Why there can be no socket, which gRPC does not tell; empty if there can be one."""
    try:
        with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
            probe.bind(str(path))
    except OSError as error:
        return error.strerror or str(error)
    path.unlink(missing_ok=True)
    return ""
