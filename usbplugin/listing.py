"""Devices as people read them (a table) and as programs do (JSON)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usbplugin.discovery import AllPorts, Port, Readiness
from usbplugin.inventory import Inventory, first_match

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from usbplugin.discovery import Source
    from usbplugin.inventory import Device, ResourceRule

Row = dict[str, object]

_COLUMNS = {
    "id": "ID",
    "node": "NODE",
    "health": "HEALTH",
    "resource": "RESOURCE",
    "usb": "USB",
    "name": "NAME",
    "driver": "DRIVER",
    "location": "LOCATION",
}


def scan(sources: Iterable[Source], rules: Sequence[ResourceRule]) -> list[Row]:
    """What ``serve`` would list now: a row per port, those that no resource takes included.

    Raises:
        DiscoveryError: a source cannot see ports.
    """
    inventory = Inventory(rules)
    inventory.apply((AllPorts(source.name, source.scan(), "start") for source in sources), now=0.0)
    devices = [device for rule in rules for device in inventory.snapshot(rule.name).devices]
    listed = {port.node for device in devices for port in device.ports}
    others = [port for port in inventory.ports.values() if port.node not in listed]
    return [
        *(_row(port, device) for device in devices for port in device.ports),
        *(_unlisted(port, rules) for port in others),
    ]


def table(rows: Sequence[Row]) -> str:
    """Aligned columns with a heading; why a device is not ready stands below the table."""
    cells = [list(_COLUMNS.values()), *([_cell(row, key) for key in _COLUMNS] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
    reasons = [f"{row['node']}: {row['reason']}" for row in rows if row["reason"]]
    return "\n".join([*lines, *(["", *reasons] if reasons else [])])


def _cell(row: Row, key: str) -> str:
    if key == "usb":
        return f"{row['vendor']}:{row['product']}" if row["vendor"] else "-"
    if key == "name":
        return " ".join(str(row[part]) for part in ("manufacturer", "productName") if row[part])
    return str(row[key] or "-")


def _row(port: Port, device: Device) -> Row:
    return {
        "id": device.id,
        "resource": device.resource,
        "health": device.health.value,
        "reason": device.reason,
        **_port(port),
    }


def _unlisted(port: Port, rules: Sequence[ResourceRule]) -> Row:
    settling = port.readiness is Readiness.SETTLING
    rule = first_match(rules, port)
    if settling:
        reason = "udevd has not finished with it"
    else:
        reason = "another port has its device number" if rule else "no resource selects it"
    return {
        "id": "",
        "resource": rule.name if rule else "",
        "health": "settling" if settling else "",
        "reason": reason,
        **_port(port),
    }


def _port(port: Port) -> Row:
    usb = port.usb
    return {
        "node": port.node,
        "name": port.name,
        "number": str(port.number),
        "vendor": usb.vendor_id if usb else "",
        "product": usb.product_id if usb else "",
        "serial": usb.serial if usb else "",
        "manufacturer": usb.manufacturer if usb else "",
        "productName": usb.product if usb else "",
        "interface": usb.interface if usb else None,
        "location": usb.location if usb else "",
        "speed": usb.speed if usb else "",
        "driver": port.driver,
        "numaNode": port.numa_node,
        "links": list(port.links),
        "sysfs": port.sysfs_path,
    }
