"""``usbplugin check``: whether a configuration is valid, and what it would select here.

Whether it is valid does not depend on this machine: it may be meant for another one.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from usbplugin.commands import flags
from usbplugin.commands.command import Command
from usbplugin.errors import UsbPluginError

if TYPE_CHECKING:
    import argparse


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", metavar="FILE", help="the file (default: --config)")
    flags.add_config(parser)
    flags.add_sources(parser)


def _run(options: argparse.Namespace) -> int:
    from usbplugin.commands.table import scan, table
    from usbplugin.commands.wiring import config_of, sources_of

    options.config = options.file or options.config
    config = config_of(options)
    for warning in config.warnings():
        print(f"warning: {warning}", file=sys.stderr)
    names = ", ".join(resource.name for resource in config.resources)
    print(f"{options.config or 'defaults'}: valid; resources: {names}", flush=True)
    try:
        found = scan(sources_of(options, config), config.rules())
    except UsbPluginError as error:
        print(f"what it would select here cannot be shown: {error}", file=sys.stderr)
        return 0
    print(f"\n{table(found) if found else 'No serial ports are here now.'}")
    return 0


COMMAND = Command(
    "check", "validate a configuration, show what it would select here", _add_flags, _run
)
