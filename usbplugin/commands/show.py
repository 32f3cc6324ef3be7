"""``usbplugin list``, ``check`` and ``events``: what is here, what would be selected, what changes.

They ask the daemon of this node if one runs, for it knows who holds what and what has happened;
else, or when flags say where to look, they look at the hardware themselves.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from usbplugin.commands.hardware import Hardware
from usbplugin.commands.screen import Screen
from usbplugin.commands.table import scan, table
from usbplugin.errors import UsbPluginError
from usbplugin.foundation.places import Places
from usbplugin.status.client import Daemon
from usbplugin.telemetry import logs

if TYPE_CHECKING:
    import argparse
    from collections.abc import Coroutine

    from usbplugin.config import Config
    from usbplugin.discovery import Source
    from usbplugin.status.client import Document
    from usbplugin.status.rows import Row

_NOTHING = "No serial ports found. Is the device plugged in, and its driver loaded? See dmesg."
_REDRAW_INTERVAL = 0.1
_REFRESH_INTERVAL = 5.0

View = Daemon | Hardware


def show_list(options: argparse.Namespace) -> int:
    """Print the ports that are here, once or again and again."""
    logs.configure("warning", logs.LogFormat.TEXT)
    if options.watch:
        return _until_interrupted(_watch(options))
    found = asyncio.run(_rows(options))
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        colour = Screen(sys.stdout).has_colours
        print(table(found, colour=colour) if found else _NOTHING)
    return 0


def check(options: argparse.Namespace) -> int:
    """Validate a configuration, and show what it would select here.

    Whether it is valid does not hang on this machine: it may be meant for another one.
    """
    from usbplugin.commands.common import config_of, sources_of

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


def events(options: argparse.Namespace) -> int:
    """Print a line per change: those that are remembered, and those to come if asked for."""
    logs.configure("warning", logs.LogFormat.TEXT)
    if options.follow:
        return _until_interrupted(_follow(options))
    past = asyncio.run(_past(options))
    for event in past:
        _print_event(event, as_json=options.json)
    if not past:
        print("Nothing has happened yet.", file=sys.stderr)
    return 0


def event_line(event: Document) -> str:
    """An event for people."""
    nodes = event["nodes"]
    where = ",".join(map(str, nodes)) if isinstance(nodes, list | tuple) else ""
    notes = [str(event["reason"])] if event["reason"] else []
    if event["before"] != event["after"] and event["before"]:
        notes.insert(0, f"was {event['before']}")
    holders = event["holders"]
    if holders and isinstance(holders, list | tuple):
        notes.append(f"held by {', '.join(map(str, holders))}")
    parts = (event["time"], f"{event['event']!s:<10}", event["device"], where, event["resource"])
    line = "  ".join(str(part) for part in parts if part)
    return f"{line}  ({'; '.join(notes)})" if notes else line


async def _rows(options: argparse.Namespace) -> list[Row]:
    if daemon := await _daemon(options):
        return await daemon.rows()
    config, sources = _hardware(options)
    return scan(sources, config.rules())


async def _past(options: argparse.Namespace) -> list[Document]:
    async with AsyncExitStack() as exits:
        view = await _view(options, exits)
        return await view.past()


async def _follow(options: argparse.Namespace) -> None:
    async with AsyncExitStack() as exits:
        view = await _view(options, exits)
        async for event in view.follow():
            _print_event(event, as_json=options.json)


async def _watch(options: argparse.Namespace) -> None:
    changed = asyncio.Event()
    async with AsyncExitStack() as exits:
        view = await _view(options, exits)
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
                heading = f"{time.strftime('%H:%M:%S')}  from {view}; Ctrl-C ends this\n\n"
                shown = table(found, colour=screen.has_colours) if found else _NOTHING
                screen.show(heading + shown)
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


async def _view(options: argparse.Namespace, exits: AsyncExitStack) -> View:
    if daemon := await _daemon(options):
        return daemon
    config, sources = _hardware(options)
    hardware = Hardware(sources, config.rules(), config.health_policy())
    await exits.enter_async_context(hardware.running())
    return hardware


def _hardware(options: argparse.Namespace) -> tuple[Config, list[Source]]:
    # A configuration knows the kubelet's rules, and loads gRPC; what a daemon says needs none.
    from usbplugin.commands.common import config_of, sources_of

    config = config_of(options)
    return config, sources_of(options, config)


async def _daemon(options: argparse.Namespace) -> Daemon | None:
    """The daemon that is to be asked; None if the hardware is to be looked at."""
    if options.direct:
        return None
    daemon = Daemon(Places(link_dir=Path(options.link_dir)).control_socket)
    return daemon if await daemon.is_there() else None


def _until_interrupted(work: Coroutine[object, object, None]) -> int:
    """Run until it ends, or until Ctrl-C or SIGTERM, which is how one leaves."""

    async def run() -> None:
        task = asyncio.ensure_future(work)
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(run())
    return 0


def _print_event(event: Document, *, as_json: bool) -> None:
    print(json.dumps(event) if as_json else event_line(event), flush=True)
