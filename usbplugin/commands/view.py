"""Whom ``list`` and ``events`` ask: the daemon of this node, or the hardware itself.

The daemon knows who holds what and what has happened; where none runs, or flags say where to look,
the hardware is looked at directly, which tells nothing of the past.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from usbplugin.commands.hardware import Hardware
from usbplugin.errors import DaemonError
from usbplugin.foundation.places import Places
from usbplugin.status.client import Daemon

if TYPE_CHECKING:
    import argparse
    from collections.abc import Coroutine
    from contextlib import AsyncExitStack

    from usbplugin.config import Config
    from usbplugin.discovery import Source

View = Daemon | Hardware


async def view_of(options: argparse.Namespace, exits: AsyncExitStack) -> View:
    """The daemon if it is to be asked, else the hardware, followed until ``exits`` closes."""
    if daemon := await daemon_of(options):
        return daemon
    config, sources = hardware_of(options)
    hardware = Hardware(sources, config.rules(), config.health_policy())
    await exits.enter_async_context(hardware.running())
    return hardware


def hardware_of(options: argparse.Namespace) -> tuple[Config, list[Source]]:
    """The configuration and the sources, to look at the hardware with."""
    # A configuration knows the kubelet's rules, and loads gRPC; what a daemon says needs none.
    from usbplugin.commands.wiring import config_of, sources_of

    config = config_of(options)
    return config, sources_of(options, config)


async def daemon_of(options: argparse.Namespace, *, may_be_absent: bool = False) -> Daemon | None:
    """The daemon that is to be asked; None if the hardware is to be looked at.

    Raises:
        DaemonError: somebody said where it is, and it is not there; not if it ``may_be_absent``.
    """
    if options.direct:
        return None
    socket = Places(link_dir=Path(options.link_dir)).control_socket
    daemon = Daemon(socket)
    if await daemon.is_there():
        return daemon
    if options.needs_daemon and not may_be_absent:
        raise DaemonError(
            f"no daemon answers on {socket}: is usbplugin serve running there? --direct looks at"
            " the hardware instead"
        )
    return None


def until_interrupted(work: Coroutine[object, object, None]) -> int:
    """Run until it ends, or until Ctrl-C or SIGTERM, which is how one leaves."""

    async def run() -> None:
        task = asyncio.ensure_future(work)
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(run())
    return 0
