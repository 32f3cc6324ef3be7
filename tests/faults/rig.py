"""A node to do harm to: virtual devices, an embedded kubelet, and the real ``usbplugin serve``.

The rig knows what is plugged in, and so what the kubelet ought to be told; and which hardware each
device ID has ever stood for, and so when an ID is given to another device.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults.proc import Usage
from tests.faults.volume import Volume
from usbplugin.virtual import (
    Container,
    CreateContainerConfigError,
    Descriptors,
    EmbeddedKubelet,
    EmbeddedKubeletError,
    Peer,
    VirtualBus,
)

if TYPE_CHECKING:
    import random
    import signal
    from collections.abc import AsyncIterator, Callable

    from usbplugin.virtual import VirtualPort

SERIAL = "usbplugin/serial"
OWN_POD = "kube-system/usbplugin-7xk2p"
CONFIG = "flapping: {times: 60, window: 1ms}\n"
"""Here devices come and go more often than one that is to be trusted may."""

ROOT = Path(__file__).parents[2]
_NAMES = tuple(f"tty{kind}{number}" for kind in ("USB", "ACM") for number in range(8))
_SLOWEST_START = 15.0
_SLOWEST_STOP = 10.0
_RETRY = 0.1


class Broken(AssertionError):  # noqa: N818 -- a promise is, not the program
    """Something that must hold does not."""


@dataclass(eq=False)
class Thing:
    """A piece of hardware. Of twins, only the place tells one from the other."""

    serial: str
    location: str
    device_id: str = ""
    """Empty as long as it is not known: which twin is named by the serial is up to the plugin."""
    port: VirtualPort | None = None
    """None while it is away."""

    def __str__(self) -> str:
        return f"{self.serial}@{self.location}"


@dataclass(eq=False)
class Pod:
    """A running container, and the node that it was last started with."""

    thing: Thing
    container: Container
    node: str = ""


@dataclass
class Rig:
    """Made by ``rig``."""

    root: Path
    kubelet_volume: Volume
    link_volume: Volume
    state_volume: Volume
    bus: VirtualBus
    kubelet: EmbeddedKubelet
    log: Path
    watched: bool = False
    """Whether the kubelet's plugin watcher finds the plugin, instead of its registering."""
    pods: list[Pod] = field(default_factory=list)
    """Their containers run as long as the campaign."""
    stuck: bool = False
    """Whether no cable can be moved."""
    forgetful: bool = False
    """Whether what the plugin remembers of devices that nobody holds may be lost."""
    refusal: str = ""
    """The last of a container."""
    _guests: list[Pod] = field(default_factory=list)
    """Gone again, which the plugin learns of only by asking."""
    _process: subprocess.Popen[bytes] | None = None
    _count: int = 0

    def __post_init__(self) -> None:
        self.things = [Thing(f"S{number}", f"1.{number}") for number in range(6)]
        for thing in self.things:
            thing.device_id = f"usb-0403:6001-{thing.serial}-if00"
        self.things += [Thing("TWIN", "2.1"), Thing("TWIN", "2.2")]

    @property
    def kubelet_dir(self) -> Path:
        return self.kubelet.directory

    @property
    def link_dir(self) -> Path:
        return self.link_volume.path / "links"

    @property
    def state_dir(self) -> Path:
        return self.state_volume.path / "state"

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def sockets(self) -> list[Path]:
        """The plugin's own."""
        directory = self.root / "registry" if self.watched else self.kubelet_dir
        return sorted(directory.glob("usbplugin-*.sock"))

    def usage(self) -> Usage:
        return Usage.of(self.pid)

    # The plugin.

    def command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "tests.faults.victim", "serve", "--config", str(self.config)),
            *("--no-udev", "--device-dir", str(self.bus.directory)),
            *("--kubelet-dir", str(self.kubelet_dir), "--link-dir", str(self.link_dir)),
            *("--state-dir", str(self.state_dir)),
            *("--registry-dir", str(self.root / "registry")),
            *("--pod-resources", str(self.root / "pods/kubelet.sock"), "--own-pod", OWN_POD),
        ]

    def launch(self, *prefix: str) -> subprocess.Popen[bytes]:
        """Another instance, not waited for."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("USBPLUGIN_")}
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*prefix, *self.command()], cwd=ROOT, stderr=log, env=environment
            )

    def start(self, *prefix: str) -> None:
        self._process = self.launch(*prefix)

    def replace(self, successor: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        """Take another instance for the plugin from now on; return the one before."""
        assert self._process is not None
        before, self._process = self._process, successor
        return before

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def end(self, number: signal.Signals) -> int:
        """End the plugin; return its exit status."""
        self.send(number)
        assert self._process is not None
        return await asyncio.to_thread(self._process.wait, _SLOWEST_STOP)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def check_alive(self) -> None:
        assert self._process is not None
        if (status := self._process.poll()) is not None:
            raise Broken(f"the plugin has ended by itself, status {status}")

    # Cables.

    def plug(self, thing: Thing, rng: random.Random) -> None:
        taken = {other.port.name for other in self.things if other.port}
        name = rng.choice([name for name in _NAMES if name not in taken])
        descriptors = Descriptors(
            vendor_id="0403", product_id="6001", serial=thing.serial, location=thing.location
        )
        thing.port = self.bus.plug(name, descriptors, peer=Peer.ECHO)

    def pull(self, thing: Thing) -> None:
        assert thing.port is not None
        self.bus.unplug(thing.port.name)
        thing.port = None

    def move_a_cable(self, rng: random.Random) -> None:
        if self.stuck:
            return
        thing = rng.choice(self.things)
        if thing.port is None:
            self.plug(thing, rng)
        else:
            self.pull(thing)

    async def storm(self, rng: random.Random) -> None:
        """Cables come and go until it is cancelled."""
        while True:
            for _ in range(rng.randint(1, 6)):
                self.move_a_cable(rng)
            await asyncio.sleep(rng.uniform(0.001, 0.05))

    # The truth.

    def lies(self) -> list[str]:
        """In what the kubelet's view differs from what is plugged in."""
        resource = self.kubelet.resource(SERIAL)
        if not resource.connected:
            return ["no plugin is connected"]
        found = []
        left = set(resource.healthy)
        for thing in self.things:
            healthy = thing.device_id in left
            left.discard(thing.device_id)
            if healthy and thing.port is None:
                found.append(f"{thing} is away, and Healthy")
            if thing.device_id and not healthy and thing.port and not self._may_be_displaced(thing):
                found.append(f"{thing} is there, and not Healthy")
        strangers = [thing for thing in self.things if not thing.device_id and thing.port]
        if len(left) != len(strangers):
            found.append(f"Healthy besides: {sorted(left)}; there besides: {len(strangers)}")
        return found

    def _may_be_displaced(self, thing: Thing) -> bool:
        """Whether a container was given it under another number than it has now."""
        assert thing.port is not None
        pods = (*self.pods, *self._guests)
        return any(pod.thing is thing and pod.node != thing.port.node for pod in pods)

    async def until_true(self, within: float) -> float:
        """Seconds until the kubelet knows the truth."""
        began = time.monotonic()
        try:
            await self.kubelet.wait_for(lambda: not self.lies(), within)
        except TimeoutError:
            self.check_alive()
            raise Broken(
                f"after {within:g} s: {'; '.join(self.lies())}; {self.kubelet.describe()}"
            ) from None
        return time.monotonic() - began

    async def until_remembered(self, within: float) -> None:
        """Wait until a plugin that started now would know of all that the kubelet was told of."""
        try:
            async with asyncio.timeout(within):
                while self._forgotten():  # noqa: ASYNC110 -- nobody tells of a file
                    await asyncio.sleep(_RETRY)
        except TimeoutError:
            raise Broken(f"after {within:g} s no state of {self._forgotten()} is kept") from None

    def _forgotten(self) -> list[str]:
        listed = self.kubelet.resource(SERIAL).devices
        return sorted(name for name in listed if not (self.state_dir / f"{name}.json").exists())

    # Containers.

    async def verify(self, rng: random.Random, within: float) -> None:
        """Restart all containers, and start one more: each gets its own device, or waits."""
        for pod in self.pods:
            await self._restart(pod, within)
        self._guests.clear()
        await self.until_true(within)
        for thing in self.things:
            if thing.port and not thing.device_id:
                await self._learn(thing)
        held = {pod.thing for pod in self.pods}
        free = [thing for thing in self.things if thing.port and thing not in held]
        if free:
            guest = await self._run(rng.choice(free))
            guest.container.remove()
            self._guests.append(guest)

    async def _restart(self, pod: Pod, within: float) -> None:
        """As the kubelet does, which tries again and again."""
        try:
            async with asyncio.timeout(within):
                while not await self._try_restart(pod):  # noqa: ASYNC110 -- as the kubelet does
                    await asyncio.sleep(_RETRY)
        except TimeoutError:
            raise Broken(f"{pod.thing} is there, and its container waits; {self.refusal}") from None

    async def _try_restart(self, pod: Pod) -> bool:
        """Whether that is settled: it runs, or waits for a device that is away."""
        thing = pod.thing
        try:
            await pod.container.restart()
        except CreateContainerConfigError as error:
            self.refusal = str(error)
            return thing.port is None
        if thing.port is None:
            raise Broken(f"{thing} is away, and its container was started")
        self._check_path(pod)
        return True

    def _check_path(self, pod: Pod) -> None:
        (mount,) = pod.container.mounts
        found = os.path.realpath(mount.host_path)
        assert pod.thing.port is not None
        if found != pod.thing.port.node:
            raise Broken(
                f"{pod.thing} is {pod.thing.port.node}, its container was given"
                f" {mount.host_path}, which is {found}"
            )
        pod.node = found

    async def _run(self, thing: Thing) -> Pod:
        self._count += 1
        try:
            container = await self.kubelet.run_container(
                SERIAL, device_ids=[thing.device_id], pod=f"pod{self._count}"
            )
        except EmbeddedKubeletError as error:
            raise Broken(f"{thing} is there, and no container gets it: {error}") from error
        pod = Pod(thing, container)
        self._check_path(pod)
        return pod

    async def hold(self, thing: Thing) -> None:
        """Have a container that keeps it."""
        if not thing.device_id:
            await self._learn(thing)
        self.pods.append(await self._run(thing))

    async def _learn(self, thing: Thing) -> None:
        """Find out what a twin is called: by where the path leads that a container is given."""
        known = {other.device_id for other in self.things}
        assert thing.port is not None
        for device_id in sorted(self.kubelet.resource(SERIAL).healthy - known):
            container = await self.kubelet.admit(SERIAL, device_ids=[device_id], pod="learn")
            (mount,) = container.mounts
            container.remove()
            node = os.path.realpath(mount.host_path)
            owner = next(one for one in self.things if one.port and one.port.node == node)
            self._guests.append(Pod(owner, container, node))
            if owner is thing:
                thing.device_id = device_id
                return
        raise Broken(f"{thing} is there, and no ID leads to it")

    def forget_names(self) -> None:
        """What nobody holds and only its place tells from others may be named anew."""
        if self.forgetful:
            held = {pod.thing for pod in self.pods}
            for thing in self.things:
                if thing.serial == "TWIN" and thing not in held:
                    thing.device_id = ""
            self.forgetful = False

    async def wait_for(self, condition: Callable[[], bool], within: float) -> bool:
        """Whether it came true."""
        with suppress(TimeoutError):
            await self.kubelet.wait_for(condition, within)
        return condition()


@asynccontextmanager
async def rig(root: Path, rng: random.Random, log: Path, *, watched: bool) -> AsyncIterator[Rig]:
    """A node with everything plugged in, the plugin running, and some containers."""
    async with AsyncExitStack() as stack:
        volumes = Volume(root / "k"), Volume(root / "l"), Volume(root / "s")
        for volume in volumes:
            stack.callback(volume.close)
        kubelet_volume, *_ = volumes
        bus = stack.enter_context(VirtualBus(root / "dev"))
        kubelet = EmbeddedKubelet(
            kubelet_volume.path / "d",
            pod_resources=root / "pods/kubelet.sock",
            registry=root / "registry" if watched else None,
        )
        kubelet.other_pods = [OWN_POD]
        await kubelet.start()
        stack.push_async_callback(kubelet.stop)
        made = Rig(root, *volumes, bus, kubelet, log, watched)
        made.config.write_text(CONFIG + ("registration: watcher\n" if watched else ""))
        for thing in made.things:
            made.plug(thing, rng)
        stack.callback(made.kill)
        made.start()
        await made.until_true(_SLOWEST_START)
        for thing in (*made.things[:3], made.things[-2]):
            await made.hold(thing)
        yield made
