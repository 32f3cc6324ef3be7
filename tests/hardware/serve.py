"""A node with real USB devices: ``usbplugin serve`` as a process, an embedded kubelet beyond it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tests.node import SERIAL, BareNode, Process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Sequence

# Programs start slowly in an emulated machine.
TIMEOUT = 30.0

_CONFIG = """\
# Tests pull cables faster than people do.
flapping: {times: 60, window: 1s}
resources:
"""


class HardwareNode(BareNode):
    """The kubelet's side of a machine whose USB devices are real."""

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
        config = self.root / "config.yaml"
        config.write_text(_CONFIG + resources + "\n")
        known = len(self.kubelet.log.messages)
        process = Process(wrap(self.command("--config", str(config), *flags)))
        try:
            await self.kubelet.wait_for(lambda: len(self.kubelet.log.messages) > known, TIMEOUT)
            yield process
        finally:
            process.kill()

    async def healthy(self, *device_ids: str) -> None:
        """Wait until exactly these devices are healthy."""
        await self.kubelet.wait_healthy(SERIAL, device_ids, TIMEOUT)

    def states(self) -> dict[str, bool]:
        """All devices that the kubelet knows, and whether they are healthy."""
        devices = self.kubelet.resource(SERIAL).devices
        return {device.id: device.healthy for device in devices.values()}
