"""``usbplugin check``: whether a configuration is valid, and what it would select here.

Whether it is valid does not depend on this machine: it may be meant for another one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from usbplugin.commands import flags
from usbplugin.commands.command import Command
from usbplugin.commands.screen import Screen
from usbplugin.errors import UsbPluginError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence

    from usbplugin.config import Config
    from usbplugin.status.rows import Row

_STANDARD_INPUT = "-"
_MOST_NAMED = 3


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help="the file, or - for standard input (default: --config)",
    )
    flags.add_config(parser)
    flags.add_sources(parser)


def _run(options: argparse.Namespace) -> int:
    from usbplugin.commands.table import scan, table
    from usbplugin.commands.wiring import config_of, sources_of
    from usbplugin.config import notes, parse_file, warnings

    if options.file == _STANDARD_INPUT:
        name = "standard input"
        config = parse_file(Path(name), sys.stdin.buffer.read())
    else:
        options.config = options.file or options.config
        name = options.config or "defaults"
        config = config_of(options)
    names = ", ".join(resource.name for resource in config.resources)
    print(f"{name}: valid; resources: {names}")
    for kind, advice in (("warning", warnings(config)), ("note", notes(config))):
        for line in advice:
            print(f"{kind}: {line}", file=sys.stderr)
    sys.stdout.flush()
    try:
        found = scan(sources_of(options, config), config.rules())
    except UsbPluginError as error:
        print(f"what it would select here cannot be shown: {error}", file=sys.stderr)
        return 0
    print("\n".join(["", *_summary(config, found)]))
    if found:
        print(f"\n{table(found, width=Screen(sys.stdout).width)}")
    if options.udev:
        for path in _not_on_usb(config.nodes, found):
            print(f"note: {path} matches nodes, but is not on USB: it is left out", file=sys.stderr)
    return 0


def _summary(config: Config, found: Sequence[Row]) -> list[str]:
    """A line for each resource, with what it selects here."""
    lines = {}
    for resource in config.resources:
        rows = [row for row in found if row["resource"] == resource.name]
        ids = list(dict.fromkeys(str(row["id"]) for row in rows if row["id"]))
        lines[resource.name] = _selected(ids, len(rows))
    if others := [row for row in found if not row["resource"]]:
        ports = "1 port" if len(others) == 1 else f"{len(others)} ports"
        lines["(no resource)"] = f"{ports} that nothing selects"
    width = max(map(len, lines))
    return [f"{name:{width}}  {text}" for name, text in lines.items()]


def _selected(ids: Sequence[str], rows: int) -> str:
    if not rows:
        return "matches nothing here"
    if not ids:
        return "matches ports that are no device yet: see below"
    more = f" and {len(ids) - _MOST_NAMED} more" if len(ids) > _MOST_NAMED else ""
    count = "1 device" if len(ids) == 1 else f"{len(ids)} devices"
    return f"{count}: {', '.join(ids[:_MOST_NAMED])}{more}"


def _not_on_usb(globs: Iterable[str], found: Iterable[Row]) -> list[str]:
    """The ttys that ``nodes`` matches and no source lists, for their device is not on USB."""
    listed = {row["node"] for row in found}
    root = Path("/")
    paths = {str(path) for pattern in globs for path in root.glob(pattern.lstrip("/"))}
    return sorted(
        path
        for path in paths - listed
        if (tty := Path("/sys/class/tty") / Path(path).name).exists()
        and "/usb" not in str(tty.resolve())
    )


COMMAND = Command(
    "check", "validate a configuration, show what it would select here", _add_flags, _run
)
