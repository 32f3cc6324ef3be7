"""Turns a port's descriptors and location into the IDs its device may have.

The kubelet checkpoints device IDs, so an ID must name the same physical thing across replugs,
reboots and renumbering. This module only lists candidates, best first. The inventory decides which
device gets which, since only it knows what else is present.
"""

from __future__ import annotations

import hashlib
import re
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from usbplugin.discovery.port import Port, UsbInterface

ID_LENGTH = 59
"""The device plugin API allows 63 characters; four are reserved for suffixes."""

ID_FORM = re.compile(r"[A-Za-z][A-Za-z0-9_.:-]*")

_NOT_IN_ID = re.compile(r"[^A-Za-z0-9_.:-]")
_DIGEST_LENGTH = 8
_LIKE_A_DIGEST = re.compile(r"-[0-9a-f]{8}\Z")
# How the ID of a single port, or of a share, ends: a whole device's serial may not.
_LIKE_A_PART = re.compile(r"(-if\d+(-port\d+)?|\.\d+)\Z")
_OF_A_PORT = re.compile(r"-if\d\d+(-port\d+)?\Z")
_OURS = re.compile(r"usb-[0-9a-f]{4}:[0-9a-f]{4}-|dir-")
_BY_SERIAL = re.compile(r"usb-[0-9a-f]{4}:[0-9a-f]{4}-(?!at-|once-)")
# Serials that vendors burn into every unit: all zeros, 1, 0001, FFFF, and runs such as 12345.
_ALIKE = re.compile(r"0*1?|f+", re.IGNORECASE)
_COUNTING = ("0123456789abcdef", "123456789abcdef", "1234567890")
_SHORTEST_COUNTING_RUN = 5


class IdentityMode(Enum):
    """What device IDs are based on; the operator chooses per resource."""

    AUTO = "auto"
    """The serial if it is usable, otherwise the location."""
    SERIAL = "serial"
    """The serial even if all units seem to share it; the location if it is empty."""
    LOCATION = "location"
    """Where the device is plugged in, regardless of its serial."""


class Unit(Enum):
    """What one device is."""

    PORT = "port"
    """Each port is a device."""
    USB_DEVICE = "usb-device"
    """All ports of a USB device together are one device, such as a modem with four ttys."""


Fingerprint = tuple[object, ...]


def descriptors(port: Port, unit: Unit = Unit.PORT) -> Fingerprint:
    """Equal for all ports that may claim to be the same device."""
    usb = port.usb
    if usb is None:
        # A bare entry is known by its place alone, whatever it links to.
        return (port.origin, port.name)
    whole = (usb.vendor_id, usb.product_id, usb.serial)
    return whole if unit is Unit.USB_DEVICE else (*whole, usb.interface, usb.port_number)


def fingerprint(port: Port, unit: Unit = Unit.PORT) -> Fingerprint:
    """Equal for the same device in the same place, whatever its names and numbers."""
    return (*descriptors(port, unit), place_of(port))


def is_device_id(text: str) -> bool:
    """Whether ``text`` could be one of our IDs."""
    return len(text) <= ID_LENGTH and ID_FORM.fullmatch(text) is not None and is_ours(text)


def is_ours(text: str) -> bool:
    """Whether it begins as all our IDs do, and nobody else's."""
    return _OURS.match(text) is not None


def may_be_of(port: Port, device_id: str) -> bool:
    """Whether an ID could be one of the port's device, by what is cheap to tell."""
    if port.usb is None:
        return device_id.startswith("dir-")
    return device_id.startswith(f"usb-{port.usb.vendor_id}:{port.usb.product_id}-")


def slot_of(device_id: str) -> str:
    """The slot of the one port that has that ID; empty if it is the ID of a whole USB device."""
    if device_id.startswith("dir-"):
        return "if00"
    of_a_port = _OF_A_PORT.search(device_id)
    return of_a_port[0][1:] if of_a_port else ""


def unit_of(device_id: str) -> Unit:
    """What a device with that ID is."""
    return Unit.PORT if slot_of(device_id) else Unit.USB_DEVICE


def part_tag(resource: str) -> str:
    """What a resource adds to the IDs of its parts of devices."""
    return hashlib.sha256(resource.encode()).hexdigest()[:_DIGEST_LENGTH]


def possible_ids(port: Port, resource: str) -> frozenset[str]:
    """All the IDs that the device of a port may have had in a resource, however configured."""
    return frozenset(
        device_id
        for mode in IdentityMode
        for unit in Unit
        for part in (("", part_tag(resource)) if unit is Unit.USB_DEVICE else ("",))
        for device_id in candidate_ids(port, mode, unit, part)
    )


def is_by_serial(device_id: str) -> bool:
    """Whether an ID is based on a serial number, which a device takes along wherever it goes."""
    return _BY_SERIAL.match(device_id) is not None


def is_usable_serial(serial: str) -> bool:
    """Whether a serial is likely to be unique to one unit."""
    text = serial.strip()
    if _ALIKE.fullmatch(text):
        return False
    lower = text.lower()
    return not (
        len(lower) >= _SHORTEST_COUNTING_RUN and any(run.startswith(lower) for run in _COUNTING)
    )


def serial_of(port: Port) -> tuple[str, str, str] | None:
    """What all ports of a device show of its serial number; None if it has none."""
    usb = port.usb
    return (usb.vendor_id, usb.product_id, usb.serial) if usb and usb.serial else None


def place_of(port: Port) -> str:
    """Where a port's device is plugged in, or which plugging-in it is where that says nothing."""
    return (port.usb.location or port.usb.arrival) if port.usb else ""


def candidate_ids(
    port: Port, mode: IdentityMode, unit: Unit = Unit.PORT, part: str = ""
) -> tuple[str, ...]:
    """The IDs a port may have, best first; each matches ``ID_FORM`` and fits ``ID_LENGTH``.

    The last is unique among the ports present at one time, whatever their descriptors claim,
    because it includes the port's name within its source.

    Args:
        port: A port of the device.
        mode: What the ID is to be based on.
        unit: What a device is.
        part: Tells the parts of a USB device that several resources share; see ``part_tag``.
    """
    tail = f"-{port.slot}" if unit is Unit.PORT else part and f"-{part}"
    return _candidate_ids(port.usb, port.name, port.origin, tail, mode)


@lru_cache(maxsize=1024)  # a device that comes back is looked up again
def _candidate_ids(
    usb: UsbInterface | None, name: str, origin: str, tail: str, mode: IdentityMode
) -> tuple[str, ...]:
    if usb is None:
        return (_compose("dir-", name, "", origin),)
    head = f"usb-{usb.vendor_id}:{usb.product_id}-"
    head_of_place, place = (f"{head}at-", usb.location)
    if not place:  # nothing will tell the device from others when it is plugged in again
        head_of_place, place = (f"{head}once-", usb.arrival)
    by_location = _compose(head_of_place, place, tail)
    last_resort = _compose(head_of_place, place, tail, f"{origin}/{name}")
    if _has_serial_identity(usb, mode):
        # A serial must not pass for a location or an arrival.
        serial = re.sub(r"\A(at|once)-", r"\1_", usb.serial)
        is_odd = serial != usb.serial or (not tail and _LIKE_A_PART.search(serial))
        by_serial = _compose(head, serial, tail, usb.serial if is_odd else "")
        return (by_serial, by_location, last_resort)
    return (by_location, last_resort)


def _has_serial_identity(usb: UsbInterface, mode: IdentityMode) -> bool:
    """Whether the first candidate is based on the serial."""
    if mode is IdentityMode.LOCATION:
        return False
    if mode is IdentityMode.SERIAL:
        return bool(usb.serial.strip())
    return is_usable_serial(usb.serial)


def _compose(head: str, text: str, tail: str, salt: str = "") -> str:
    """Join the parts, adding a digest if ``text`` must be altered or a salt is given."""
    clean = _NOT_IN_ID.sub("_", text)
    room = ID_LENGTH - len(head) - len(tail)
    # A text that looks as if it ended in a digest gets one too, or it could be made to spell the ID
    # of another text.
    if clean != text or len(clean) > room or salt or _LIKE_A_DIGEST.search(text):
        digest = hashlib.sha256(f"{text}\0{salt}".encode()).hexdigest()[:_DIGEST_LENGTH]
        clean = f"{clean[: room - _DIGEST_LENGTH - 1]}-{digest}"
    return f"{head}{clean}{tail}"
