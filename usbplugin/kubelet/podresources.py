"""Asks the kubelet who holds which device (PodResources API, v1). Reads, and decides nothing."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import grpc
from google.protobuf.message import DecodeError

from usbplugin.api import podresources_v1_pb2 as v1
from usbplugin.errors import KubeletError
from usbplugin.inventory import HeldDevice
from usbplugin.kubelet.directory import CHANNEL_OPTIONS, unix_target

if TYPE_CHECKING:
    from pathlib import Path

_LIST = "/v1.PodResourcesLister/List"
_TIMEOUT = 2.0
# The kubelet's own limit for this API: a node may run hundreds of pods.
_LARGEST_ANSWER = 16 << 20


class PodResources:
    """The kubelet's answer to who holds what."""

    def __init__(self, socket: Path, own_pod: str = "") -> None:
        """Ask on ``socket``, which need not exist yet.

        A kubelet that has just started may answer before the API server has told it of its pods.
        That their devices are free is then not true; so it is believed when it names a pod that
        certainly is there.

        Args:
            socket: Where to ask.
            own_pod: The pod we are in, as ``namespace/name``; empty to believe every answer.
        """
        self._socket = socket
        self._own_pod = own_pod

    @property
    def is_there(self) -> bool:
        """Whether there is a socket that we can see."""
        # Path.is_socket raises where a directory above may not be searched.
        try:
            return stat.S_ISSOCK(self._socket.stat().st_mode)
        except OSError:
            return False

    async def list(self) -> tuple[HeldDevice, ...]:
        """Everything that containers of this node hold, of all resources.

        Raises:
            KubeletError: the kubelet does not answer, refuses, or does not know its pods yet.
        """
        options = (*CHANNEL_OPTIONS, ("grpc.max_receive_message_length", _LARGEST_ANSWER))
        try:
            async with grpc.aio.insecure_channel(
                unix_target(self._socket), options=options
            ) as channel:
                # Decoded here: of what it cannot decode, grpc.aio makes None and a traceback.
                ask: grpc.aio.UnaryUnaryMultiCallable[v1.ListPodResourcesRequest, bytes]
                ask = channel.unary_unary(
                    _LIST, request_serializer=v1.ListPodResourcesRequest.SerializeToString
                )
                answer = v1.ListPodResourcesResponse.FromString(
                    await ask(v1.ListPodResourcesRequest(), timeout=_TIMEOUT)
                )
        except grpc.aio.AioRpcError as error:
            raise KubeletError(
                f"cannot ask {self._socket} who holds devices: {error.code().name}:"
                f" {error.details()}"
            ) from error
        except DecodeError as error:
            raise KubeletError(
                f"cannot ask {self._socket} who holds devices: the answer is no"
                " ListPodResourcesResponse"
            ) from error
        pods = {f"{pod.namespace}/{pod.name}" for pod in answer.pod_resources}
        if self._own_pod and self._own_pod not in pods:
            raise KubeletError(
                f"{self._socket} does not tell yet who holds devices: its {len(pods)} pod(s) are"
                f" without {self._own_pod}, which is our own"
            )
        return tuple(
            HeldDevice(
                devices.resource_name, device_id, f"{pod.namespace}/{pod.name}/{container.name}"
            )
            for pod in answer.pod_resources
            for container in pod.containers
            for devices in container.devices
            for device_id in devices.device_ids
        )
