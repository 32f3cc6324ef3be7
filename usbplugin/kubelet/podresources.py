"""Asks the kubelet which pod holds which device, and which devices it counts. Decides nothing.

PodResources API, v1.
"""

from __future__ import annotations

import stat
from collections import defaultdict
from typing import TYPE_CHECKING, TypeVar

import grpc
from google.protobuf.message import DecodeError

from usbplugin.api import podresources_v1_pb2 as v1
from usbplugin.errors import KubeletError
from usbplugin.inventory import HeldDevice
from usbplugin.inventory.grant import DRA_DRIVER, claim_key
from usbplugin.kubelet.directory import CHANNEL_OPTIONS, unix_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from google.protobuf.message import Message

_Answer = TypeVar("_Answer")

_LIST = "/v1.PodResourcesLister/List"
_ALLOCATABLE = "/v1.PodResourcesLister/GetAllocatableResources"
_TIMEOUT = 2.0
# The kubelet's own limit for this API; a node may run hundreds of pods.
_LARGEST_ANSWER = 16 << 20


def _held(container: v1.ContainerResources, holder: str) -> Iterator[HeldDevice]:
    """What a container holds: what device plugins gave it, and what our claims did."""
    for devices in container.devices:
        for device_id in devices.device_ids:
            yield HeldDevice(devices.resource_name, device_id, holder)
    for given in container.dynamic_resources:
        claim = f"{given.claim_namespace}/{given.claim_name}"
        for device in given.claim_resources:
            if device.driver_name == DRA_DRIVER:
                yield HeldDevice(*claim_key(claim, device.device_name), holder)


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
        answer = await self._ask(
            _LIST,
            v1.ListPodResourcesRequest(),
            v1.ListPodResourcesResponse.FromString,
            "device holders",
        )
        pods = {f"{pod.namespace}/{pod.name}" for pod in answer.pod_resources}
        if self._own_pod and self._own_pod not in pods:
            raise KubeletError(
                f"the kubelet at {self._socket} does not know its pods yet: our own,"
                f" {self._own_pod}, is not among the {len(pods)} it lists"
            )
        return tuple(
            one
            for pod in answer.pod_resources
            for container in pod.containers
            for one in _held(container, f"{pod.namespace}/{pod.name}/{container.name}")
        )

    async def allocatable(self) -> Mapping[str, frozenset[str]]:
        """By resource, the devices that the kubelet counts as healthy, held or not.

        Raises:
            KubeletError: the kubelet does not answer, or cannot say (before 1.21).
        """
        answer = await self._ask(
            _ALLOCATABLE,
            v1.AllocatableResourcesRequest(),
            v1.AllocatableResourcesResponse.FromString,
            "allocatable devices",
        )
        found: defaultdict[str, set[str]] = defaultdict(set)
        for devices in answer.devices:
            found[devices.resource_name].update(devices.device_ids)
        return {resource: frozenset(ids) for resource, ids in found.items()}

    async def _ask(
        self, method: str, request: Message, decode: Callable[[bytes], _Answer], what: str
    ) -> _Answer:
        failed = f"cannot get {what} from {self._socket}"
        options = (*CHANNEL_OPTIONS, ("grpc.max_receive_message_length", _LARGEST_ANSWER))
        try:
            async with grpc.aio.insecure_channel(
                unix_target(self._socket), options=options
            ) as channel:
                # Decode here: grpc.aio turns anything it cannot decode into None and a traceback.
                ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
                return decode(await ask(request.SerializeToString(), timeout=_TIMEOUT))
        except grpc.aio.AioRpcError as error:
            raise KubeletError(f"{failed}: {error.code().name}: {error.details()}") from error
        except DecodeError as error:
            name = method.rpartition("/")[2]
            raise KubeletError(f"{failed}: the answer is not one to {name}") from error
