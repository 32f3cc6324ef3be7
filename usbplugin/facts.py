"""Carries what sources find, in their threads, into the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from usbplugin.discovery import Fact


class FactQueue:
    """Carries facts from any thread into the event loop, in batches."""

    def __init__(self) -> None:
        """Belong to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._facts: deque[Fact] = deque()
        self._signalled = False
        self._waiter: asyncio.Future[None] = self._loop.create_future()

    def post(self, fact: Fact) -> None:
        """Add a fact; thread-safe. One wake-up serves all facts posted before it is heeded."""
        self._facts.append(fact)
        if not self._signalled:
            self._signalled = True
            self._loop.call_soon_threadsafe(self._wake)

    async def get(self, deadline: float | None) -> list[Fact]:
        """All facts posted since; at ``deadline`` (``time.monotonic``) none, if there are none."""
        self._waiter = self._loop.create_future()
        timer = None if deadline is None else self._loop.call_at(deadline, self._wake)
        try:
            if not self._signalled:
                await self._waiter
        finally:
            if timer is not None:
                timer.cancel()
        self._signalled = False  # before draining: a fact posted from here on wakes us again
        batch = []
        while self._facts:
            batch.append(self._facts.popleft())
        return batch

    def _wake(self) -> None:
        if not self._waiter.done():
            self._waiter.set_result(None)
