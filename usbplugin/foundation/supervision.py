"""Keeps a task running: logs every failure and restarts the task after a pause."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from usbplugin.errors import UsbPluginError
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_log = logging.getLogger(__name__)

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 30.0
_GOOD_RUN = 60.0


class Part(msgspec.Struct):
    """The state of a supervised task, for health checks and metrics."""

    name: str
    running: bool = False
    failures: int = 0
    last_error: str = ""


async def supervise(
    part: Part, start: Callable[[], Awaitable[None]], stopping: asyncio.Event
) -> None:
    """Run ``start`` until it returns without an error, restarting it after each failure.

    The pause doubles with each failure, up to 30 s, and resets after a minute's good run.
    Cancelling this cancels the task.
    """
    loop = asyncio.get_running_loop()
    pause = _FIRST_PAUSE
    while not stopping.is_set():
        began = loop.time()
        work = asyncio.ensure_future(start())
        part.running = True
        try:
            await asyncio.wait({work})
        finally:
            part.running = False
            work.cancel()
        error = RuntimeError("cancelled from within") if work.cancelled() else work.exception()
        if error is None:
            return
        part.failures += 1
        part.last_error = str(error) or type(error).__name__
        if loop.time() - began > _GOOD_RUN:
            pause = _FIRST_PAUSE
        # An anticipated failure explains itself; anything else is a bug, so log the traceback.
        _log.error(
            "failed; restarting",
            exc_info=None if isinstance(error, UsbPluginError) else error,
            extra=fields(part=part.name, reason=error, seconds=pause),
        )
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await stopping.wait()
        pause = min(2 * pause, _LONGEST_PAUSE)
