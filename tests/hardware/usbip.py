"""USB/IP from this machine to itself: a device is exported, and attached to a virtual controller.

What usbip(8) and usbipd(8) do: connect, agree on a device, and give each end of the connection to
the kernel. Here both ends are ours, so there is nothing to agree on, and a pair of sockets will do.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .events import TIMEOUT, wait_until
from .sysfs import Tty, ttys_of
from .udevd import Udevd

if TYPE_CHECKING:
    from collections.abc import Callable

_MODULES = ("usbip-core", "usbip-host", "vhci-hcd")
_CONTROLLER = Path("/sys/devices/platform/vhci_hcd.0")
_EXPORTER = Path("/sys/bus/usb/drivers/usbip-host")
_USB = Path("/sys/bus/usb/drivers/usb")

# enum usbip_device_status (include/uapi/linux/usbip.h)
_AVAILABLE, _PORT_FREE = 1, 4
# enum usb_device_speed (include/uapi/linux/usb/ch9.h), by what sysfs says of a device's speed.
_SPEEDS = {"1.5": 1, "12": 2, "480": 3}


def load() -> str:
    """Load the kernel's modules; why that does not work, or empty."""
    for module in _MODULES:
        done = subprocess.run(["modprobe", module], check=False, capture_output=True, text=True)
        if done.returncode:
            return f"this kernel has no {module}: {done.stderr.strip()}"
    return ""


@dataclass(frozen=True, slots=True)
class _Port:
    """A port of the virtual controller, as a line of its ``status`` says."""

    hub: str
    number: int
    status: int
    bus_id: str


class Exported:
    """A USB device that is given away by USB/IP, and may be attached again here."""

    def __init__(self, device: Path) -> None:
        """Export it; it has no ttys any longer where it is.

        Args:
            device: Its directory in sysfs.
        """
        self._device = device
        self._bus_id = device.name
        self._port: int | None = None
        (_EXPORTER / "match_busid").write_text(f"add {self._bus_id}")
        (_USB / "unbind").write_text(self._bus_id)
        (_EXPORTER / "bind").write_text(self._bus_id)

    @property
    def ttys(self) -> list[Tty]:
        """Its ttys where it is attached."""
        for port in _ports():
            if port.number == self._port:
                return [
                    tty for path in _CONTROLLER.glob(f"usb*/{port.bus_id}") for tty in ttys_of(path)
                ]
        return []

    def attach(self) -> list[Tty]:
        """Attach it to the next free port, as ``usbip attach`` does; its ttys, udevd done."""
        _poll(lambda: self._number("usbip_status") == _AVAILABLE, "the exported device is free")
        port = next(p for p in _ports() if p.hub == "hs" and p.status == _PORT_FREE)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            (self._device / "usbip_sockfd").write_text(f"{theirs.fileno()}\n")
            device_id = self._number("busnum") << 16 | self._number("devnum")
            speed = _SPEEDS[(self._device / "speed").read_text().strip()]
            (_CONTROLLER / "attach").write_text(
                f"{port.number} {ours.fileno()} {device_id} {speed}"
            )
        self._port = port.number
        udevd = Udevd()

        def ready() -> bool:
            ttys = self.ttys
            return bool(ttys) and (not udevd.is_running or ttys[0].is_initialized)

        wait_until(ready, f"the ports of {self._bus_id} by USB/IP, udevd done")
        return self.ttys

    def detach(self) -> None:
        """Detach it; wait until its port is free."""
        ttys, port = self.ttys, self._port
        (_CONTROLLER / "detach").write_text(f"{port}")
        wait_until(
            lambda: not any(tty.path.exists() for tty in ttys), f"{self._bus_id} is detached"
        )
        _poll(
            lambda: any(p.number == port and p.status == _PORT_FREE for p in _ports()),
            f"port {port} is free",
        )
        self._port = None

    def stop(self) -> None:
        """Give it back to this machine."""
        if self._port is not None:
            self.detach()
        (_EXPORTER / "match_busid").write_text(f"del {self._bus_id}")
        with suppress(FileNotFoundError):
            (_EXPORTER / "unbind").write_text(self._bus_id)

    def _number(self, attribute: str) -> int:
        return int((self._device / attribute).read_text())


def _ports() -> list[_Port]:
    lines = (_CONTROLLER / "status").read_text().splitlines()
    # hub port sta spd dev sockfd local_busid
    fields = [line.split() for line in lines[1:]]
    return [_Port(f[0], int(f[1]), int(f[2]), f[6]) for f in fields]


def _poll(condition: Callable[[], bool], what: str) -> None:
    """Wait for what no event tells of."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {TIMEOUT:g} s: {what}")
        os.sched_yield()
