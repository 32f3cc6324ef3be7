"""The embedded kubelet's device manager: resources, calls to their plugins, and containers.

This module owns what a kubelet knows about devices and their holders, and chooses which devices to
allocate. It never touches the file system or runs a real container.
"""

from __future__ import annotations

import asyncio
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING

from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.virtual.plugin_client import EmbeddedKubeletError, PluginCallError, Resource

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from usbplugin.virtual.plugin_client import Device, PluginClient, PluginOptions


_NO_NODE = -1  # nodeWithoutTopology (Kubernetes, pkg/kubelet/cm/devicemanager/manager.go)


class UnexpectedAdmissionError(EmbeddedKubeletError):
    """The pod has failed for good: there were too few devices, or the plugin refused.

    A kubelet never retries such a pod, whatever its restartPolicy; only a controller replaces it.
    """

    def __init__(self, reason: str, cause: PluginCallError | None = None) -> None:
        super().__init__(f"Allocate failed due to {reason}, which is unexpected")
        self.code = cause.code if cause else None
        """The status the plugin answered with; None if the kubelet refused by itself."""
        self.details = cause.details if cause else ""
        """The plugin's own message."""


class CreateContainerConfigError(EmbeddedKubeletError):
    """The container was not started and is waiting; ``container.start()`` tries again."""

    def __init__(
        self, reason: str, container: Container, cause: PluginCallError | None = None
    ) -> None:
        super().__init__(reason)
        self.container = container
        self.code = cause.code if cause else None
        """The status the plugin answered with; None if the kubelet refused by itself."""
        self.details = cause.details if cause else ""
        """The plugin's own message."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A container, and the devices it holds until it is removed."""

    namespace: str
    pod: str
    container: str
    resource: str
    device_ids: tuple[str, ...]

    def __str__(self) -> str:
        return f"container {self.namespace}/{self.pod}/{self.container}"


class ContainerState(Enum):
    """How far a container has got."""

    WAITING = "waiting"
    """Admitted: it holds its devices but is not running."""
    RUNNING = "running"
    REMOVED = "removed"


class Container:
    """A container with devices, as its kubelet sees it: nothing is executed.

    It keeps its devices when it, the plugin or the kubelet restarts.
    """

    def __init__(
        self,
        manager: DeviceManager,
        holder: Holder,
        answer: bytes,
        pod_uid: str,
        device_ids_by_node: Mapping[int, Sequence[str]],
    ) -> None:
        self._manager = manager
        self.encoded_answer = answer
        """The plugin's answer to Allocate, as it is kept."""
        self.holder = holder
        self.pod_uid = pod_uid
        """The same for all containers of a pod, and for no other pod, whatever its name."""
        self.device_ids_by_node = device_ids_by_node
        """The devices that were near each NUMA node when they were allocated; -1: near none."""
        self.state = ContainerState.WAITING
        self.starts = 0
        """Number of successful starts."""

    @property
    def device_ids(self) -> tuple[str, ...]:
        """The devices it holds."""
        return self.holder.device_ids

    @property
    def answer(self) -> v1beta1.ContainerAllocateResponse:
        """A copy of the plugin's answer to Allocate, reused for every start of this container."""
        return v1beta1.ContainerAllocateResponse.FromString(self.encoded_answer)

    @property
    def devices(self) -> tuple[v1beta1.DeviceSpec, ...]:
        """Device nodes from the cached answer."""
        return tuple(self.answer.devices)

    @property
    def mounts(self) -> tuple[v1beta1.Mount, ...]:
        """Mounts from the cached answer."""
        return tuple(self.answer.mounts)

    @property
    def envs(self) -> dict[str, str]:
        """Environment variables from the cached answer."""
        return dict(self.answer.envs)

    async def start(self) -> None:
        """Start it, calling PreStartContainer first if the plugin requires it, but not Allocate.

        Raises:
            CreateContainerConfigError: the plugin refused, is gone or took too long; try again.
            EmbeddedKubeletError: it is running or removed, or the kubelet is not running.
        """
        if self.state is not ContainerState.WAITING:
            raise EmbeddedKubeletError(f"{self} is {self.state.value} and cannot be started")
        await self._manager.pre_start(self)
        if self.state is ContainerState.WAITING:
            self.state = ContainerState.RUNNING
            self.starts += 1

    async def restart(self) -> None:
        """Stop it if it is running, then start it. Raises what ``start`` raises."""
        if self.state is ContainerState.RUNNING:
            self.state = ContainerState.WAITING
        await self.start()

    def remove(self) -> None:
        """Stop it for good and free its devices, as when its pod is deleted."""
        self.state = ContainerState.REMOVED
        self._manager.remove(self)

    def __str__(self) -> str:
        return str(self.holder)


class DeviceManager:
    """Resources, registered plugins and holders. Knows nothing of streams, sockets and files.

    Args:
        changed: called after every change.
        violation: called with a resource and what its plugin did wrong.
        note: called when containers have come or gone, unless it is not running; raises OSError if
            that could not be noted.
        pre_start_timeout: as for ``EmbeddedKubelet``.
    """

    def __init__(
        self,
        changed: Callable[[], None],
        violation: Callable[[str, str], None],
        note: Callable[[], None],
        pre_start_timeout: float,
    ) -> None:
        self.running = False
        self.resources: dict[str, Resource] = {}
        self.containers: list[Container] = []
        self._endpoints: dict[str, PluginClient] = {}
        self._changed = changed
        self._violation = violation
        self._note = note
        self._pre_start_timeout = pre_start_timeout
        # A kubelet admits one pod at a time, so a slow Allocate holds up the rest.
        self._admission = asyncio.Lock()

    def connected(self, client: PluginClient, options: PluginOptions) -> None:
        """Send all further calls for this resource to this plugin."""
        self._endpoints[client.resource] = client
        self._put(replace(self.known(client.resource), connected=True, options=options))

    def update(self, name: str, devices: Mapping[str, Device]) -> None:
        """Replace the resource's devices, whether or not there is still a plugin to call.

        Those of a forgotten resource, which only an older instance can send, are ignored. A kubelet
        keeps them until it looks at the resource's grace period the next time, within seconds.
        """
        if (known := self.resources.get(name)) is not None:
            self.resources[name] = replace(known, devices=MappingProxyType(dict(devices)))
        self._changed()

    def disconnected(self, name: str) -> PluginClient | None:
        """Mark all the resource's devices unhealthy, and stop calling its plugin, if any.

        Returns:
            The plugin that is called no more.
        """
        stopped = self._endpoints.pop(name, None)
        known = self.known(name)
        devices = {key: replace(device, healthy=False) for key, device in known.devices.items()}
        self._put(replace(known, connected=False, devices=MappingProxyType(devices)))
        return stopped

    def forget(self, name: str) -> None:
        """Drop a resource whose plugin stayed away: no capacity, and its holders cannot start."""
        self.resources.pop(name, None)
        self._changed()

    def reset(self) -> None:
        """Keep what a checkpoint keeps: resource names, holders and their cached answers."""
        self._endpoints.clear()
        self.resources = {name: Resource(name) for name in self.resources}
        self._changed()

    def known(self, name: str) -> Resource:
        """Return what is known about a resource; an empty one if it never registered."""
        return self.resources.get(name) or Resource(name)

    def _put(self, resource: Resource) -> None:
        self.resources[resource.name] = resource
        self._changed()

    async def admit(self, holder: Holder, count: int) -> Container:
        """Choose ``count`` devices unless the holder names some, and Allocate them.

        Raises:
            UnexpectedAdmissionError: too few devices, the plugin refused, or its answer could not
                be noted.
            EmbeddedKubeletError: the kubelet is not running, or the container already exists.
        """
        async with self._admission:
            self._require_running()
            if any(_same_container(other.holder, holder) for other in self.containers):
                raise EmbeddedKubeletError(f"{holder} already exists; remove it first")
            container = await self._allocate(holder, count)
            self.containers.append(container)
            try:
                self._note()
            except OSError as error:
                self.containers.remove(container)
                raise UnexpectedAdmissionError(
                    f"failed to write checkpoint file: {error}"
                ) from error
        self._changed()
        return container

    async def _allocate(self, holder: Holder, count: int) -> Container:
        resource = self.resources.get(holder.resource)
        if resource is None:
            raise UnexpectedAdmissionError(f"cannot allocate unregistered device {holder.resource}")
        held = self._held(resource.name)
        if taken := held.intersection(holder.device_ids):
            raise UnexpectedAdmissionError(f"devices {sorted(taken)} already being held")
        if not holder.device_ids:
            chosen = await self._choose(resource, count, held)
            holder = replace(holder, device_ids=tuple(chosen))
        endpoint = self._endpoints.get(holder.resource)
        if endpoint is None:
            raise UnexpectedAdmissionError(_stopped(holder.resource))
        try:
            response = await endpoint.allocate(holder.device_ids)
        except PluginCallError as error:
            raise UnexpectedAdmissionError(str(error), error) from error
        answers = response.container_responses
        if len(answers) != 1:
            self._violation(
                holder.resource, f"Allocate answered for {len(answers)} containers instead of 1"
            )
        if not answers:
            raise UnexpectedAdmissionError("no containers return in allocation response")
        return Container(
            self,
            holder,
            answers[0].SerializeToString(),
            self._pod_uid(holder),
            _by_node(holder.device_ids, self.known(holder.resource)),
        )

    def _pod_uid(self, holder: Holder) -> str:
        for other in self.containers:
            if (other.holder.namespace, other.holder.pod) == (holder.namespace, holder.pod):
                return other.pod_uid
        return str(uuid.uuid4())

    async def _choose(self, resource: Resource, count: int, held: Collection[str]) -> list[str]:
        name = resource.name
        if not resource.healthy:
            raise UnexpectedAdmissionError(
                f"no healthy devices present; cannot allocate unhealthy devices {name}"
            )
        # A kubelet takes them in no particular order; this one in a repeatable order.
        available = sorted(resource.healthy.difference(held))
        if len(available) < count:
            raise UnexpectedAdmissionError(
                f"requested number of devices unavailable for {name}. "
                f"Requested: {count}, Available: {len(available)}"
            )
        preferred: list[str] = []
        if (
            len(available) > count
            and resource.options is not None
            and resource.options.preferred_allocation
        ):
            preferred = await self._prefer(name, available, count)
        if unavailable := sorted(set(preferred).difference(available)):
            self._violation(name, f"GetPreferredAllocation named unavailable devices {unavailable}")
        usable = [device_id for device_id in preferred if device_id in available]
        return list(dict.fromkeys([*usable, *available]))[:count]

    async def _prefer(self, name: str, available: Sequence[str], count: int) -> list[str]:
        failed = "device plugin GetPreferredAllocation rpc failed with err: "
        endpoint = self._endpoints.get(name)
        if endpoint is None:
            raise UnexpectedAdmissionError(failed + _stopped(name))
        try:
            return await endpoint.prefer(available, count)
        except PluginCallError as error:
            raise UnexpectedAdmissionError(f"{failed}{error}", error) from error

    async def pre_start(self, container: Container) -> None:
        """Call PreStartContainer if necessary. Raises what ``Container.start`` raises."""
        self._require_running()
        name = container.holder.resource
        resource = self.resources.get(name)
        if resource is None:
            raise CreateContainerConfigError(
                f"endpoint not found in cache for a registered resource: {name}", container
            )
        # No options: this kubelet started after the plugin had gone, and then it does not ask.
        if resource.options is None or not resource.options.pre_start_required:
            return
        failed = "device plugin PreStartContainer rpc failed with err: "
        endpoint = self._endpoints.get(name)
        if endpoint is None:
            raise CreateContainerConfigError(failed + _stopped(name), container)
        try:
            await endpoint.pre_start(container.device_ids, self._pre_start_timeout)
        except PluginCallError as error:
            raise CreateContainerConfigError(f"{failed}{error}", container, error) from error

    def remove(self, container: Container) -> None:
        """Forget the container, which frees its devices."""
        if container in self.containers:
            self.containers.remove(container)
            if self.running:
                with suppress(OSError):  # a kubelet logs it, and tries again with the next change
                    self._note()
            self._changed()

    def _held(self, name: str) -> set[str]:
        holders = (container.holder for container in self.containers)
        return {key for holder in holders if holder.resource == name for key in holder.device_ids}

    def _require_running(self) -> None:
        if not self.running:
            raise EmbeddedKubeletError("the embedded kubelet is not running; start it first")


def _stopped(name: str) -> str:
    # A kubelet prints its whole record of the endpoint where this has the resource's name.
    return f"endpoint {name} has been stopped"


def _same_container(one: Holder, other: Holder) -> bool:
    return (one.namespace, one.pod, one.container) == (other.namespace, other.pod, other.container)


def _by_node(device_ids: Sequence[str], resource: Resource) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for device_id in device_ids:
        device = resource.devices.get(device_id)
        for node in (device.numa if device else ()) or (_NO_NODE,):
            found.setdefault(node, []).append(device_id)
    return found
