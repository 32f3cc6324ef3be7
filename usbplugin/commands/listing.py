"""``usbplugin list``: the ports that are here, once or again and again."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

from usbplugin.commands import flags
from usbplugin.commands.command import Command
from usbplugin.commands.screen import Screen
from usbplugin.discovery.port import DEFAULT_NODES

if TYPE_CHECKING:
    import argparse

    from usbplugin.commands.view import View
    from usbplugin.status.rows import Row

_NOTHING = "No serial ports found. Is the device plugged in, and its driver loaded? See dmesg."
_REDRAW_INTERVAL = 0.1
_REFRESH_INTERVAL = 5.0


def _add_flags(parser: argparse.ArgumentParser) -> None:
    flags.add_config(parser)
    flags.add_sources(parser)
    flags.add_daemon(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--watch", action="store_true", help="keep running, and show changes as they happen"
    )


def _run(options: argparse.Namespace) -> int:
    from usbplugin.commands.table import table
    from usbplugin.commands.view import until_interrupted
    from usbplugin.telemetry import logs

    logs.configure("warning", logs.LogFormat.TEXT)
    if options.watch:
        return until_interrupted(_watch(options))
    found, left, missed = asyncio.run(_rows(options))
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        screen = Screen(sys.stdout)
        shown = table(found, colour=screen.has_colours, width=screen.width)
        print(shown if found else _NOTHING)
        if missed:
            print("\n" + "\n".join(missed))
        if left:
            print(f"\nThis instance stands by: a newer one serves {', '.join(left)}.")
    return 0


async def _rows(options: argparse.Namespace) -> tuple[list[Row], list[str], list[str]]:
    """What is here, which resources the daemon leaves to a newer one, and what else is on USB."""
    from usbplugin.commands.table import scan
    from usbplugin.commands.view import daemon_of, hardware_of
    from usbplugin.discovery.survey import survey

    if daemon := await daemon_of(options):
        found = await daemon.rows()
        # Its configuration is not known here, but what it lists is.
        nodes = [str(row["node"]) for row in found]
        seen = survey([*DEFAULT_NODES, *nodes])
        return found, await daemon.left(), seen.lines()
    config, sources = hardware_of(options)
    found = scan(sources, config.rules())
    return found, [], survey(config.nodes).lines() if options.udev else []


async def _watch(options: argparse.Namespace) -> None:
    from usbplugin.commands.table import table
    from usbplugin.commands.view import view_of
    from usbplugin.status.rows import clock

    changed = asyncio.Event()
    async with AsyncExitStack() as exits:
        view = await view_of(options, exits)
        following = asyncio.create_task(_signal_changes(view, changed))
        exits.callback(following.cancel)
        if hasattr(signal, "SIGWINCH"):
            asyncio.get_running_loop().add_signal_handler(signal.SIGWINCH, changed.set)
        screen = Screen(sys.stdout)
        if not options.json:
            exits.enter_context(screen)
        while not following.done():
            changed.clear()
            found = await view.rows()
            if options.json:
                print(json.dumps(found), flush=True)
            else:
                heading = f"{clock()}  from {view}; Ctrl-C ends this\n\n"
                shown = table(found, colour=screen.has_colours, width=screen.width)
                screen.show(heading + (shown if found else _NOTHING))
            await asyncio.sleep(_REDRAW_INTERVAL)
            with suppress(TimeoutError):
                async with asyncio.timeout(_REFRESH_INTERVAL):
                    await changed.wait()
        await following  # raises what ended it


async def _signal_changes(view: View, changed: asyncio.Event) -> None:
    try:
        async for _ in view.follow():
            changed.set()
    finally:
        changed.set()


COMMAND = Command("list", "show the ports that are here, and their health", _add_flags, _run)
