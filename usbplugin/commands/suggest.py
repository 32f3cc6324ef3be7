"""``usbplugin suggest``: the resource and the pod for what is plugged in, to be pasted."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

from usbplugin.commands import flags
from usbplugin.commands.command import Command

if TYPE_CHECKING:
    import argparse
    from collections.abc import Collection, Sequence

    from usbplugin.commands.hardware import Hardware
    from usbplugin.config import Config
    from usbplugin.discovery import Port, Source

_NOTHING = "no serial port is here to suggest a resource for: plug one in, or wait with --watch"
_QUIET = 1.0
"""Seconds without a change after which a device has shown all its ports."""


def _add_flags(parser: argparse.ArgumentParser) -> None:
    flags.add_config(parser)
    flags.add_sources(parser)
    parser.add_argument(
        "--watch", action="store_true", help="wait for the next device to be plugged in"
    )


def _run(options: argparse.Namespace) -> int:
    from usbplugin.commands.view import hardware_of, until_interrupted
    from usbplugin.telemetry import logs

    logs.configure("warning", logs.LogFormat.TEXT)
    config, sources = hardware_of(options)
    if options.watch:
        return until_interrupted(_next(options, config, sources))
    from usbplugin.commands.suggestion import by_device

    present = [port for source in sources for port in source.scan()]
    if not present:
        print(f"usbplugin: {_NOTHING}", file=sys.stderr)
        return 1
    _print(options, config, list(by_device(present).values()), present)
    return 0


async def _next(options: argparse.Namespace, config: Config, sources: Sequence[Source]) -> None:
    """Wait for a device to be plugged in, and print what to write for it."""
    from usbplugin.commands.hardware import Hardware
    from usbplugin.commands.suggestion import by_device
    from usbplugin.config.model import DEFAULT_RESOURCE
    from usbplugin.inventory import ResourceRule

    # Of ports that no resource selects nothing would be heard: here all belong to one.
    everything = [ResourceRule(DEFAULT_RESOURCE)]
    async with AsyncExitStack() as exits:
        hardware = Hardware(sources, everything, config.health_policy())
        await exits.enter_async_context(hardware.running())
        known = _arrivals(hardware.ports)
        print("waiting for a device to be plugged in; Ctrl-C ends this", file=sys.stderr)
        changed = asyncio.Event()
        following = asyncio.create_task(_signal_changes(hardware, changed))
        exits.callback(following.cancel)
        while not following.done():
            await changed.wait()
            changed.clear()
            await _until_quiet(changed)
            present = hardware.ports
            known &= _arrivals(present)  # a device that has gone may be the next to come
            new = [ports for ports in by_device(present).values() if not _arrivals(ports) <= known]
            if new:
                _print(options, config, new, present)
                return
        await following  # raises what ended it


async def _until_quiet(changed: asyncio.Event) -> None:
    with suppress(TimeoutError):
        while True:
            async with asyncio.timeout(_QUIET):
                await changed.wait()
            changed.clear()


async def _signal_changes(hardware: Hardware, changed: asyncio.Event) -> None:
    try:
        async for _ in hardware.follow():
            changed.set()
    finally:
        changed.set()


def _arrivals(ports: Collection[Port]) -> set[tuple[object, ...]]:
    """Which ports, and which life of each."""
    return {(port.node, port.sysfs_path, port.usb, port.initialized_usec) for port in ports}


def _print(
    options: argparse.Namespace,
    config: Config,
    wanted: Sequence[Sequence[Port]],
    present: Collection[Port],
) -> None:
    from usbplugin.commands.suggestion import configuration, pod, suggest
    from usbplugin.config.model import DEFAULT_RESOURCE

    found = suggest(wanted, present, config.rules())
    print(configuration(found, file=options.config, default=DEFAULT_RESOURCE))
    for suggestion in found:
        pod_text = pod(suggestion, _group(suggestion.ports[0].node))
        print(f"---\n# A pod that uses it\n{pod_text}")
    sys.stdout.flush()


def _group(node: str) -> int | None:
    """The group that may read and write the node, unless it is root's."""
    try:
        status = os.stat(node)  # noqa: PTH116 -- a str
    except OSError:
        return None
    both = stat.S_IRGRP | stat.S_IWGRP
    return status.st_gid or None if status.st_mode & both == both else None


COMMAND = Command(
    "suggest",
    "write the resource and the pod for a device that is plugged in",
    _add_flags,
    _run,
)
