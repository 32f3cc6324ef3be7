"""Carries facts from the sources' threads into the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from usbplugin.discovery import Fact


class FactQueue:
    """Carries facts from any thread into the event loop, in batches.

    A loop callback takes them rather than a task, which would run one turn of the loop later.
    """

    def __init__(self, take: Callable[[list[Fact]], None]) -> None:
        """Call ``take`` with all new facts in the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._take = take
        self._facts: deque[Fact] = deque()
        self._signalled = False
        self._timer: asyncio.TimerHandle | None = None
        self._ended: asyncio.Future[None] = self._loop.create_future()

    def post(self, fact: Fact) -> None:
        """Add a fact; thread-safe. One wake-up serves all facts posted before it is handled."""
        self._facts.append(fact)
        if not self._signalled:
            self._signalled = True
            self._loop.call_soon_threadsafe(self._heed)

    def wake_at(self, moment: float | None) -> None:
        """Call ``take`` at that time (``time.monotonic``), whether there are facts or not.

        This replaces any earlier time; with None, ``take`` is called only for facts.
        """
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if moment is None else self._loop.call_at(moment, self._heed)

    async def run(self) -> None:
        """Wait until cancelled; after that, ``take`` is no longer called.

        Raises:
            Exception: whatever ``take`` raised.
        """
        try:
            await self._ended
        finally:
            self.wake_at(None)

    def _heed(self) -> None:
        if self._ended.done():
            return
        self._signalled = False  # before draining: a fact posted from here on wakes us again
        batch = []
        while self._facts:
            batch.append(self._facts.popleft())
        try:
            self._take(batch)
        except Exception as error:  # noqa: BLE001 -- run() raises it, whatever it is
            self._ended.set_exception(error)
