"""Asks the kubelet which pod holds which device (PodResources API, v1). Decides nothing."""

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
# The kubelet's own limit for this API; a node may run hundreds of pods.
_LARGEST_ANSWER = 16 << 20


class PodResources:
    """Asks the kubelet who holds what."""

    def __init__(self, socket: Path, own_pod: str = "") -> None:
        """Ask on ``socket``, which need not exist yet.

        A kubelet that has just started may answer before the API server has told it about its pods,
        and so seem to say that their devices are free. Its answer is therefore believed only if it
        includes a pod that is certainly there: our own.

        Args:
            socket: Where to ask.
            own_pod: Our own pod, as ``namespace/name``; empty to believe every answer.
        """
        self._socket = socket
        self._own_pod = own_pod

    @property
    def is_there(self) -> bool:
        """Whether we can see a socket there."""
        # Path.is_socket raises if a parent directory may not be searched.
        try:
            return stat.S_ISSOCK(self._socket.stat().st_mode)
        except OSError:
            return False

    async def list(self) -> tuple[HeldDevice, ...]:
        """All devices of all resources that this node's containers hold.

        Raises:
            KubeletError: the kubelet does not answer, refuses, or does not know its pods yet.
        """
        options = (*CHANNEL_OPTIONS, ("grpc.max_receive_message_length", _LARGEST_ANSWER))
        try:
            async with grpc.aio.insecure_channel(
                unix_target(self._socket), options=options
            ) as channel:
                # Decode here: grpc.aio turns anything it cannot decode into None and a traceback.
                ask: grpc.aio.UnaryUnaryMultiCallable[v1.ListPodResourcesRequest, bytes]
                ask = channel.unary_unary(
                    _LIST, request_serializer=v1.ListPodResourcesRequest.SerializeToString
                )
                answer = v1.ListPodResourcesResponse.FromString(
                    await ask(v1.ListPodResourcesRequest(), timeout=_TIMEOUT)
                )
        except grpc.aio.AioRpcError as error:
            raise KubeletError(
                f"cannot get device holders from {self._socket}: {error.code().name}:"
                f" {error.details()}"
            ) from error
        except DecodeError as error:
            raise KubeletError(
                f"cannot get device holders from {self._socket}: the answer is not a"
                " ListPodResourcesResponse"
            ) from error
        pods = {f"{pod.namespace}/{pod.name}" for pod in answer.pod_resources}
        if self._own_pod and self._own_pod not in pods:
            raise KubeletError(
                f"the kubelet at {self._socket} does not know its pods yet: our own,"
                f" {self._own_pod}, is not among the {len(pods)} it lists"
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
