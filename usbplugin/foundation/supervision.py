"""Keeps a piece of work running: whatever ends it is logged, and it begins again after a pause."""

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
    """A piece of work under supervision, for whoever asks how it is."""

    name: str
    running: bool = False
    failures: int = 0
    last_error: str = ""


async def supervise(
    part: Part, start: Callable[[], Awaitable[None]], stopping: asyncio.Event
) -> None:
    """Await what ``start`` returns, again and again, until it returns without an error.

    The pause doubles with each failure, up to half a minute, and is forgotten after a good run.
    Cancelling this cancels the work.
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
        # A failure that was foreseen explains itself; any other one is a defect: show where it is.
        _log.error(
            "failed; starting it again",
            exc_info=None if isinstance(error, UsbPluginError) else error,
            extra=fields(part=part.name, reason=error, seconds=pause),
        )
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await stopping.wait()
        pause = min(2 * pause, _LONGEST_PAUSE)
