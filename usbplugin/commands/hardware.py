"""Follows the hardware directly, where no daemon runs: the same rows and events, but no kubelet."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from usbplugin.discovery import AllPorts, FactQueue
from usbplugin.inventory import Inventory
from usbplugin.status.history import History
from usbplugin.status.rows import Row, rows

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from usbplugin.discovery import Fact, Port, Source
    from usbplugin.inventory import HealthPolicy, ResourceRule
    from usbplugin.status.client import Document

_LONG = 3600.0


class Hardware:
    """What ``serve`` would see. Made within a running event loop."""

    def __init__(
        self, sources: Sequence[Source], rules: Sequence[ResourceRule], policy: HealthPolicy
    ) -> None:
        """Prepare to follow these sources."""
        self._sources = sources
        self._rules = rules
        self._inventory = Inventory(rules, policy, now=time.monotonic())
        self._history = History()
        self._unheard = {source.name for source in sources}
        self._heard = asyncio.Event()
        self._facts = FactQueue(self._take)
        self._work: tuple[asyncio.Future[Any], ...] = ()

    def __str__(self) -> str:
        return "the hardware, no daemon being asked"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow the sources meanwhile; begins when all of them have been heard.

        Raises:
            DiscoveryError: a source cannot see ports.
        """
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(len(self._sources), "source") as threads:
            runs = [loop.run_in_executor(threads, s.run, self._facts.post) for s in self._sources]
            keeping = asyncio.create_task(self._facts.run())
            hearing = asyncio.create_task(self._heard.wait())
            self._work = (*runs, keeping)
            try:
                await self._first(hearing)
                yield
            finally:
                keeping.cancel()
                hearing.cancel()
                for source in self._sources:
                    source.stop()

    @property
    def ports(self) -> tuple[Port, ...]:
        """All that are here now, whatever resource they belong to."""
        return tuple(self._inventory.ports.values())

    async def rows(self) -> list[Row]:
        """Devices and ports."""
        now = time.monotonic()
        devices = [d for rule in self._rules for d in self._inventory.snapshot(rule.name).devices]
        return rows(devices, self._inventory.ports.values(), self._rules, now)

    async def past(self) -> list[Document]:
        """What is here now, as events."""
        return [msgspec.structs.asdict(event) for event in self._history.events]

    async def follow(self) -> AsyncGenerator[Document, None]:
        """What is here now, as events, then each change as it happens.

        Raises:
            DiscoveryError: a source cannot see ports any longer.
        """
        batches = self._history.follow(0, _LONG)
        while True:
            batch = asyncio.ensure_future(anext(batches))
            try:
                await self._first(batch)
            finally:
                batch.cancel()
            for event in batch.result():
                yield msgspec.structs.asdict(event)

    async def _first(self, one: asyncio.Future[Any]) -> None:
        """Wait for it; raises what any of the work failed with, which ends by itself only so."""
        await asyncio.wait((one, *self._work), return_when=asyncio.FIRST_COMPLETED)
        for done in filter(asyncio.Future.done, self._work):
            done.result()

    def _take(self, facts: Sequence[Fact]) -> None:
        self._history.record(self._inventory.apply(facts, time.monotonic()).changes)
        self._facts.wake_at(self._inventory.deadline)
        self._unheard -= {fact.source for fact in facts if isinstance(fact, AllPorts)}
        if not self._unheard:
            self._heard.set()
