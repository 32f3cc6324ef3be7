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

_STANDARD_INPUT = "-"


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
    from usbplugin.commands.here import contradictions, summary
    from usbplugin.commands.table import devices_of, survey, table
    from usbplugin.commands.wiring import config_of, sources_of
    from usbplugin.config import notes, parse_file, warnings
    from usbplugin.status.rows import rows
    from usbplugin.status.selection import selections

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
    rules = config.rules()
    try:
        inventory = survey(sources_of(options, config), rules)
    except UsbPluginError as error:
        print(f"what it would select here cannot be shown: {error}", file=sys.stderr)
        return 0
    devices, ports = devices_of(inventory, rules), inventory.ports.values()
    print("\n".join(["", *summary(config, selections(devices, ports, rules), ports)]))
    if found := rows(devices, ports, rules):
        print(f"\n{table(found, width=Screen(sys.stdout).width)}")
    if options.udev:
        for line in contradictions(config):
            print(f"warning: {line}", file=sys.stderr)
    return 0


COMMAND = Command(
    "check", "validate a configuration, show what it would select here", _add_flags, _run
)
