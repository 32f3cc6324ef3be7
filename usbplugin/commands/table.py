"""Devices as people read them, in a terminal."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from usbplugin.discovery import AllPorts
from usbplugin.inventory import HealthPolicy, Inventory
from usbplugin.status.rows import Row, rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from usbplugin.discovery import Source
    from usbplugin.inventory import Device, ResourceRule

_COLUMNS = {
    "id": "ID",
    "node": "NODE",
    "health": "HEALTH",
    "resource": "RESOURCE",
    "claims": "CLAIM",
    "holders": "HOLDER",
    "taints": "TAINTS",
    "usb": "USB",
    "name": "NAME",
    "driver": "DRIVER",
    "location": "LOCATION",
}

_LABELS = {"holders": "held by ", "driver": "driver ", "location": "at "}
"""What comes before a value where no heading says what it is, and it does not say so itself."""

_BETWEEN, _INDENT = "  ", "    "
_LISTS = ("claims", "holders", "taints")
"""Columns that are shown only if there is something to show."""

_BOLD, _RED, _GREEN, _YELLOW, _PLAIN = "\033[1m", "\033[31m", "\033[32m", "\033[33m", "\033[0m"


def scan(sources: Iterable[Source], rules: Sequence[ResourceRule]) -> list[Row]:
    """What ``serve`` would list now: a row per port, those that no resource takes included.

    Raises:
        DiscoveryError: a source cannot see ports.
    """
    inventory = survey(sources, rules)
    return rows(devices_of(inventory, rules), inventory.ports.values(), rules)


def survey(sources: Iterable[Source], rules: Sequence[ResourceRule]) -> Inventory:
    """What ``serve`` would know now.

    Raises:
        DiscoveryError: a source cannot see ports.
    """
    inventory = Inventory(rules)
    inventory.apply((AllPorts(source.name, source.scan(), "start") for source in sources), now=0.0)
    # A scan has seen all ports that there are: a device of several is not waited for.
    inventory.apply((), now=max((HealthPolicy().group_settle, *(rule.settle for rule in rules))))
    return inventory


def devices_of(inventory: Inventory, rules: Sequence[ResourceRule]) -> list[Device]:
    """All devices that an inventory lists."""
    return [device for rule in rules for device in inventory.snapshot(rule.name).devices]


def table(found: Sequence[Row], *, colour: bool = False, width: int | None = None) -> str:
    """Aligned columns with a heading; why a device is not ready stands below the table.

    Args:
        found: The rows.
        colour: Whether health is coloured.
        width: Columns of the terminal: where the table has no room, a device is a block of lines.
            None if there is no limit.
    """
    # A running daemon alone knows of these, and most have no claims.
    columns = [key for key in _COLUMNS if key not in _LISTS or any(row[key] for row in found)]
    cells = [
        [_COLUMNS[key] for key in columns],
        *([_cell(row, key) for key in columns] for row in found),
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    if width is not None and sum(widths) + len(_BETWEEN) * (len(widths) - 1) > width:
        return _stacked(found, colour=colour, width=width)
    padded = [[c.ljust(w) for c, w in zip(line, widths, strict=True)] for line in cells]
    if colour:
        padded[0] = [f"{_BOLD}{text}{_PLAIN}" for text in padded[0]]
        column = columns.index("health")
        for line in padded[1:]:
            line[column] = _painted(line[column])
    lines = [_BETWEEN.join(line).rstrip() for line in padded]
    reasons = [f"{row['id'] or row['node']}: {row['reason']}" for row in found if row["reason"]]
    return "\n".join([*lines, *(["", *dict.fromkeys(reasons)] if reasons else [])])


def _stacked(found: Sequence[Row], *, colour: bool, width: int) -> str:
    """A block of lines for each row: what it is, then all that the columns would have shown."""
    blocks = []
    for row in found:
        cells = {key: _cell(row, key) for key in _COLUMNS}
        cells = {key: text for key, text in cells.items() if text.strip("-")}
        heading = _wrapped(cells.pop("id", "") or cells.pop("node", ""), width, "")
        health = cells.pop("health", "")
        rest = [f"{_LABELS.get(key, '')}{text}" for key, text in cells.items()]
        if row["reason"]:
            rest.insert(0, str(row["reason"]))
        body = _wrapped("; ".join([*filter(None, [health]), *rest]), width, _INDENT)
        if colour:
            heading = [f"{_BOLD}{line}{_PLAIN}" for line in heading]
            if body and health:
                body[0] = body[0].replace(health, _painted(health), 1)
        blocks.append("\n".join([*heading, *body]))
    return "\n".join(blocks)


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


def _painted(health: str) -> str:
    colour = {"ready": _GREEN, "settling": _YELLOW, "-": ""}.get(health.strip(), _RED)
    return f"{colour}{health}{_PLAIN}"


def _cell(row: Row, key: str) -> str:
    if key == "usb":
        return f"{row['vendor']}:{row['product']}" if row["vendor"] else "-"
    if key == "name":
        return " ".join(str(row[part]) for part in ("manufacturer", "productName") if row[part])
    if key in _LISTS and isinstance(items := row[key], list):
        return ",".join(map(str, items)) or "-"
    return str(row[key] or "-")
