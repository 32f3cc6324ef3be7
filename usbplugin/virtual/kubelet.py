"""The embedded kubelet: to a device plugin it is a kubelet, over real sockets.

This module owns kubelet.sock and the embedded kubelet's public interface. It starts no real
containers, needs neither root nor a cluster, and keeps all its state in memory: its checkpoint is
for others to read.
"""

from __future__ import annotations

import asyncio
import os
import stat
import tempfile
import time
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

import grpc

from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.api import deviceplugin_v1beta1_pb2_grpc as rpc
from usbplugin.api import podresources_v1_pb2_grpc as podresources_rpc
from usbplugin.foundation.pulse import Pulse
from usbplugin.virtual.checkpoint import CheckpointFile
from usbplugin.virtual.containers import Container, DeviceManager, Holder
from usbplugin.virtual.dra import DraManager
from usbplugin.virtual.plugin_client import EmbeddedKubeletError, Resource, check_socket_path
from usbplugin.virtual.registry import KubeletLog, PluginRegistry, Violation
from usbplugin.virtual.services import PluginWatcher, PodResourcesService

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path
    from types import TracebackType

_LONGEST_STEP = 0.5
"""Seconds of waiting that a standstill of the machine costs at most."""


class EmbeddedKubelet:
    """A kubelet for device plugins that use ``directory`` as their device plugin directory.

    It belongs to the event loop that starts it. As an async context manager it starts and stops.
    Use a directory with a short path: its sockets' paths are limited to 107 bytes.

    Args:
        directory: created if missing.
        pod_resources: the socket on which to serve the PodResources API, if any.
        registry: the directory in which the plugin watcher looks for plugins, if any.
        dial_timeout: seconds a plugin has, within Register, to accept the connection back and
            report its options.
        pre_start_timeout: seconds a plugin has to answer PreStartContainer.
        grace_period: seconds a resource keeps its capacity after its plugin has gone.
        log_limit: how many entries of each kind ``log`` keeps.
        checkpoint: whether to write a checkpoint, as a kubelet does, after each Allocate and each
            removal of a container.
        cdi: where the container runtime looks for CDI specs, if any.
        on_wipe: deletes the node's ResourceSlices at the API server, as a kubelet does when it
            starts.
    """

    def __init__(
        self,
        directory: Path,
        *,
        pod_resources: Path | None = None,
        registry: Path | None = None,
        dial_timeout: float = 10.0,
        pre_start_timeout: float = 30.0,
        grace_period: float = 300.0,
        log_limit: int = 10_000,
        checkpoint: bool = True,
        cdi: Path | None = None,
        on_wipe: Callable[[], None] = lambda: None,
    ) -> None:
        self.directory = directory.absolute()
        self.socket = self.directory / "kubelet.sock"
        self.log = KubeletLog(log_limit)
        self.knows_pods = True
        """Whether PodResources lists any pods. A real kubelet may answer before it knows them."""
        self.other_pods: Collection[str] = ()
        """Pods that hold no devices, as ``namespace/name``."""
        self._pod_resources = pod_resources
        self._watcher = registry
        self._watching: asyncio.Task[None] | None = None
        self._changed = Pulse()
        self._server: grpc.aio.Server | None = None
        self._checkpoint = CheckpointFile(self.directory) if checkpoint else None
        self._manager = DeviceManager(
            self._changed.beat, self._violation, self._note, pre_start_timeout
        )
        self.dra = DraManager(self._changed.beat, cdi, on_wipe)
        """Drivers, claims, and the containers that use them."""
        self._registry = PluginRegistry(
            self.directory,
            self._manager,
            self.log,
            self._changed.beat,
            dial_timeout=dial_timeout,
            grace_period=grace_period,
        )

    async def start(self) -> None:
        """Delete every socket in the directory, then serve Registration on kubelet.sock.

        Raises:
            EmbeddedKubeletError: it is already running, or the path is too long.
            OSError: the directory cannot be created or written to.
        """
        if self._server is not None:
            raise EmbeddedKubeletError(f"the embedded kubelet on {self.socket} is already running")
        check_socket_path(str(self.socket))
        _prepare(self.directory)
        # It may be another directory than before, and a container may have been removed meanwhile.
        self._note()
        server = grpc.aio.server()
        rpc.add_RegistrationServicer_to_server(_Registration(self._registry), server)
        if self._pod_resources is not None:
            self._pod_resources.parent.mkdir(parents=True, exist_ok=True)
            service = PodResourcesService(
                lambda: self.holders if self.knows_pods else (),
                lambda: self.other_pods if self.knows_pods else (),
                self._manager.resources.values,
                lambda: self.dra.containers if self.knows_pods else (),
            )
            podresources_rpc.add_PodResourcesListerServicer_to_server(service, server)
            server.add_insecure_port(f"unix:{quote(str(self._pod_resources))}")
        # When the server stops, it deletes the socket path it was given, whereas a kubelet's socket
        # stays. So give it another path, and rename the socket. Not by linking and unlinking: that
        # would change the socket's ctime, by which plugins tell one kubelet from the next.
        async with AsyncExitStack() as if_it_fails:
            if_it_fails.push_async_callback(server.stop, None)
            with tempfile.TemporaryDirectory(prefix=".k", dir=self.directory) as scratch:
                server.add_insecure_port(f"unix:{quote(scratch)}/s")
                await server.start()
                os.rename(f"{scratch}/s", self.socket)  # noqa: PTH104 -- takes no time
            if_it_fails.pop_all()
        self._server = server
        self._manager.running = True
        if self._watcher is not None:
            self._watcher.mkdir(parents=True, exist_ok=True)
            watcher = PluginWatcher(
                self._watcher, self._registry.register, self._registry.disconnect, self.dra
            )
            self.dra.wipe()
            self._watching = asyncio.create_task(watcher.run())
        self._changed.beat()

    async def stop(self) -> None:
        """End all streams and calls. Sockets, including kubelet.sock, stay; nobody answers on them.

        Holders and their cached answers are kept, and the checkpoint stays as it is. Does nothing
        if it is not running.

        Raises:
            Exception: whatever ended a task that reads a stream, which is a bug here.
        """
        server, self._server = self._server, None
        if server is None:
            return
        self._manager.running = False
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching})
            self._watching = None
        await server.stop(None)
        try:
            await self._registry.close()
            await self.dra.close()
        finally:
            self._manager.reset()

    async def restart(self) -> None:
        """Stop and start: resources have no devices until their plugins register again."""
        await self.stop()
        await self.start()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    @property
    def running(self) -> bool:
        """Whether it has been started and not stopped."""
        return self._server is not None

    @property
    def resources(self) -> dict[str, Resource]:
        """All resources that have registered and not been forgotten, by name."""
        return dict(self._manager.resources)

    def resource(self, name: str) -> Resource:
        """Return what is known about a resource; an empty one if it never registered."""
        return self._manager.known(name)

    @property
    def containers(self) -> tuple[Container, ...]:
        """All containers that have been admitted and not removed, oldest first."""
        return tuple(self._manager.containers)

    @property
    def holders(self) -> tuple[Holder, ...]:
        """Who holds which devices, oldest first."""
        return tuple(container.holder for container in self.containers)

    def refuse_registrations(self, count: int, message: str) -> None:
        """Answer the next ``count`` calls of Register with this error."""
        self._registry.refuse(count, message)

    async def disconnect(self, resource: str) -> None:
        """Close the connection to the resource's plugin, as a kubelet may do by mistake.

        The plugin sees its stream end while kubelet.sock stays.

        Raises:
            EmbeddedKubeletError: the resource has no connected plugin.
        """
        if not await self._registry.disconnect(resource):
            raise EmbeddedKubeletError(f"no plugin is connected for {resource}; {self.describe()}")

    async def admit(
        self,
        resource: str,
        count: int = 1,
        *,
        device_ids: Sequence[str] = (),
        pod: str = "pod",
        name: str = "main",
        namespace: str = "default",
    ) -> Container:
        """Admit a container as the device manager does, without starting it.

        Chooses among the healthy devices nobody holds. If there are more than needed and the plugin
        offers GetPreferredAllocation, calls that and uses those of its choices that are available.
        Then calls Allocate. Pods are admitted one at a time, and Allocate has no time limit.

        Args:
            resource: such as ``usbplugin/serial``.
            count: how many devices.
            device_ids: Allocate exactly these instead, whether known and healthy or not: a
                kubelet's choice can be overtaken by events, and a plugin must expect that.
            pod: the pod's name; with ``namespace`` and ``name`` it identifies the container.
            name: the container's name.
            namespace: the pod's namespace.

        Raises:
            UnexpectedAdmissionError: too few devices, the plugin refused, or the checkpoint could
                not be written; this is final.
            EmbeddedKubeletError: it is not running, or the container already exists.
            ValueError: no devices were requested.
        """
        if count < 1:
            raise ValueError(f"count is {count}; a container needs at least one device")
        return await self._manager.admit(
            Holder(namespace, pod, name, resource, tuple(device_ids)), count
        )

    async def run_container(
        self,
        resource: str,
        count: int = 1,
        *,
        device_ids: Sequence[str] = (),
        pod: str = "pod",
        name: str = "main",
        namespace: str = "default",
    ) -> Container:
        """Admit a container and start it; takes and raises what ``admit`` does.

        Raises:
            CreateContainerConfigError: PreStartContainer failed; the error's ``container`` is
                admitted and can be started later.
        """
        container = await self.admit(
            resource, count, device_ids=device_ids, pod=pod, name=name, namespace=namespace
        )
        await container.start()
        return container

    async def wait_for(self, condition: Callable[[], bool], within: float = 10.0) -> None:
        """Wait until a condition on this kubelet holds, checking it after every change.

        Args:
            condition: reads this object. It may miss a momentary state; the ``log`` misses nothing.
            within: seconds, not counting those in which this machine stands still, as virtual ones
                do now and then.

        Raises:
            TimeoutError: it did not become true; the message shows the kubelet's state.
        """
        loop = asyncio.get_running_loop()
        left = within
        while not condition():
            self._registry.raise_failure()
            if left <= 0:
                raise TimeoutError(f"still waiting after {within} s; {self.describe()}")
            began, longest = loop.time(), min(left, _LONGEST_STEP)
            with suppress(TimeoutError):
                async with asyncio.timeout(longest):
                    await self._changed.wait()
            left -= min(loop.time() - began, longest)

    async def wait_healthy(
        self, resource: str, device_ids: Collection[str], within: float = 10.0
    ) -> None:
        """Wait until exactly these devices of the resource are healthy. Raises TimeoutError."""
        wanted = frozenset(device_ids)
        await self.wait_for(lambda: self.resource(resource).healthy == wanted, within)

    def describe(self) -> str:
        """Describe in one line what this kubelet knows."""
        parts = ["kubelet running" if self.running else "kubelet not running"]
        for resource in self.resources.values():
            devices = ", ".join(
                f"{device.id} {'Healthy' if device.healthy else 'Unhealthy'}"
                for device in resource.devices.values()
            )
            parts.append(
                f"{resource.name} {'connected' if resource.connected else 'not connected'}, "
                f"allocatable {resource.allocatable} of {resource.capacity} [{devices}]"
            )
        parts += [f"{item} {item.state.value}, holds {item.device_ids}" for item in self.containers]
        if self.log.registrations and (refusal := self.log.registrations[-1].refusal):
            parts.append(f"last registration refused: {refusal}")
        return "; ".join(parts)

    def _note(self) -> None:
        # Small, and a kubelet admits no other pod meanwhile: there is no point in a thread.
        if self._checkpoint is not None:
            self._checkpoint.write(self._manager.containers, self._manager.resources.values())

    def _violation(self, resource: str, what: str) -> None:
        self.log.violations.append(Violation(time.monotonic(), resource, what))


class _Registration(rpc.RegistrationServicer):
    def __init__(self, registry: PluginRegistry) -> None:
        self._registry = registry

    async def Register(  # noqa: N802 -- the method's name in the API
        self,
        request: v1beta1.RegisterRequest,
        context: grpc.aio.ServicerContext[v1beta1.RegisterRequest, v1beta1.Empty],
    ) -> v1beta1.Empty:
        if refusal := await self._registry.register(request):
            # A kubelet's errors are not gRPC statuses, and grpc-go turns those into UNKNOWN.
            await context.abort(grpc.StatusCode.UNKNOWN, refusal)
        return v1beta1.Empty()


def _prepare(directory: Path) -> None:
    directory.mkdir(mode=0o750, parents=True, exist_ok=True)
    for path in directory.iterdir():
        # A plugin may remove its own socket in the meantime.
        with suppress(FileNotFoundError):
            if stat.S_ISSOCK(path.lstat().st_mode):
                path.unlink()
