"""Devices and ports as rows, for ``/devices`` and ``usbplugin list``."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING

from usbplugin.discovery import Port, Readiness, Unit
from usbplugin.discovery.identity import fingerprint
from usbplugin.inventory import Health, first_match

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from usbplugin.inventory import Device, ResourceRule

Row = dict[str, object]


def rows(
    devices: Iterable[Device],
    ports: Iterable[Port],
    rules: Sequence[ResourceRule],
    now: float | None = None,
    claims: Callable[[str], Sequence[str]] = lambda _: (),
    taints: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[Row]:
    """A row per port of each device, then a row per port that belongs to no device.

    Args:
        devices: All listed devices.
        ports: All ports present.
        rules: The resources; the first match wins.
        now: The current time on the clock of ``Device.since``.
        claims: The claims that have a device, by its ID.
        taints: What the cluster is told of devices, by their IDs, as ``unplugged:NoExecute``.
    """
    found: list[Row] = []
    listed = set()
    places = set()
    for device in devices:
        about = {
            "id": device.id,
            "resource": device.resource,
            "health": device.health.value,
            "reason": device.reason,
            "holders": list(device.holders),
            "claims": list(claims(device.id)),
            "taints": list(taints.get(device.id, ())),
            "since": None if now is None else moment(time.time() - (now - device.since)),
        }
        if device.health is not Health.UNPLUGGED:
            # An unplugged device's node may belong to another port by now.
            listed |= {(port.node, fingerprint(port)) for port in device.ports}
            places |= {fingerprint(port) for port in device.ports}
        # A device known only because a pod holds it has no ports, but still gets a row.
        found += [about | _port(port) for port in device.ports or (None,)]
    ports = list(ports)
    alike = Counter(port.number for port in ports)
    return found + [
        _unlisted(
            port,
            rules,
            has_own_number=alike[port.number] == 1,
            has_own_place=fingerprint(port) not in places,
        )
        for port in ports
        if (port.node, fingerprint(port)) not in listed
    ]


def moment(seconds: float) -> str:
    """A point in time in ISO 8601, for people and programs."""
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def clock() -> str:
    """The time of day in UTC, as logs, events and the status page say it."""
    return f"{moment(time.time())[11:19]}Z"


def _unlisted(
    port: Port, rules: Sequence[ResourceRule], *, has_own_number: bool, has_own_place: bool
) -> Row:
    settling = port.readiness is Readiness.SETTLING
    rule = first_match(rules, port)
    if settling:
        reason = "udevd has not finished with it"
    elif rule is None:
        reason = "no resource selects it"
    elif not has_own_number:
        reason = "another port has its device number"
    elif rule.settle and has_own_place:
        reason = f"new: listed once it has stayed for {rule.settle:g} s"
    elif rule.unit is Unit.USB_DEVICE and has_own_place:
        reason = "waiting for its device's other ports"
    else:
        reason = "another port is at its place"
    return {
        "id": "",
        "resource": rule.name if rule else "",
        "health": "settling" if settling else "",
        "reason": reason,
        "holders": [],
        "claims": [],
        "taints": [],
        "since": None,
        **_port(port),
    }


def _port(port: Port | None) -> Row:
    usb = port.usb if port else None
    return {
        "node": port.node if port else "",
        "name": port.name if port else "",
        "number": str(port.number) if port else "",
        "vendor": usb.vendor_id if usb else "",
        "product": usb.product_id if usb else "",
        "serial": usb.serial if usb else "",
        "manufacturer": usb.manufacturer if usb else "",
        "productName": usb.product if usb else "",
        "interface": usb.interface if usb else None,
        "location": usb.location if usb else "",
        "speed": usb.speed if usb else "",
        "driver": port.driver if port else "",
        "numaNode": port.numa_node if port else None,
        "links": list(port.links) if port else [],
        "sysfs": port.sysfs_path if port else "",
    }
