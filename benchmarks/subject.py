"""``usbplugin`` in a process of its own, with a source controlled by the benchmark."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from benchmarks.commands import obey
from usbplugin.agent import Agent
from usbplugin.config import Config, Flapping
from usbplugin.discovery import AllPorts, DeviceNumber, Port, PortGone, PortPresent, UsbInterface
from usbplugin.discovery.entry import Descriptors
from usbplugin.foundation.places import Places
from usbplugin.telemetry import logs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from usbplugin.discovery import Fact, Post

RESOURCE = "usbplugin/serial"
BATCH = 1000
"""How many facts a churn posts before it waits for them to be handled."""
INVENTED = 1000
"""One fact in this many is about a device never seen before."""
_SENTINEL = 99_999
_NULL = DeviceNumber.of(Path("/dev/null").stat().st_rdev)


def port(number: int, serial: str = "", directory: str = "") -> Port:
    usb = UsbInterface(
        "0403",
        "6001",
        serial or f"SN-{number:04}",
        "FTDI",
        "FT232R USB UART",
        location=f"0000:00:14.0-{number}",
    )
    return Port(f"ttyUSB{number}", "/dev/null", _NULL, usb, driver="ftdi_sio", origin=directory)


def lay(directory: Path, ports: Iterable[Port]) -> None:
    """Create the ports' directory entries, which container starts look at."""
    directory.mkdir()
    for one in ports:
        assert one.usb is not None
        (directory / one.name).symlink_to(one.node)
        content = msgspec.json.encode(_descriptors(one.usb, one.driver))
        (directory / f".{one.name}.json").write_bytes(content)


def _descriptors(usb: UsbInterface, driver: str) -> Descriptors:
    return Descriptors(
        usb.vendor_id,
        usb.product_id,
        usb.serial,
        usb.manufacturer,
        usb.product,
        location=usb.location,
        driver=driver,
    )


def device_id(number: int) -> str:
    return f"usb-0403:6001-SN-{number:04}-if00"


class ScriptedSource:
    """A source that posts what it is told to, from a thread of its own."""

    name = "scripted"

    def __init__(self, count: int, directory: Path) -> None:
        self._ports = tuple(port(number, directory=str(directory)) for number in range(count))
        lay(directory, self._ports)
        self._stopped = threading.Event()
        self.running = threading.Event()
        self._post: Post

    def run(self, post: Post) -> None:
        post(AllPorts(self.name, self._ports, "start"))
        self._post = post
        self.running.set()
        self._stopped.wait()

    def scan(self) -> tuple[Port, ...]:
        return self._ports

    def stop(self) -> None:
        self._stopped.set()

    def post(self, fact: Fact) -> float:
        """Post a fact; return the time."""
        now = time.monotonic()
        self._post(fact)
        return now


class Script:
    """The benchmark's commands; runs in a thread beside the event loop."""

    def __init__(
        self, agent: Agent, source: ScriptedSource, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._agent = agent
        self._source = source
        self._loop = loop
        self._facts = 0

    def commands(self) -> dict[str, Callable[[int], float]]:
        return {"pull": self.pull, "plug": self.plug, "storm": self.storm, "churn": self.churn}

    def pull(self, number: int) -> float:
        return self._source.post(PortGone(self._source.name, f"ttyUSB{number}"))

    def plug(self, number: int) -> float:
        return self._source.post(PortPresent(self._source.name, port(number)))

    def storm(self, size: int) -> float:
        """Plug and unplug ``size`` devices as fast as possible; one more stays."""
        began = time.monotonic()
        for number in range(1, size):
            self.plug(number)
        for number in range(1, size):
            self.pull(number)
        self.plug(size)
        return began

    def churn(self, facts: int) -> float:
        """Post ``facts`` facts about devices coming and going, some with invented serials."""
        while facts > 0:
            for _ in range(BATCH // 2):
                self._facts += 1
                number = self._facts % 64
                invented = f"X{self._facts}" if self._facts % (INVENTED // 2) == 0 else ""
                self._source.post(PortPresent(self._source.name, port(number, invented)))
                self.pull(number)
            facts -= BATCH
            self._wait_for_sentinel()
        return float(self._facts)

    def _wait_for_sentinel(self) -> None:
        self.plug(_SENTINEL)
        asyncio.run_coroutine_threadsafe(self._until_sentinel(present=True), self._loop).result()
        self.pull(_SENTINEL)
        asyncio.run_coroutine_threadsafe(self._until_sentinel(present=False), self._loop).result()

    async def _until_sentinel(self, *, present: bool) -> None:
        name = device_id(_SENTINEL)
        while not any(
            d.id == name and d.health.is_there is present for d in self._agent.custody.devices
        ):
            await self._agent.custody.changed()


async def _run(root: Path, count: int) -> None:
    source = ScriptedSource(count, root / "dev")
    agent = Agent(
        # The benchmark unplugs devices far more often than the flapping limit would allow.
        Config(flapping=Flapping(times=60, window="1ms")),
        [source],
        Places(
            kubelet_dir=root / "kubelet",
            link_dir=root / "links",
            state_dir=root / "state",
            pod_resources=root / "none",
        ),
    )
    script = Script(agent, source, asyncio.get_running_loop())

    def listen() -> None:
        source.running.wait()
        obey(script.commands())

    threading.Thread(target=listen, daemon=True).start()
    await agent.run(asyncio.Event())


def main() -> None:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    parser = argparse.ArgumentParser(prog="benchmarks.subject")
    parser.add_argument("root", type=Path)
    parser.add_argument("count", type=int)
    options = parser.parse_args()
    # Log as many lines as in production, and as long ones.
    logs.configure("info", logs.LogFormat.TEXT, sys.stderr)
    asyncio.run(_run(options.root, options.count))


if __name__ == "__main__":
    main()
