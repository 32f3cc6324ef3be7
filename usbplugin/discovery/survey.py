"""What is on the USB bus, or among the ttys, and still no port: for people who miss one.

Reads sysfs below ``root`` with plain file reads; nothing here is needed to serve.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from usbplugin.discovery.port import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

_ON_USB = re.compile(r"/usb\d+/")
# Vendors of USB serial chips, and their kernel modules (drivers/usb/serial).
_MODULES = {
    "0403": "ftdi_sio",
    "067b": "pl2303",
    "10c4": "cp210x",
    "1a86": "ch341",
}
_ACM = ("02", "02")
"""bInterfaceClass and bInterfaceSubClass of a CDC ACM control interface (USB CDC 1.2)."""
_MOST_NAMED = 8


class Survey(NamedTuple):
    """What explains a port that is not there."""

    kept_off: tuple[str, ...]
    """USB devices that the kernel was told not to use (``authorized`` is 0), named for people."""
    left_out: tuple[str, ...]
    """Nodes of ttys on USB that no glob of ``nodes`` matches."""
    without_driver: tuple[tuple[str, str], ...]
    """USB interfaces that look like serial ports, each with the module that would serve it."""

    def lines(self) -> list[str]:
        """A line for each explanation."""
        found = [
            f"{device} is plugged in, but kept off: its authorized attribute in sysfs is 0, as"
            " USBGuard or an administrator sets it"
            for device in self.kept_off
        ]
        if count := len(self.left_out):
            ttys = "1 USB tty matches" if count == 1 else f"{count} USB ttys match"
            found.append(f"{ttys} none of nodes in the configuration: {_some(self.left_out)}")
        found += [
            f"USB interface {name} looks like a serial port and has no driver: modprobe {module}"
            for name, module in self.without_driver
        ]
        return found


def survey(nodes: Sequence[str], root: Path = Path("/")) -> Survey:
    """Look at everything; ``nodes`` are the globs of nodes that are looked at otherwise."""
    devices = root / "sys/bus/usb/devices"
    return Survey(_kept_off(devices), _left_out(nodes, root), _without_driver(devices))


def _kept_off(devices: Path) -> tuple[str, ...]:
    names = []
    for device in sorted(devices.glob("*")):
        if _text(device / "authorized") != "0":
            continue
        if ":" in device.name:  # an interface may be kept off by itself
            names.append(f"interface {device.name}")
            continue
        ids = f"{_text(device / 'idVendor')}:{_text(device / 'idProduct')}"
        about = " ".join(
            text for name in ("manufacturer", "product") if (text := _descriptor(device / name))
        )
        names.append(f"{device.name} ({' '.join(filter(None, (ids, about)))})")
    return tuple(names)


def _left_out(nodes: Sequence[str], root: Path) -> tuple[str, ...]:
    found = []
    for tty in sorted((root / "sys/class/tty").glob("*")):
        try:
            place = tty.readlink()
        except OSError:
            continue
        node = f"/dev/{tty.name}"
        if _ON_USB.search(str(place)) and not any(fnmatchcase(node, glob) for glob in nodes):
            found.append(node)
    return tuple(found)


def _without_driver(devices: Path) -> tuple[tuple[str, str], ...]:
    found = []
    for interface in sorted(devices.glob("*:*")):
        if (interface / "driver").exists() or _text(interface / "authorized") == "0":
            continue
        vendor = _text(interface.resolve().parent / "idVendor")
        kind = (_text(interface / "bInterfaceClass"), _text(interface / "bInterfaceSubClass"))
        if module := "cdc_acm" if kind == _ACM else _MODULES.get(vendor, ""):
            found.append((interface.name, module))
    return tuple(found)


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _descriptor(path: Path) -> str:
    try:
        return printable(path.read_bytes().removesuffix(b"\n"))
    except OSError:
        return ""
