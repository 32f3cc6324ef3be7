"""The vocabulary of discovery: ports as plain values, and the facts sources post about them.

It does no I/O and knows nothing of Kubernetes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

import msgspec

DEFAULT_NODES = ("/dev/ttyUSB*", "/dev/ttyACM*")
"""Globs of the device nodes of USB serial ports."""

# Major numbers 136 to 143 are Unix98 pty slaves (Documentation/admin-guide/devices.txt).
_PTY_SLAVE_MAJORS = range(136, 144)


class DeviceNumber(NamedTuple):
    """A character device's major and minor number."""

    major: int
    minor: int

    @classmethod
    def of(cls, rdev: int) -> DeviceNumber:
        """Split ``st_rdev`` as ``os.stat`` gives it."""
        return cls(os.major(rdev), os.minor(rdev))

    @property
    def is_pty(self) -> bool:
        """Whether this is a pty slave, which works only inside its own devpts mount."""
        return self.major in _PTY_SLAVE_MAJORS

    def __str__(self) -> str:
        return f"{self.major}:{self.minor}"


class UsbInterface(msgspec.Struct, frozen=True):
    """A port's USB side: its device's descriptors, and its interface.

    Device strings are hostile. They are kept as ``printable`` renders them, so no control
    character, newline or invalid Unicode gets past discovery.
    """

    vendor_id: str
    """idVendor, four lower-case hexadecimal digits."""
    product_id: str
    """idProduct, four lower-case hexadecimal digits."""
    serial: str = ""
    """iSerial; empty if the device has none."""
    manufacturer: str = ""
    product: str = ""
    interface: int = 0
    """bInterfaceNumber, 0 to 255."""
    port_number: int = 0
    """Index among several ttys of one interface (usb-serial's port_number, or their order)."""
    location: str = ""
    """Host controller and port chain, e.g. ``0000:00:14.0-1.2``: where the device is plugged in.

    Empty where no hardware decides on the place, as behind a virtual controller."""
    arrival: str = ""
    """Given where there is no location: names this plugging-in of the device, and no other one."""
    speed: str = ""
    """Mbit/s as sysfs words it: ``1.5``, ``12``, ``480``, ``5000``."""


class Readiness(Enum):
    """How far udevd has got with a port."""

    SETTLING = auto()
    """udevd is still working on it: permissions and links are not final."""
    READY = auto()
    """udevd has finished."""
    UNCONFIRMED = auto()
    """There is no udevd, or it did not finish in time: only sysfs describes the port."""


class Port(msgspec.Struct, frozen=True):
    """One serial device node. ``name`` identifies it within its source while it is present."""

    name: str
    """Kernel name, e.g. ``ttyUSB0``: what the container sees below ``/dev``."""
    node: str
    """Absolute path of the character device on the host."""
    number: DeviceNumber
    usb: UsbInterface | None = None
    """None for a virtual tty without descriptors."""
    sysfs_path: str = ""
    driver: str = ""
    numa_node: int | None = None
    links: tuple[str, ...] = ()
    """udev's /dev/serial/by-id and by-path links. Never a source of identity: they move."""
    readiness: Readiness = Readiness.READY
    fault: str = ""
    """Why the node cannot be granted (wrong type, wrong number, no answer); empty if it can."""
    initialized_usec: int = 0
    """When udevd finished, in CLOCK_MONOTONIC microseconds; 0 if unknown. Orders arrivals."""
    origin: str = ""
    """What the identity of a port without USB descriptors is based on, e.g. its directory."""

    @property
    def position(self) -> tuple[int, int]:
        """Orders the ports of one device: interface and port number."""
        return (self.usb.interface, self.usb.port_number) if self.usb else (0, 0)

    @property
    def slot(self) -> str:
        """Which of its device's ports this is: ``if00``, ``if02-port1``.

        Several ttys of one interface (multi-port adapters) are told apart by their number, as in
        udev's by-id links (60-serial.rules).
        """
        if self.usb is None:
            return "if00"
        port = f"-port{self.usb.port_number}" if self.usb.port_number else ""
        return f"if{self.usb.interface:02d}{port}"


@dataclass(frozen=True, slots=True)
class PortPresent:
    """The port is present, with these attributes; posted again when they change."""

    source: str
    port: Port
    noticed: float | None = field(default=None, compare=False)
    """When the source noticed the change (``time.monotonic``), if it did."""


@dataclass(frozen=True, slots=True)
class PortGone:
    """The port with that name is gone."""

    source: str
    name: str
    noticed: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class AllPorts:
    """All the ports the source sees; any other port of that source is gone."""

    source: str
    ports: tuple[Port, ...]
    reason: str
    """Why the source looked: ``start``, ``period``, ``overflow`` or ``change``."""
    noticed: float | None = field(default=None, compare=False)


Fact = PortPresent | PortGone | AllPorts
"""Anything a source may post."""


def printable(raw: bytes) -> str:
    r"""Escape descriptor bytes so that they are safe to print, and distinct bytes stay distinct.

    Printable Unicode stays as it is, a backslash is doubled, and anything else (control and format
    characters, invalid UTF-8) becomes ``\xNN``, ``\uNNNN`` or ``\UNNNNNNNN``.
    """
    text = raw.decode("utf-8", "surrogateescape")
    return "".join(_escape(character) for character in text)


def _escape(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if character.isprintable():
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # noqa: PLR2004 -- PEP 383: an undecodable byte, offset by 0xDC00
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:  # noqa: PLR2004 -- ASCII
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"  # noqa: PLR2004 -- BMP
