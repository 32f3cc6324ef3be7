"""Dials a socket, ours or the kubelet's, to see whether anyone answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.api import deviceplugin_v1beta1_pb2_grpc as rpc
from usbplugin.kubelet.directory import CHANNEL_OPTIONS, unix_target

if TYPE_CHECKING:
    from pathlib import Path

_TIMEOUT = 1.0
_NO_METHOD = "/v1beta1.Registration/AreYouThere"
"""Any gRPC server answers UNIMPLEMENTED to this, which proves it is there and changes nothing."""


async def silence_of(socket: Path) -> str:
    """Why the plugin on ``socket`` does not answer; empty if it does."""
    try:
        async with grpc.aio.insecure_channel(
            unix_target(socket), options=CHANNEL_OPTIONS
        ) as channel:
            await rpc.DevicePluginStub(channel).GetDevicePluginOptions(
                v1beta1.Empty(), timeout=_TIMEOUT
            )
    except grpc.aio.AioRpcError as error:
        return f"{socket.name} does not answer: {error.code().name}: {error.details()}"
    return ""


async def kubelet_silence(socket: Path) -> str:
    """Why the kubelet on ``socket`` does not answer; empty if it does. Registers nothing."""
    try:
        async with grpc.aio.insecure_channel(
            unix_target(socket), options=CHANNEL_OPTIONS
        ) as channel:
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_NO_METHOD)
            await call(b"", timeout=_TIMEOUT)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
            return f"{socket} does not answer: {error.code().name}: {error.details()}"
    return ""
