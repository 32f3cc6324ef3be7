"""``usbplugin events``: what happened to devices, a line each, and what happens from now on."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from usbplugin.commands import flags
from usbplugin.commands.command import Command
from usbplugin.errors import DaemonError

if TYPE_CHECKING:
    import argparse

    from usbplugin.status.client import Document

_NOTHING = "No events yet. --follow waits for them."


def _add_flags(parser: argparse.ArgumentParser) -> None:
    flags.add_config(parser)
    flags.add_sources(parser)
    flags.add_daemon(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, an object on each line")
    parser.add_argument(
        "--follow", "-f", action="store_true", help="keep running, and show events as they happen"
    )


def _run(options: argparse.Namespace) -> int:
    from usbplugin.commands.view import until_interrupted
    from usbplugin.telemetry import logs

    logs.configure("warning", logs.LogFormat.TEXT)
    if options.follow:
        return until_interrupted(_follow(options))
    past = asyncio.run(_past(options))
    for event in past:
        _print_event(event, as_json=options.json)
    if not past:
        print(_NOTHING, file=sys.stderr)
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


async def _past(options: argparse.Namespace) -> list[Document]:
    from usbplugin.commands.view import daemon_of, view_of

    if daemon := await daemon_of(options, may_be_absent=True):
        return await daemon.past()
    if not options.direct:
        raise DaemonError(
            f"no daemon runs here with --link-dir {options.link_dir}, so nobody has kept a record"
            " of what happened; --follow shows what happens from now on, and usbplugin list what"
            " is here"
        )
    async with AsyncExitStack() as exits:
        view = await view_of(options, exits)
        return await view.past()


async def _follow(options: argparse.Namespace) -> None:
    from usbplugin.commands.view import view_of

    async with AsyncExitStack() as exits:
        view = await view_of(options, exits)
        async for event in view.follow():
            _print_event(event, as_json=options.json)


def _print_event(event: Document, *, as_json: bool) -> None:
    print(json.dumps(event) if as_json else event_line(event), flush=True)


COMMAND = Command("events", "show what happened to devices, a line each", _add_flags, _run)
