"""A device as an entry of a ResourceSlice: its name, attributes, capacity and taints. Pure.

Every string that a device says of itself is hostile. Discovery has made it printable; here it is
made to fit what the API server takes (k8s.io/api/resource/v1: a value has 64 bytes at most), so
that no descriptor can keep the other devices of its slice from being published.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

from usbplugin.discovery.identity import place_of
from usbplugin.dra.names import DRIVER, SHARE_CAPACITY
from usbplugin.dra.taints import Effect, Taint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usbplugin.dra.contracts import PublishedDevice

LONGEST_VALUE = 64
"""Bytes of UTF-8: DeviceAttributeMaxValueLength."""

NUMA_NODE = "resource.kubernetes.io/numaNode"
"""A standard attribute since 1.37; earlier API servers take it like any other one."""

_DIGEST_LENGTH = 8

Attribute = dict[str, str] | dict[str, int] | dict[str, bool]
"""A value by its type, which is ``string``, ``int`` or ``bool``, as the API has it."""


class RequestRange(msgspec.Struct, frozen=True):
    """Which amounts of a capacity one request may ask for."""

    min: str
    max: str
    step: str


class RequestPolicy(msgspec.Struct, frozen=True, rename="camel"):
    """What a request consumes of a capacity."""

    default: str
    valid_range: RequestRange


class Capacity(msgspec.Struct, frozen=True, rename="camel"):
    """How much of something a device has."""

    value: str
    request_policy: RequestPolicy


class Entry(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A device in a slice, in the API's words (``resource.k8s.io/v1`` Device)."""

    name: str
    attributes: dict[str, Attribute]
    capacity: dict[str, Capacity] = {}
    allow_multiple_allocations: bool = False
    taints: tuple[Taint, ...] = ()


def entry_of(published: PublishedDevice, taints: Sequence[Taint] = ()) -> Entry:
    """What the API server is told of a device."""
    return Entry(
        published.name,
        attributes_of(published),
        _capacity(published.shares),
        allow_multiple_allocations=published.shares > 1,
        taints=tuple(taints),
    )


def sample() -> Entry:
    """A device that nobody has, with all that an API server may or may not keep."""
    taint = Taint(f"{DRIVER}/unplugged", Effect.NO_SCHEDULE, "2026-01-01T00:00:00Z")
    return Entry("sample", {}, _capacity(2), allow_multiple_allocations=True, taints=(taint,))


def attributes_of(published: PublishedDevice) -> dict[str, Attribute]:
    """Its attributes by name.

    Most are there even if there is nothing to say: in CEL, to ask for one that is missing is an
    error, and fails the pod for which the scheduler asks. The places by which devices are matched
    are left out where there is none, for two devices without one are not in the same place.
    """
    device = published.device
    port = device.ports[0] if device.ports else None
    usb = port.usb if port else None
    attributes: dict[str, Attribute] = {
        "resource": _string(device.resource),
        "id": _string(device.id),
        "vendor": _string(usb.vendor_id if usb else ""),
        "product": _string(usb.product_id if usb else ""),
        "serial": _string(usb.serial if usb else ""),
        "manufacturer": _string(usb.manufacturer if usb else ""),
        "productName": _string(usb.product if usb else ""),
        "driver": _string(port.driver if port else ""),
        "location": _string(usb.location if usb else ""),
        "interface": {"int": usb.interface if usb else 0},
        "port": {"int": usb.port_number if usb else 0},
        "ports": {"int": len(device.ports)},
        "unique": {"bool": bool(usb and usb.serial) and published.is_unique},
    }
    if port and (place := place_of(port)):
        attributes["usbDevice"] = _string(place)
    if usb and (hub := hub_of(usb.location)):
        attributes["hub"] = _string(hub)
    if port and port.numa_node is not None and port.numa_node >= 0:
        attributes[NUMA_NODE] = {"int": port.numa_node}
    return attributes


def hub_of(location: str) -> str:
    """The hub that a device is plugged into, or its host controller; empty if it is not known.

    A location is a host controller, and behind a dash the ports on the way to the device
    (``0000:00:14.0-1.2``).
    """
    controller, dash, way = location.rpartition("-")
    if not (dash and controller and way):
        return ""
    hub, _, _ = way.rpartition(".")
    return f"{controller}-{hub}" if hub else controller


def fitted(text: str) -> str:
    """The text if it fits into an attribute; else its beginning and a digest of the whole."""
    try:
        raw = text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which no JSON can carry
        raw = text.encode(errors="backslashreplace")
    if len(raw) <= LONGEST_VALUE:
        return raw.decode()
    digest = hashlib.sha256(raw).hexdigest()[:_DIGEST_LENGTH]
    # What is left of a character that was cut in two is dropped.
    head = raw[: LONGEST_VALUE - _DIGEST_LENGTH - 1].decode(errors="ignore")
    return f"{head}-{digest}"


def _string(text: str) -> Attribute:
    return {"string": fitted(text)}


def _capacity(shares: int) -> dict[str, Capacity]:
    """Each request takes one share unless it asks for more."""
    if shares == 1:
        return {}
    policy = RequestPolicy("1", RequestRange("1", str(shares), "1"))
    return {SHARE_CAPACITY: Capacity(str(shares), policy)}
