"""From a tty's device number to its USB interface, by walking sysfs; plain file reads only.

sysfs is there with and without udevd, in every namespace, and holds descriptors as raw bytes.
Attributes may vanish between two reads, since cables get pulled: a vanished port is ``None``.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from usbplugin.discovery.port import DeviceNumber, UsbInterface, printable

if TYPE_CHECKING:
    from pathlib import Path

_ROOT_HUB = re.compile(r"usb\d+")
# Platform glue between a SoC's USB block and its host controller; its number is handed out in probe
# order, so the parent names the hardware better.
_NUMBERED_CONTROLLER = re.compile(r"(xhci|ehci|ohci|uhci)-hcd\..*")
_SUPER_SPEED = 5000.0
_VANISHED = frozenset({errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENOTDIR, errno.EIO})


@dataclass(frozen=True, slots=True)
class Tty:
    """What sysfs tells of one tty on USB."""

    path: str
    number: DeviceNumber
    driver: str
    usb: UsbInterface
    numa_node: int | None


def read_tty(sysfs_path: Path) -> Tty | None:
    """Read the tty at ``sysfs_path`` (e.g. ``/sys/class/tty/ttyUSB0``).

    Returns:
        None if it is not on USB, or is gone (also if it goes while being read).

    Raises:
        OSError: sysfs itself could not be read, for another reason than a vanished device.
    """
    try:
        return _read_tty(sysfs_path.resolve(strict=True))
    except OSError as error:
        if error.errno in _VANISHED:
            return None
        raise


def _read_tty(tty: Path) -> Tty | None:
    interface = _ancestor_with(tty, "bInterfaceNumber")
    device = interface and _ancestor_with(interface, "idVendor")
    if interface is None or device is None:
        return None
    parent = (tty / "device").resolve(strict=True)
    driver = parent / "driver"
    major, _, minor = _text(tty / "dev").partition(":")
    return Tty(
        path=str(tty),
        number=DeviceNumber(int(major), int(minor)),
        # usb-serial binds a port device below the interface, cdc-acm the interface itself.
        driver=driver.resolve().name if driver.exists() else "",
        usb=UsbInterface(
            vendor_id=_text(device / "idVendor"),
            product_id=_text(device / "idProduct"),
            serial=_descriptor(device / "serial"),
            manufacturer=_descriptor(device / "manufacturer"),
            product=_descriptor(device / "product"),
            interface=int(_text(interface / "bInterfaceNumber"), 16),
            port_number=int(_optional(parent / "port_number") or 0),
            location=_location(device),
            speed=_optional(device / "speed"),
        ),
        numa_node=_numa_node(device),
    )


def _ancestor_with(path: Path, attribute: str) -> Path | None:
    for candidate in (path, *path.parents):
        if (candidate / attribute).exists():
            return candidate
    return None


def _location(device: Path) -> str:
    """Controller and port chain: ``1-1.2`` on 0000:00:14.0's bus 1 is ``0000:00:14.0-1.2``.

    Bus numbers depend on the order in which controllers were found, so they are left out; an xHCI
    controller's second (SuperSpeed) root hub has port numbers of its own, marked ``ss``.
    """
    root_hub = next((p for p in (device, *device.parents) if _ROOT_HUB.fullmatch(p.name)), None)
    if root_hub is None:
        return device.name
    controller = root_hub.parent
    if _NUMBERED_CONTROLLER.fullmatch(controller.name):
        controller = controller.parent
    chain = device.name.partition("-")[2]
    speed = _optional(root_hub / "speed")
    return f"{controller.name}-{'ss' if speed and float(speed) >= _SUPER_SPEED else ''}{chain}"


def _numa_node(device: Path) -> int | None:
    """The NUMA node of the nearest ancestor that has one (the controller's PCI device)."""
    for ancestor in device.parents:
        if value := _optional(ancestor / "numa_node"):
            return int(value) if int(value) >= 0 else None
    return None


def _descriptor(path: Path) -> str:
    """A string descriptor, rendered printable; empty if the device has none."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return ""
    return printable(raw.removesuffix(b"\n"))


def _text(path: Path) -> str:
    return path.read_text("ascii", "replace").strip()


def _optional(path: Path) -> str:
    try:
        return _text(path)
    except FileNotFoundError:
        return ""
