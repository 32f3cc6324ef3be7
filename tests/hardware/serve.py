"""A node with real USB devices: ``usbplugin serve`` as a process, an embedded kubelet beyond it."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from tests.node import SERIAL, BareNode, Process

from .sysfs import Tty

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from prometheus_client.samples import Sample

# Programs start slowly in an emulated machine.
TIMEOUT = 30.0

_CONFIG = """\
# Tests pull cables faster than people do.
flapping: {times: 60, window: 1s}
resources:
"""


def acm_id(serial: str, interface: int = 0) -> str:
    """The ID of a gadget's acm function, by the gadget's default identifiers."""
    return f"usb-2341:0043-{serial}-if{interface:02}"


class HardwareNode(BareNode):
    """The kubelet's side of a machine whose USB devices are real."""

    def __init__(self) -> None:
        super().__init__()
        self.config = self.root / "config/config.yaml"
        self.config.parent.mkdir()

    @asynccontextmanager
    async def serve(
        self,
        *flags: str,
        resources: str = f"- name: {SERIAL}",
        wrap: Callable[[Sequence[str]], Sequence[str]] = list,
    ) -> AsyncIterator[Process]:
        """Run the plugin; it is registered, and has told the kubelet of what is there.

        Args:
            flags: More of them.
            resources: The list of resources, in YAML.
            wrap: Makes a command that runs the given one in other surroundings.
        """
        self.config.write_text(f"{_CONFIG}{resources}\n")
        async with self.run(wrap(self.command("--config", str(self.config), *flags))) as process:
            yield process

    @asynccontextmanager
    async def run(self, command: Sequence[str]) -> AsyncIterator[Process]:
        """Run a command that is the plugin in one way or another, as ``serve`` does."""
        log = self.kubelet.log
        known = {message.endpoint for message in log.messages}
        process = Process(command)
        try:
            try:
                await self.kubelet.wait_for(
                    lambda: any(message.endpoint not in known for message in log.messages), TIMEOUT
                )
            except TimeoutError as error:
                raise TimeoutError(f"{error}\n{process.log()}") from None
            yield process
        finally:
            process.kill()

    async def healthy(self, *device_ids: str) -> None:
        """Wait until exactly these devices are healthy."""
        await self.kubelet.wait_healthy(SERIAL, device_ids, TIMEOUT)

    async def some_healthy(self, count: int) -> frozenset[str]:
        """Wait until so many devices are healthy, and return their IDs."""
        resource = self.kubelet.resource
        await self.kubelet.wait_for(lambda: len(resource(SERIAL).healthy) == count, TIMEOUT)
        return resource(SERIAL).healthy

    def states(self) -> dict[str, bool]:
        """All devices that the kubelet knows, and whether they are healthy."""
        devices = self.kubelet.resource(SERIAL).devices
        return {device.id: device.healthy for device in devices.values()}

    def usb_device(self, device_id: str) -> Path:
        """The USB device's directory in sysfs that the links of a device lead to."""
        return Tty.named(Path(self.node_of(device_id)).name).device

    def node_of(self, device_id: str, slot: str = "if00") -> str:
        """The device node that a link of a device leads to."""
        return os.path.realpath(self.link_dir / device_id / slot)

    async def get(self, path: str) -> str:
        """What the plugin answers on its Unix socket."""
        socket = self.places.control_socket
        reader, writer = await asyncio.open_unix_connection(socket)
        writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        answer = (await reader.read()).decode()
        writer.close()
        head, _, body = answer.partition("\r\n\r\n")
        assert " 200 " in head.splitlines()[0], head
        return body

    async def until_held(self, device_id: str, holder: str) -> None:
        """Wait until the plugin knows who holds a device."""

        def is_held(row: dict[str, object]) -> bool:
            return row["id"] == device_id and row["holders"] == [holder]

        async with asyncio.timeout(TIMEOUT):
            while not any(map(is_held, json.loads(await self.get("/devices")))):
                pass

    async def until_health(self, device_id: str, health: str, *, because: str = "") -> None:
        """Wait until the plugin finds a device in that state, for a reason that says so."""
        rows: list[dict[str, str]] = []
        try:
            async with asyncio.timeout(TIMEOUT):
                while not any(
                    row["health"] == health and because in row["reason"]
                    for row in rows
                    if row["id"] == device_id
                ):
                    rows = json.loads(await self.get("/devices"))
        except TimeoutError:
            raise AssertionError(f"{device_id} is not {health} ({because}): {rows}") from None

    async def metrics(self) -> list[Sample]:
        """All that the plugin counts, as Prometheus reads it."""
        families = text_string_to_metric_families(await self.get("/metrics"))
        return [sample for family in families for sample in family.samples]
