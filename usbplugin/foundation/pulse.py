"""Wakes everyone waiting for something to happen next."""

from __future__ import annotations

import asyncio


class Pulse:
    """A momentary event: a beat wakes those already waiting; later waiters wait for the next."""

    def __init__(self) -> None:
        """Start with nobody waiting."""
        self._next = asyncio.Event()

    def beat(self) -> None:
        """Wake everyone waiting now."""
        self._next.set()
        self._next = asyncio.Event()

    async def wait(self) -> None:
        """Wait for the next beat."""
        await self._next.wait()
