"""The embedded kubelet's DRA side: drivers it has found, claims they prepared, pods that have them.

There is no scheduler in here and no CEL: whoever uses it says what a claim was allocated, and the
driver reads that from the API server, as it does on a node. As with a real kubelet:

- Several instances of a driver may be registered; the one that was found last is called.
- Prepare is called once for each claim, however many containers use it, and not again when one of
  them is restarted: only the CDI names are kept, and resolved anew at each start.
- A failed Prepare is final for the caller; a kubelet tries again after 60 to 90 s.
- The node's ResourceSlices are deleted when the kubelet starts, and half a minute after the last
  instance of a driver has gone.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import grpc

from usbplugin.api import dra_health_v1alpha1_pb2 as health
from usbplugin.api import dra_health_v1alpha1_pb2_grpc as health_rpc
from usbplugin.api import dra_v1_pb2 as v1
from usbplugin.api import dra_v1_pb2_grpc as rpc
from usbplugin.virtual.plugin_client import EmbeddedKubeletError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from usbplugin.api import pluginregistration_v1_pb2 as registration

_PREPARE_TIMEOUT = 45.0
_HEALTH_PAUSE = 5.0


class PrepareError(EmbeddedKubeletError):
    """The driver has refused a claim, or could not be called; the pod's containers wait."""


class UnresolvableCdiError(EmbeddedKubeletError):
    """A container was not started, for no CDI spec names what it is to be given; try again."""


@dataclass(frozen=True, slots=True)
class DeviceHealth:
    """What a driver said of a device's health."""

    is_healthy: bool
    message: str
    lease: float
    """Seconds for which that counts."""


@dataclass(slots=True, eq=False)
class _Driver:
    """One instance of a driver."""

    name: str
    socket: Path
    channel: grpc.aio.Channel
    watch: asyncio.Task[None] | None = None


@dataclass(frozen=True, slots=True)
class PreparedDevice:
    """What a driver answered for one device of a claim."""

    requests: tuple[str, ...]
    pool: str
    device: str
    cdi_devices: tuple[str, ...]
    share_id: str = ""


@dataclass(frozen=True, slots=True)
class ClaimOfPod:
    """A claim that was prepared, until its pod is removed."""

    namespace: str
    name: str
    uid: str
    driver: str
    devices: tuple[PreparedDevice, ...]


@dataclass(slots=True, eq=False)
class ClaimContainer:
    """A container that uses a claim: nothing is executed."""

    manager: DraManager
    claim: ClaimOfPod
    pod: str
    name: str
    request: str = ""
    """The only request of the claim that it uses; empty for all."""
    nodes: Mapping[str, str] = field(default_factory=dict)
    """By path in the container, the host's node, as of its last start."""
    numbers: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """By path in the container, the numbers that it may open; mounted ones have none."""
    envs: Mapping[str, str] = field(default_factory=dict)
    running: bool = False

    def start(self) -> None:
        """Start it, with what the CDI specs say now.

        Raises:
            UnresolvableCdiError: they do not say.
        """
        self.running = False
        self.nodes, self.numbers, self.envs = self.manager.resolve(self.claim, self.request)
        self.running = True

    def __str__(self) -> str:
        return f"container {self.claim.namespace}/{self.pod}/{self.name}"


class DraManager:
    """Drivers, claims and the containers that use them."""

    def __init__(
        self,
        changed: Callable[[], None],
        cdi: Path | None = None,
        on_wipe: Callable[[], None] = lambda: None,
        wipe_delay: float = 30.0,
    ) -> None:
        """Begin with no driver.

        Args:
            changed: Called after every change.
            cdi: Where the container runtime looks for CDI specs.
            on_wipe: Deletes the node's ResourceSlices at the API server.
            wipe_delay: Seconds from the loss of the last instance of a driver until that.
        """
        self._changed = changed
        self._cdi = cdi
        self._on_wipe = on_wipe
        self._wipe_delay = wipe_delay
        self._wiping: asyncio.TimerHandle | None = None
        self._drivers: list[_Driver] = []
        self._claims: dict[str, ClaimOfPod] = {}
        self.containers: list[ClaimContainer] = []
        self.health: dict[tuple[str, str], DeviceHealth] = {}
        """By pool and device, what was said last."""
        self.versions: tuple[str, ...] = ()
        """What the last driver to register says that it serves."""
        self.prepare_seconds: list[float] = []
        """How long each successful Prepare took."""

    @property
    def drivers(self) -> tuple[str, ...]:
        """The names of the instances that are registered, the one that is called last."""
        return tuple(driver.name for driver in self._drivers)

    @property
    def sockets(self) -> tuple[Path, ...]:
        """Their sockets, in the same order."""
        return tuple(driver.socket for driver in self._drivers)

    @property
    def claims(self) -> tuple[ClaimOfPod, ...]:
        """The claims that are prepared, for all this kubelet knows."""
        return tuple(self._claims.values())

    def wipe(self) -> None:
        """Delete the node's slices, as at each start."""
        self._on_wipe()

    def register(self, info: registration.PluginInfo, socket: Path) -> str:
        """Take in an instance of a driver; returns why it is refused, or nothing."""
        versions = list(info.supported_versions)
        if not any(version.endswith(".DRAPlugin") for version in versions):
            return f"none of the versions {versions} is supported"
        if self._wiping is not None:
            self._wiping.cancel()
            self._wiping = None
        target = info.endpoint or str(socket)
        channel = grpc.aio.insecure_channel(f"unix:{quote(target)}")
        driver = _Driver(info.name, socket, channel)
        driver.watch = asyncio.create_task(self._watch_health(driver))
        self._drivers.append(driver)
        self.versions = tuple(versions)
        self._changed()
        return ""

    async def deregister(self, socket: Path) -> None:
        """The socket of an instance has gone."""
        for driver in [driver for driver in self._drivers if driver.socket == socket]:
            self._drivers.remove(driver)
            await self._hang_up(driver)
            if not self._drivers:
                loop = asyncio.get_running_loop()
                self._wiping = loop.call_later(self._wipe_delay, self._on_wipe)
        self._changed()

    async def close(self) -> None:
        """The kubelet ends: claims and containers stay as they are."""
        if self._wiping is not None:
            self._wiping.cancel()
            self._wiping = None
        drivers, self._drivers = self._drivers, []
        for driver in drivers:
            await self._hang_up(driver)
        self.health.clear()

    async def prepare(
        self, namespace: str, name: str, uid: str, driver: str = "usbplugin"
    ) -> ClaimOfPod:
        """Have a claim prepared, unless it is.

        Raises:
            PrepareError: the driver has refused it, or there is none.
        """
        if known := self._claims.get(uid):
            return known
        request = v1.NodePrepareResourcesRequest()
        request.claims.add(namespace=namespace, uid=uid, name=name)
        stub = rpc.DRAPluginStub(self._driver(driver).channel)
        began = time.perf_counter()
        try:
            answer = await stub.NodePrepareResources(request, timeout=_PREPARE_TIMEOUT)
        except grpc.aio.AioRpcError as error:
            raise PrepareError(
                f"NodePrepareResources failed: {error.code().name}: {error.details()}"
            ) from error
        if uid not in answer.claims:
            raise PrepareError(f"NodePrepareResources did not answer for claim {name}")
        if text := answer.claims[uid].error:
            raise PrepareError(f"NodePrepareResources failed for ResourceClaim {name}: {text}")
        self.prepare_seconds.append(time.perf_counter() - began)
        devices = tuple(
            PreparedDevice(
                tuple(device.request_names),
                device.pool_name,
                device.device_name,
                tuple(device.cdi_device_ids),
                device.share_id,
            )
            for device in answer.claims[uid].devices
        )
        claim = self._claims[uid] = ClaimOfPod(namespace, name, uid, driver, devices)
        self._changed()
        return claim

    async def unprepare(self, claim: ClaimOfPod) -> None:
        """Have a claim unprepared.

        Raises:
            PrepareError: the driver has refused, or there is none: its pod stays Terminating.
        """
        request = v1.NodeUnprepareResourcesRequest()
        request.claims.add(namespace=claim.namespace, uid=claim.uid, name=claim.name)
        stub = rpc.DRAPluginStub(self._driver(claim.driver).channel)
        try:
            answer = await stub.NodeUnprepareResources(request, timeout=_PREPARE_TIMEOUT)
        except grpc.aio.AioRpcError as error:
            raise PrepareError(
                f"NodeUnprepareResources failed: {error.code().name}: {error.details()}"
            ) from error
        if claim.uid not in answer.claims:
            raise PrepareError(f"NodeUnprepareResources did not answer for claim {claim.name}")
        if text := answer.claims[claim.uid].error:
            raise PrepareError(f"NodeUnprepareResources failed for {claim.name}: {text}")
        self._claims.pop(claim.uid, None)
        self._changed()

    async def run_container(
        self,
        namespace: str,
        name: str,
        uid: str,
        *,
        pod: str = "pod",
        container: str = "main",
        request: str = "",
    ) -> ClaimContainer:
        """Have a claim prepared, and start a container that uses it.

        Raises:
            PrepareError: it cannot be prepared.
            UnresolvableCdiError: no spec names its devices.
        """
        claim = await self.prepare(namespace, name, uid)
        made = ClaimContainer(self, claim, pod, container, request)
        self.containers.append(made)
        self._changed()
        made.start()
        return made

    async def remove(self, container: ClaimContainer) -> None:
        """Delete its pod: once nobody uses the claim any longer, it is unprepared.

        Raises:
            PrepareError: that failed.
        """
        if container in self.containers:
            container.running = False
            self.containers.remove(container)
        if all(other.claim.uid != container.claim.uid for other in self.containers):
            await self.unprepare(container.claim)

    def forget(self, claim: ClaimOfPod) -> None:
        """Lose a claim, as a kubelet does whose state is lost: nothing will unprepare it."""
        self._claims.pop(claim.uid, None)
        self.containers = [one for one in self.containers if one.claim.uid != claim.uid]
        self._changed()

    def resolve(
        self, claim: ClaimOfPod, request: str
    ) -> tuple[dict[str, str], dict[str, tuple[int, int]], dict[str, str]]:
        """What a container is given: nodes, their numbers, and variables.

        Raises:
            UnresolvableCdiError: no spec names it.
        """
        specs = self._read_specs()
        wanted = [
            name
            for device in claim.devices
            if not request or request in device.requests
            for name in device.cdi_devices
        ]
        if missing := [name for name in wanted if name not in specs]:
            raise UnresolvableCdiError(
                f"CDI device injection failed: unresolvable CDI devices {', '.join(missing)}"
            )
        nodes: dict[str, str] = {}
        numbers: dict[str, tuple[int, int]] = {}
        envs: dict[str, str] = {}
        for edits in map(specs.__getitem__, wanted):
            for node in edits.get("deviceNodes", ()):
                nodes[node["path"]] = node.get("hostPath", node["path"])
                numbers[node["path"]] = node["major"], node["minor"]
            for mount in edits.get("mounts", ()):
                nodes[mount["containerPath"]] = mount["hostPath"]
            for variable in edits.get("env", ()):
                key, _, value = variable.partition("=")
                envs[key] = value
        return nodes, numbers, envs

    def _read_specs(self) -> dict[str, dict[str, Any]]:
        """By CDI name, what it adds to a container."""
        found = {}
        for path in sorted(self._cdi.glob("*.json")) if self._cdi is not None else ():
            with suppress(OSError, ValueError, KeyError):
                spec = json.loads(path.read_text())
                for device in spec["devices"]:
                    found[f"{spec['kind']}={device['name']}"] = device["containerEdits"]
        return found

    def _driver(self, name: str) -> _Driver:
        for driver in reversed(self._drivers):
            if driver.name == name:
                return driver
        raise PrepareError(f"DRA driver {name} is not registered")

    async def _watch_health(self, driver: _Driver) -> None:
        """Ask for health again and again, as a kubelet does whether or not it was named."""
        stub = health_rpc.DRAResourceHealthStub(driver.channel)
        while True:
            with suppress(grpc.aio.AioRpcError):
                stream = stub.NodeWatchResources(health.NodeWatchResourcesRequest())
                async for message in stream:
                    self.health = {
                        (one.device.pool_name, one.device.device_name): DeviceHealth(
                            one.health == health.HEALTHY,
                            one.message,
                            one.health_check_timeout_seconds,
                        )
                        for one in message.devices
                    }
                    self._changed()
            await asyncio.sleep(_HEALTH_PAUSE)

    async def _hang_up(self, driver: _Driver) -> None:
        if driver.watch is not None:
            driver.watch.cancel()
            await asyncio.gather(driver.watch, return_exceptions=True)
        await driver.channel.close()
