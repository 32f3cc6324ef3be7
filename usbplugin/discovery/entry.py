"""Reads a directory's ``ttyUSB*`` or ``ttyACM*`` entry as the serial port it is or links to."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

import msgspec

from usbplugin.discovery.port import DeviceNumber, Port, UsbInterface, printable
from usbplugin.discovery.sysfs import read_tty
from usbplugin.telemetry.logs import fields

_log = logging.getLogger(__name__)

_LARGEST_DESCRIPTOR_FILE = 64 * 1024
_MOST_READINGS = 5


class Descriptors(msgspec.Struct, frozen=True):
    """The file ``.NAME.json`` beside an entry ``NAME``: a virtual device's descriptors."""

    vendor_id: str = "0000"
    product_id: str = "0000"
    serial: str = ""
    manufacturer: str = ""
    product: str = ""
    interface: int = 0
    location: str = ""
    driver: str = ""


class NoPort(Enum):
    """Why an entry is not a port."""

    GONE = auto()
    """It does not exist, or is coming and going right now."""
    UNFIT = auto()
    """It is not a character device, or its path is not printable."""


Stamp = tuple[int, int]
"""Identifies an entry: unchanged unless it was replaced."""


@dataclass(slots=True)
class EntryGlance:
    """One glance at an entry, which may hang like the device behind it."""

    directory: Path
    name: str
    began: float
    """When it was asked for; ``time.monotonic`` seconds."""
    found: Port | NoPort = NoPort.GONE
    stamp: Stamp | None = None
    """Of the entry that was found; None if there is none."""

    def run(self) -> None:
        """Read it, making sure that everything read is of one and the same entry.

        Raises:
            OSError: sysfs could not be read, and not because the device vanished.
        """
        entry = self.directory / self.name
        for _ in range(_MOST_READINGS):
            if (before := stamp_of(entry)) is None:
                return
            port = _read(entry)
            if stamp_of(entry) == before:
                self.found, self.stamp = port or NoPort.UNFIT, before
                return


def read_entry(directory: Path, name: str) -> Port | NoPort:
    """What ``EntryGlance`` finds."""
    glance = EntryGlance(directory, name, 0.0)
    glance.run()
    return glance.found


def stamp_of(entry: Path) -> Stamp | None:
    """The entry's; None if it is gone. Asks no driver, even if the entry is a device node."""
    try:
        status = entry.lstat()
    except OSError:
        return None
    return status.st_ino, status.st_ctime_ns


def _read(entry: Path) -> Port | None:
    try:
        node = entry.resolve(strict=True)
        status = node.stat()
    except (OSError, RuntimeError):  # dangling, vanished, or a loop of links
        return None
    # A path that is not valid Unicode cannot be sent to the kubelet.
    if not stat.S_ISCHR(status.st_mode) or not f"{entry}{node}".isprintable():
        return None
    number = DeviceNumber.of(status.st_rdev)
    origin = str(entry.parent)
    if not number.is_pty and (tty := read_tty(Path(f"/sys/dev/char/{number}"))):
        return Port(
            name=entry.name,
            node=str(node),
            number=number,
            usb=tty.usb,
            sysfs_path=tty.path,
            driver=tty.driver,
            numa_node=tty.numa_node,
            origin=origin,
        )
    descriptors = _descriptors(entry)
    return Port(
        name=entry.name,
        node=str(node),
        number=number,
        usb=_virtual_interface(entry, descriptors) if descriptors else None,
        driver=printable(descriptors.driver.encode("utf-8", "replace")) if descriptors else "",
        origin=origin,
    )


def _descriptors(entry: Path) -> Descriptors | None:
    path = entry.parent / f".{entry.name}.json"
    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST_DESCRIPTOR_FILE)
        return msgspec.json.decode(raw, type=Descriptors)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        _log.warning("descriptor file ignored", extra=fields(file=path, error=error))
        return None


def _virtual_interface(entry: Path, descriptors: Descriptors) -> UsbInterface:
    def clean(text: str) -> str:
        return printable(text.encode("utf-8", "replace"))

    # Without a location, the entry itself counts as the place where the device is plugged in.
    place = hashlib.sha256(os.fsencode(entry.parent)).hexdigest()[:8]
    return UsbInterface(
        vendor_id=_hex_id(descriptors.vendor_id),
        product_id=_hex_id(descriptors.product_id),
        serial=clean(descriptors.serial),
        manufacturer=clean(descriptors.manufacturer),
        product=clean(descriptors.product),
        interface=descriptors.interface & 0xFF,
        location=clean(descriptors.location) or f"{place}-{entry.name}",
    )


def _hex_id(text: str) -> str:
    """Four lower-case hexadecimal digits; 0000 for anything else."""
    return text.lower() if re.fullmatch(r"[0-9A-Fa-f]{4}", text) else "0000"
