"""A node in a temporary directory: an embedded kubelet, a virtual bus, and usbplugin on it."""

from __future__ import annotations

import asyncio
import math
import os
import subprocess
import sys
import tempfile
import threading
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

from usbplugin.agent import Agent
from usbplugin.config import Config, Flapping
from usbplugin.discovery import DirectorySource
from usbplugin.foundation.places import Places
from usbplugin.virtual.kubelet import EmbeddedKubelet
from usbplugin.virtual.ttys import Descriptors, VirtualBus, VirtualPort

if TYPE_CHECKING:
    import signal
    from collections.abc import AsyncIterator, Callable, Sequence

    from usbplugin.discovery import Source
    from usbplugin.inventory import Device, Health

SERIAL = "usbplugin/serial"

_STEP = 0.5

# Tests pull cables faster than people do.
_PATIENT = Config(flapping=Flapping(times=60))


class BareNode:
    """The kubelet's side. The parts share short paths, since sockets cannot have long ones."""

    def __init__(self) -> None:
        self._exits = AsyncExitStack()
        self.root = Path(self._exits.enter_context(tempfile.TemporaryDirectory(prefix="up-")))
        self.places = Places(
            kubelet_dir=self.root / "kubelet",
            registry_dir=self.root / "registry",
            pod_resources=self.root / "pod-resources/kubelet.sock",
            link_dir=self.root / "links",
            state_dir=self.root / "state",
            cdi_dir=self.root / "cdi",
            features_dir=self.root,
        )
        self.kubelet_dir = self.places.kubelet_dir
        self.link_dir = self.places.link_dir
        self.state_dir = self.places.state_dir
        self.kubelet = EmbeddedKubelet(
            self.kubelet_dir,
            pod_resources=self.places.pod_resources,
            registry=self.places.registry_dir,
        )

    async def __aenter__(self) -> Self:
        await self.kubelet.start()
        self._exits.push_async_callback(self.kubelet.stop)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exits.aclose()

    def sockets(self) -> set[str]:
        """Names of the plugin sockets in the kubelet's directory."""
        return {path.name for path in self.kubelet_dir.glob("usbplugin-*.sock")}

    def command(self, *flags: str) -> list[str]:
        """How to run the real ``usbplugin serve`` on this node."""
        return [
            *(sys.executable, "-m", "usbplugin", "serve"),
            *("--kubelet-dir", str(self.kubelet_dir), "--link-dir", str(self.link_dir)),
            *("--state-dir", str(self.state_dir)),
            *("--cdi-dir", str(self.places.cdi_dir)),
            *("--features-dir", str(self.places.features_dir)),
            *("--pod-resources", str(self.places.pod_resources)),
            *("--registry-dir", str(self.places.registry_dir), *flags),
        ]

    @asynccontextmanager
    async def run_agent(
        self,
        sources: Sequence[Source],
        config: Config,
        config_file: Path | None = None,
        http_address: tuple[str, int] | None = None,
    ) -> AsyncIterator[Agent]:
        """An agent in this event loop; it has to stop by itself when asked to."""
        stopping = asyncio.Event()
        agent = Agent(config, sources, self.places, config_file, http_address)
        running = asyncio.create_task(agent.run(stopping))
        try:
            yield agent
        finally:
            stopping.set()
            await asyncio.wait_for(running, 10)


class Node(BareNode):
    """With virtual devices."""

    def __init__(self) -> None:
        super().__init__()
        self.device_dir = self.root / "dev"
        self.device_dir.mkdir()
        self.bus = self._exits.enter_context(VirtualBus(self.device_dir))

    @staticmethod
    def descriptors(serial: str, *, location: str = "", interface: int = 0) -> Descriptors:
        return Descriptors(
            vendor_id="0403",
            product_id="6001",
            serial=serial,
            location=location,
            interface=interface,
        )

    def plug(self, name: str, serial: str) -> VirtualPort:
        return self.bus.plug(name, self.descriptors(serial))

    async def until_connected(self, resource: str = SERIAL) -> None:
        """Wait until the kubelet has a stream from the plugin."""
        await self.kubelet.wait_for(
            lambda: resource in self.kubelet.resources and self.kubelet.resource(resource).connected
        )

    async def until_held(self, agent: Agent, device_id: str) -> None:
        """Wait until the agent knows that a container holds the device."""
        await self._until(agent, lambda device: bool(device.holders), device_id)

    async def until_health(self, agent: Agent, device_id: str, health: Health) -> None:
        """Wait until the agent finds the device in that state."""
        await self._until(agent, lambda device: device.health is health, device_id)

    async def _until(
        self, agent: Agent, condition: Callable[[Device], bool], device_id: str
    ) -> None:
        async with asyncio.timeout(10):
            while not any(
                device.id == device_id and condition(device) for device in agent.custody.devices
            ):
                await agent.custody.changed()

    @asynccontextmanager
    async def agent(
        self,
        config: Config = _PATIENT,
        device_dir: Path | None = None,
        config_file: str | None = None,
        http_address: tuple[str, int] | None = None,
    ) -> AsyncIterator[Agent]:
        """An agent that discovers the virtual devices."""
        async with self.run_agent(
            [DirectorySource(device_dir or self.device_dir)],
            config,
            Path(config_file) if config_file else None,
            http_address,
        ) as agent:
            yield agent

    @asynccontextmanager
    async def serve(self, *flags: str) -> AsyncIterator[Process]:
        """The real ``usbplugin serve`` as a process of its own."""
        process = Process(self.command("--no-udev", "--device-dir", str(self.device_dir), *flags))
        try:
            yield process
        finally:
            process.kill()


class Process:
    """``usbplugin serve``, its log kept for the error message."""

    def __init__(self, command: Sequence[str]) -> None:
        self._lines: list[str] = []
        self._logged = threading.Condition()
        self._process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            env={k: v for k, v in os.environ.items() if not k.startswith("USBPLUGIN_")},
        )

        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def log(self) -> str:
        """All that it has logged so far; all there is once it has ended."""
        if self._process.poll() is not None:
            self._reader.join()
        with self._logged:
            return "".join(self._lines)

    async def wait_for_log(self, text: str, within: float = 10, times: int = 1) -> None:
        def wait() -> bool:
            # A machine that stands still, as virtual ones do now and then, costs one step at most.
            steps = math.ceil(within / _STEP)
            with self._logged:
                return any(
                    self._logged.wait_for(
                        lambda: "".join(self._lines).count(text) >= times, within / steps
                    )
                    for _ in range(steps)
                )

        assert await asyncio.to_thread(wait), f"never logged {text!r}:\n{self.log()}"

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def wait(self, within: float) -> int:
        return await asyncio.to_thread(self._process.wait, within)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as log:
            for line in log:
                with self._logged:
                    self._lines.append(line)
                    self._logged.notify_all()
