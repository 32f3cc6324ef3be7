"""The whole job as a short story in the terminal, with every step checked.

A real ``usbplugin serve`` runs beside an embedded kubelet and virtual ttys; nothing the plugin
itself does is simulated.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from usbplugin.virtual.containers import CreateContainerConfigError
from usbplugin.virtual.kubelet import EmbeddedKubelet
from usbplugin.virtual.telling import Teller, kill, since
from usbplugin.virtual.ttys import Descriptors, VirtualBus

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Callable

    from usbplugin.virtual.containers import Container

RESOURCE = "usbplugin/serial"
DEVICE = "usb-0403:6001-GPS-A7-if00"
_GPS = Descriptors(
    vendor_id="0403",
    product_id="6001",
    serial="GPS-A7",
    manufacturer="FTDI",
    product="GPS receiver",
    location="virtual-1",
)
_PATIENCE = 10.0


async def tell(*, verbose: bool = False) -> bool:
    """Run the demo; return whether every check passed. Takes a few seconds and needs no root."""
    teller = Teller()
    began = time.monotonic()
    async with AsyncExitStack() as exits:
        root = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="usbplugin-")))
        log = None if verbose else exits.enter_context((root / "log").open("w+b"))
        demo = _Demo(root, teller)
        try:
            await demo.run(exits, log.fileno() if log else None)
        except (TimeoutError, OSError, CreateContainerConfigError) as error:
            teller.check(f"the demo stopped here: {error}", held=False)
        if teller.failed and log:
            log.seek(0)
            teller.say("The plugin's log:\n" + log.read().decode("utf-8", "backslashreplace"))
    return teller.conclude(
        began, "On a cluster, real USB ports work the same way: see deploy/ and README.md."
    )


class _Demo:
    def __init__(self, root: Path, teller: Teller) -> None:
        self._root = root
        self._tell = teller
        self._kubelet = EmbeddedKubelet(root / "kubelet", pod_resources=root / "pod-resources")
        self._bus_directory = root / "dev"

    async def run(self, exits: AsyncExitStack, log: int | None) -> None:
        await exits.enter_async_context(self._kubelet)
        bus = exits.enter_context(VirtualBus(self._bus_directory))
        plugin = await self._start(exits, log)
        container = await self._plug_and_allocate(bus)
        await self._unplug_and_replug(bus, container)
        await self._restart_kubelet()
        await self._stop(plugin)

    async def _start(self, exits: AsyncExitStack, log: int | None) -> Process:
        self._tell.chapter("usbplugin starts beside a kubelet")
        command = [
            *(sys.executable, "-m", "usbplugin", "serve", "--no-udev"),
            *("--device-dir", str(self._bus_directory)),
            *("--kubelet-dir", str(self._root / "kubelet")),
            *("--link-dir", str(self._root / "links")),
            *("--state-dir", str(self._root / "state")),
            *("--pod-resources", str(self._root / "pod-resources")),
        ]
        self._tell.say("$ usbplugin " + " ".join(command[3:]))
        began = time.monotonic()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("USBPLUGIN_")}
        plugin = await asyncio.create_subprocess_exec(*command, stderr=log, env=environment)
        exits.callback(kill, plugin)  # before anything can go wrong
        await self._kubelet.wait_for(
            lambda: self._kubelet.resource(RESOURCE).connected, within=_PATIENCE
        )
        self._tell.check(f"registered {RESOURCE} {since(began)} after the process started")
        return plugin

    async def _plug_and_allocate(self, bus: VirtualBus) -> Container:
        self._tell.chapter("A GPS receiver is plugged in as ttyUSB0")
        began = time.monotonic()
        port = bus.plug("ttyUSB0", _GPS)
        await self._until(lambda: DEVICE in self._kubelet.resource(RESOURCE).healthy)
        self._tell.check(f"the kubelet knows after {self._latency(began)}: {DEVICE} is Healthy")

        self._tell.chapter("A pod asks for usbplugin/serial: 1")
        container = await self._kubelet.run_container(RESOURCE, pod="gps-reader")
        for spec in container.devices:
            self._tell.say(f"DeviceSpec {spec.host_path} -> {spec.container_path}")
        for mount in container.mounts:
            self._tell.say(f"Mount {mount.host_path} -> {mount.container_path}")
            self._tell.say("(a pty can only be mounted; a real USB tty would be a DeviceSpec)")
        for name, value in sorted(container.envs.items()):
            self._tell.say(f"{name}={value}")
        self._tell.check(
            "Allocate grants /dev/ttyUSB0 and nothing else",
            held=[m.container_path for m in container.mounts] == ["/dev/ttyUSB0"],
        )
        await self._talk(container, port.peer_path)
        return container

    async def _talk(self, container: Container, peer_path: str) -> None:
        """Send bytes both ways through the node the container was granted."""
        (mount,) = container.mounts
        application = os.open(mount.host_path, os.O_RDWR | os.O_NOCTTY)
        receiver = os.open(peer_path, os.O_RDWR | os.O_NOCTTY)
        try:
            sentence, command = b"$GPGGA,123519,4807.038,N,01131.000,E*47\r\n", b"$PMTK101*32\r\n"
            heard = await _carry(receiver, application, sentence)
            answered = await _carry(application, receiver, command)
        finally:
            os.close(application)
            os.close(receiver)
        self._tell.say(f"the container reads {json.dumps(heard.decode())}")
        self._tell.check(
            "bytes flow both ways through the node it was granted",
            held=(heard, answered) == (sentence, command),
        )

    async def _unplug_and_replug(self, bus: VirtualBus, container: Container) -> None:
        self._tell.chapter("Somebody pulls the cable")
        began = time.monotonic()
        bus.unplug("ttyUSB0")
        await self._until(lambda: DEVICE not in self._kubelet.resource(RESOURCE).healthy)
        resource = self._kubelet.resource(RESOURCE)
        self._tell.check(
            f"the kubelet knows after {self._latency(began)}: {DEVICE} is Unhealthy, still listed",
            held=set(resource.devices) == {DEVICE},
        )
        try:
            await container.restart()
        except CreateContainerConfigError as error:
            self._tell.say(str(error))
            self._tell.check("the container does not start without its device; it waits")
        else:
            self._tell.check("the container does not start without its device", held=False)

        self._tell.chapter("It is plugged in again, and comes up as ttyUSB5")
        began = time.monotonic()
        port = bus.replug("ttyUSB0", "ttyUSB5")
        await self._until(lambda: DEVICE in self._kubelet.resource(RESOURCE).healthy)
        self._tell.check(
            f"the kubelet knows after {self._latency(began)}: the same {DEVICE} is Healthy",
            held=set(self._kubelet.resource(RESOURCE).devices) == {DEVICE},
        )
        await container.restart()
        self._tell.check("the waiting container starts, using the kubelet's cached answer")
        await self._talk(container, port.peer_path)

    async def _restart_kubelet(self) -> None:
        self._tell.chapter("The kubelet restarts: it deletes all sockets and forgets the plugin")
        await self._kubelet.stop()
        began = time.monotonic()
        await self._kubelet.start()
        await self._until(lambda: DEVICE in self._kubelet.resource(RESOURCE).healthy)
        self._tell.check(f"registered again and streaming after {self._latency(began)}")

    async def _stop(self, plugin: Process) -> None:
        self._tell.chapter("The plugin is told to stop (SIGTERM)")
        began = time.monotonic()
        plugin.send_signal(signal.SIGTERM)
        code = await asyncio.wait_for(plugin.wait(), _PATIENCE)
        left = list((self._root / "kubelet").glob("usbplugin-*.sock"))
        self._tell.check(
            f"it exits after {since(began)} with code {code}, leaving no socket behind",
            held=code == 0 and not left,
        )

    async def _until(self, condition: Callable[[], bool]) -> None:
        await self._kubelet.wait_for(condition, within=_PATIENCE)

    def _latency(self, began: float) -> str:
        """Time from an event until the kubelet received the message about it."""
        return f"{1000 * (self._kubelet.log.messages[-1].time - began):.1f} ms"


async def _carry(source: int, target: int, data: bytes) -> bytes:
    """Write to one end and read from the other until everything has come through."""
    loop = asyncio.get_running_loop()
    os.write(source, data)
    received = b""
    async with asyncio.timeout(_PATIENCE):
        while len(received) < len(data):
            readable = asyncio.Event()
            loop.add_reader(target, readable.set)
            try:
                await readable.wait()
            finally:
                loop.remove_reader(target)
            received += os.read(target, 4096)
    return received
