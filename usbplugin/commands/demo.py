"""``usbplugin demo``: the whole job in a minute, with no hardware and no cluster."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from usbplugin.commands.command import Command

if TYPE_CHECKING:
    import argparse


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dra", action="store_true", help="show it as a DRA driver")
    parser.add_argument("--verbose", action="store_true", help="show the plugin's log too")


def _run(options: argparse.Namespace) -> int:
    if options.dra:
        from usbplugin.virtual.demo_dra import tell
    else:
        from usbplugin.virtual.demo import tell

    return 0 if asyncio.run(tell(verbose=options.verbose)) else 1


COMMAND = Command(
    "demo", "show the whole job here, with no hardware and no cluster", _add_flags, _run
)
