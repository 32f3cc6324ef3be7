"""Wakes whoever waits for the next time that something happens."""

from __future__ import annotations

import asyncio


class Pulse:
    """An event that is over at once: whoever waits after it waits for the next one."""

    def __init__(self) -> None:
        """Nobody waits yet."""
        self._next = asyncio.Event()

    def beat(self) -> None:
        """Wake all who wait now."""
        self._next.set()
        self._next = asyncio.Event()

    async def wait(self) -> None:
        """Wait for the next beat."""
        await self._next.wait()
