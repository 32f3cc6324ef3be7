"""Walks sysfs from a tty to its USB interface, with plain file reads only.

sysfs is there with or without udevd, in every namespace, and holds descriptors as raw bytes.
Attributes may vanish between two reads, since cables get pulled: a vanished port is ``None``.
Paths are strings here because ``pathlib`` is ten times slower, which counts in a storm of uevents.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from usbplugin.discovery.port import DeviceNumber, UsbInterface, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_ROOT_HUB = re.compile(r"usb\d+")
_PCI_ADDRESS = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
# Platform devices are called NAME.ID, or NAME.ID.auto where the kernel chose the number itself
# (platform_device_add, drivers/base/platform.c). Drivers number their controllers in the order in
# which they probe them: xhci-hcd.1.auto, ci_hdrc.0, musb-hdrc.1.auto.
_NUMBERED = re.compile(r".+\.\d+(\.auto)?")
# Directories that every device of their kind is in: none of them is hardware.
_NO_HARDWARE = frozenset({"platform", "virtual", "devices", "sys", "soc", ""})
# USB/IP hands out the ports of its controller in the order in which devices are attached.
_VIRTUAL_CONTROLLER = re.compile(r"vhci_hcd\.\d+")
# Its number is the kernel module's parameter, and each has one port.
_FIXED_CONTROLLER = re.compile(r"dummy_hcd\.\d+")
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_SUPER_SPEED = 5000.0
_VANISHED = frozenset({errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENOTDIR, errno.EIO})
_LARGEST_ATTRIBUTE = 4096
"""sysfs returns at most a page (Documentation/filesystems/sysfs.rst)."""


@dataclass(frozen=True, slots=True)
class Tty:
    """What sysfs says about a USB tty."""

    path: str
    inode: int
    """Its sysfs directory's inode, which no later tty shares, even under the same name and path."""
    number: DeviceNumber
    driver: str
    usb: UsbInterface
    numa_node: int | None


def read_tty(sysfs_path: str | os.PathLike[str]) -> Tty | None:
    """Read the tty at ``sysfs_path`` (e.g. ``/sys/class/tty/ttyUSB0``).

    Returns:
        None if it is not on USB, or is gone (even part-way through reading it).

    Raises:
        OSError: sysfs could not be read, and not because the device vanished.
    """
    try:
        return _read_tty(_followed(os.fspath(sysfs_path)))
    except OSError as error:
        if error.errno in _VANISHED:
            return None
        raise


def inode_of(sysfs_path: str) -> int | None:
    """The ``Tty.inode`` of the tty there now; None if there is none."""
    try:
        return os.stat(sysfs_path).st_ino  # noqa: PTH116
    except OSError:
        return None


def _read_tty(tty: str) -> Tty | None:
    inode = os.stat(tty).st_ino  # noqa: PTH116
    interface = _ancestor_with(tty, "bInterfaceNumber")
    device = interface and _ancestor_with(interface, "idVendor")
    if not interface or not device:
        return None
    parent = _followed(f"{tty}/device")
    location = _location(device)
    usb = UsbInterface(
        vendor_id=_text(f"{device}/idVendor"),
        product_id=_text(f"{device}/idProduct"),
        serial=_descriptor(f"{device}/serial"),
        manufacturer=_descriptor(f"{device}/manufacturer"),
        product=_descriptor(f"{device}/product"),
        interface=int(_text(f"{interface}/bInterfaceNumber"), 16),
        port_number=_port_number(tty, parent),
        location=location,
        arrival="" if location else _arrival(device),
        speed=_optional(f"{device}/speed"),
    )
    driver, numa_node = _driver(parent), _numa_node(device)
    # Read last: a tty goes before its device, so everything read so far was of one device.
    major, _, minor = _text(f"{tty}/dev").partition(":")
    return Tty(tty, inode, DeviceNumber(int(major), int(minor)), driver, usb, numa_node)


def _followed(path: str) -> str:
    """Resolve a sysfs link: always a single, relative link to a directory."""
    try:
        target = os.readlink(path)  # noqa: PTH115
    except OSError as error:
        if error.errno == errno.EINVAL:  # not a link
            return path
        raise
    return os.path.normpath(os.path.join(os.path.dirname(path), target))  # noqa: PTH118, PTH120


def _ancestor_with(path: str, attribute: str) -> str:
    """The nearest of ``path`` and its parents to have the attribute; empty if none does."""
    return next((p for p in (path, *_parents(path)) if os.path.exists(f"{p}/{attribute}")), "")  # noqa: PTH110


def _parents(path: str) -> Iterator[str]:
    while path.count("/") > 1:
        path = path.rpartition("/")[0]
        yield path


def _driver(parent: str) -> str:
    # usb-serial binds to a port device below the interface, cdc-acm to the interface itself.
    try:
        return _name(os.readlink(f"{parent}/driver"))  # noqa: PTH115
    except FileNotFoundError:
        return ""


def _port_number(tty: str, parent: str) -> int:
    """Which of its interface's ttys it is, from 0.

    usb-serial numbers them. A driver that registers several ttys on the interface itself does not;
    there their order tells. It is the order of their inodes, not of their names: where names had
    gaps, a later tty may have got a lower number.
    """
    if number := _optional(f"{parent}/port_number"):
        return int(number)
    siblings = f"{parent}/tty"
    if os.path.dirname(tty) != siblings:  # noqa: PTH120
        return 0
    inodes = {name: inode_of(f"{siblings}/{name}") or 0 for name in os.listdir(siblings)}  # noqa: PTH208
    return sorted(inodes, key=lambda name: inodes[name]).index(_name(tty))


def _location(device: str) -> str:
    """Controller and port chain: ``1-1.2`` on 0000:00:14.0's bus 1 is ``0000:00:14.0-1.2``.

    Bus numbers depend on the order in which controllers were found, so they are left out. An xHCI
    controller's second (SuperSpeed) root hub numbers its ports separately, marked ``ss``.

    Returns:
        The empty string where no hardware decides on the place.
    """
    root_hub = next((p for p in (device, *_parents(device)) if _ROOT_HUB.fullmatch(_name(p))), "")
    controller = _controller(map(_name, _parents(root_hub))) if root_hub else ""
    if not controller:
        return ""
    chain = _name(device).partition("-")[2]
    speed = _optional(f"{root_hub}/speed")
    return f"{controller}-{'ss' if speed and float(speed) >= _SUPER_SPEED else ''}{chain}"


def _controller(names: Iterable[str]) -> str:
    """What names the hardware of a host controller, given it and its parents, nearest first."""
    for name in names:
        if _VIRTUAL_CONTROLLER.fullmatch(name) or name in _NO_HARDWARE:
            return ""
        if (
            _PCI_ADDRESS.fullmatch(name)
            or _FIXED_CONTROLLER.fullmatch(name)
            or not _NUMBERED.fullmatch(name)
        ):
            return name
    return ""


def _arrival(device: str) -> str:
    """Names this life of a USB device; sysfs gives no inode twice between two boots."""
    life = f"{_text(_BOOT_ID)} {os.stat(device).st_ino}"  # noqa: PTH116
    return hashlib.sha256(life.encode()).hexdigest()[:16]


def _numa_node(device: str) -> int | None:
    """The NUMA node of the nearest ancestor with one (the controller's PCI device)."""
    for ancestor in _parents(device):
        if value := _optional(f"{ancestor}/numa_node"):
            return int(value) if int(value) >= 0 else None
    return None


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _descriptor(path: str) -> str:
    """A string descriptor, made printable; empty if the device has none."""
    try:
        return printable(_bytes(path).removesuffix(b"\n"))
    except FileNotFoundError:
        return ""


def _text(path: str) -> str:
    return _bytes(path).decode("ascii", "replace").strip()


def _optional(path: str) -> str:
    try:
        return _text(path)
    except FileNotFoundError:
        return ""


def _bytes(path: str) -> bytes:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(file, _LARGEST_ATTRIBUTE)
    finally:
        os.close(file)
