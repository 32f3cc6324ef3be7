"""Makes the pictures of README and docs from the real program: ``python docs/images/make.py``.

The demo is run in a terminal of its own and drawn as SVG; the status page is served by a real agent
beside the embedded kubelet, and photographed by headless Chromium. Only the USB bus is made up.
"""

from __future__ import annotations

import asyncio
import os
import pty
import re
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from rich.console import Console  # noqa: E402
from rich.terminal_theme import MONOKAI  # noqa: E402
from rich.text import Text  # noqa: E402

from tests.browser import browsing  # noqa: E402
from tests.node import SERIAL, BareNode  # noqa: E402
from usbplugin.agent import Agent  # noqa: E402
from usbplugin.config import Config, ResourceConfig  # noqa: E402
from usbplugin.discovery import (  # noqa: E402
    AllPorts,
    DeviceNumber,
    Port,
    PortGone,
    Post,
    UsbInterface,
)
from usbplugin.inventory import Selector  # noqa: E402

HERE = Path(__file__).parent
COLUMNS = 100
PORT = 9808
ZIGBEE = "usbplugin/zigbee"


def port(
    name: str, vendor: str, product: str, serial: str, maker: str, what: str, place: str
) -> Port:
    """A port as the udev source would describe it."""
    minor = int(name[-1])
    return Port(
        name=name,
        node=f"/dev/{name}",
        number=DeviceNumber(166 if "ACM" in name else 188, minor),
        driver="cdc_acm" if "ACM" in name else "ftdi_sio",
        usb=UsbInterface(
            vendor, product, serial, maker, what, location=f"0000:00:14.0-{place}", speed="12"
        ),
    )


PORTS = (
    port("ttyUSB0", "0403", "6015", "DK0A7RC4", "FTDI", "FT231X Modbus adapter", "1.1"),
    port("ttyUSB1", "10c4", "ea60", "0001", "Silicon Labs", "CP2102 Zigbee stick", "1.2"),
    port("ttyACM0", "1546", "01a8", "", "u-blox AG", "u-blox GNSS receiver", "2"),
    port("ttyACM1", "2341", "0043", "95433343", "Arduino SA", "Uno R3", "3.4"),
)


class Bus:
    """A source whose cables are pulled by hand."""

    name = "udev"
    learns_by = "uevents"

    def __init__(self) -> None:
        """Begin with all devices plugged in."""
        self._post: Post | None = None
        self._stopped = threading.Event()

    def run(self, post: Post) -> None:
        """Post what is there, then what is pulled."""
        self._post = post
        post(AllPorts(self.name, PORTS, "start"))
        self._stopped.wait()

    def scan(self) -> tuple[Port, ...]:
        """All there are."""
        return PORTS

    def stop(self) -> None:
        """Make ``run`` return."""
        self._stopped.set()

    def pull(self, name: str) -> None:
        """Pull a cable."""
        if self._post is not None:
            self._post(PortGone(self.name, name))


async def page() -> None:
    """The status page, light and dark."""
    config = Config(
        resources=(
            # Nobody made these nodes, so that no container's start may be checked.
            ResourceConfig(name=ZIGBEE, selectors=(Selector(vendor="10c4"),), pre_start=False),
            ResourceConfig(name=SERIAL, pre_start=False),
        )
    )
    async with BareNode() as node:
        bus, stopping = Bus(), asyncio.Event()
        agent = Agent(config, [bus], node.places, http_address=("127.0.0.1", PORT))
        running = asyncio.create_task(agent.run(stopping))
        await node.kubelet.wait_for(
            lambda: all(node.kubelet.resource(name).healthy for name in (ZIGBEE, SERIAL))
        )
        (zigbee,) = node.kubelet.resource(ZIGBEE).healthy
        await node.kubelet.run_container(ZIGBEE, pod="zigbee2mqtt")
        (modbus,) = (d for d in node.kubelet.resource(SERIAL).healthy if "0403" in d)
        await node.kubelet.run_container(SERIAL, pod="meter-reader", device_ids=[modbus])
        while not all(
            device.holders for device in agent.custody.devices if device.id in (modbus, zigbee)
        ):
            await agent.custody.changed()
        bus.pull("ttyACM1")
        async with browsing(f"http://127.0.0.1:{PORT}/") as shown:
            await shown.resize(1040, 600, scale=1.5)
            await shown.until("document.title == 'usbplugin: ready'")
            await shown.until("document.querySelectorAll('#events li').length >= 7")
            await shown.until("/unplugged/.test(document.querySelector('table').innerText)")
            for scheme in ("light", "dark"):
                await shown.prefer(scheme)
                (HERE / f"status-page-{scheme}.png").write_bytes(await shown.screenshot())
        stopping.set()
        await running


def demo() -> None:
    """The demo, as it looks in a terminal."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "usbplugin", "demo"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": str(COLUMNS)}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(command, stdout=slave, cwd=ROOT, env=environment) as process:
        os.close(slave)
        output = b""
        try:
            while piece := os.read(master, 65536):
                output += piece
        except OSError:
            pass  # EIO: the other end of a pty has been closed
    if process.returncode:
        raise SystemExit("the demo failed: usbplugin demo")
    text = re.sub(r"/tmp/usbplugin-\w+", "/tmp/node", output.decode().replace("\r", "")).strip()
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    console.print(Text.from_ansi(f"$ make demo\n\n{text}\n"))
    svg = console.export_svg(title="usbplugin", theme=MONOKAI, unique_id="demo")
    # A picture loads nothing from elsewhere: the reader's own monospaced font will do.
    svg = re.sub(r"\s*<!-- Generated .*?-->", "", svg)
    svg = re.sub(r"\s*@font-face \{.*?\}\n", "\n", svg, flags=re.DOTALL)
    svg = svg.replace(
        "font-family: Fira Code", "font-family: ui-monospace, Menlo, DejaVu Sans Mono"
    )
    (HERE / "demo.svg").write_text(svg)


if __name__ == "__main__":
    demo()
    asyncio.run(page())
