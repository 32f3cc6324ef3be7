"""The composition root: builds sources, inventory and sessions, and keeps them all running.

Everything but the sources lives in one event loop; facts come in from the sources' threads, and
one task turns them into snapshots.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

from usbplugin.discovery import AllPorts
from usbplugin.inventory import Inventory
from usbplugin.kubelet import Session
from usbplugin.supervision import supervise
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usbplugin.discovery import Fact, Source
    from usbplugin.inventory import Change, ResourceRule, Update
    from usbplugin.kubelet import Handover, LinkDirectory, PluginDirectory

_log = logging.getLogger(__name__)

_FIRST_SCAN_TIMEOUT = 3.0
_STOP_TIMEOUT = 3.0


class FactQueue:
    """Carries facts from any thread into the event loop, in batches."""

    def __init__(self) -> None:
        """Belong to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._facts: deque[Fact] = deque()
        self._ready = asyncio.Event()
        self._signalled = False

    def post(self, fact: Fact) -> None:
        """Add a fact; thread-safe. One wake-up serves all facts posted before it is heeded."""
        self._facts.append(fact)
        if not self._signalled:
            self._signalled = True
            self._loop.call_soon_threadsafe(self._ready.set)

    async def get(self, seconds: float | None) -> list[Fact]:
        """All facts posted since; after ``seconds`` without any, an empty list."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ready.wait()
        self._ready.clear()
        self._signalled = False  # before draining: a fact posted from here on wakes us again
        batch = []
        while self._facts:
            batch.append(self._facts.popleft())
        return batch


class Agent:
    """A running usbplugin."""

    def __init__(
        self,
        resources: Sequence[tuple[ResourceRule, Handover]],
        sources: Sequence[Source],
        directory: PluginDirectory,
        links: LinkDirectory,
    ) -> None:
        """Put the parts together; ``run`` starts them.

        Args:
            resources: What is selected, and how it is handed over; the first match wins.
            sources: Where ports are discovered; their names are unique.
            directory: Where the kubelet's socket is.
            links: Where stable paths to the nodes are kept.
        """
        self._sources = tuple(sources)
        self._directory = directory
        self._links = links
        self._inventory = Inventory([rule for rule, _ in resources])
        self._sessions = {
            handover.resource: Session(
                handover,
                self._inventory.snapshot(rule.name),
                directory,
                links.host_path,
                self._locate,
            )
            for rule, handover in resources
        }
        self._unheard = {source.name for source in self._sources}
        self._heard = asyncio.Event()

    async def run(self, stopping: asyncio.Event) -> None:
        """Serve until ``stopping`` is set; then end streams and remove our sockets.

        Links stay: containers that run may be restarted while no plugin does.
        """
        facts = FactQueue()
        with ThreadPoolExecutor(len(self._sources) or 1, "source") as threads:
            try:
                async with asyncio.TaskGroup() as tasks:
                    helpers = [
                        tasks.create_task(self._keep_inventory(facts)),
                        *(
                            tasks.create_task(self._run_source(source, facts, threads, stopping))
                            for source in self._sources
                        ),
                    ]
                    # The kubelet takes the first list for the whole truth: know it before.
                    await self._wait_for_first_scan(stopping)
                    helpers.append(tasks.create_task(self._directory.watch(self._look)))
                    sessions = [
                        tasks.create_task(supervise(f"session {name}", session.run, stopping))
                        for name, session in self._sessions.items()
                    ]
                    await stopping.wait()
                    _log.info("stopping")
                    for session in self._sessions.values():
                        session.close()
                    _, late = await asyncio.wait(sessions, timeout=_STOP_TIMEOUT)
                    for task in (*late, *helpers):
                        task.cancel()
            finally:
                for source in self._sources:
                    source.stop()

    async def _run_source(
        self,
        source: Source,
        facts: FactQueue,
        threads: ThreadPoolExecutor,
        stopping: asyncio.Event,
    ) -> None:
        loop = asyncio.get_running_loop()
        await supervise(
            f"source {source.name}",
            lambda: loop.run_in_executor(threads, source.run, facts.post),
            stopping,
        )

    async def _wait_for_first_scan(self, stopping: asyncio.Event) -> None:
        waits = {
            asyncio.ensure_future(self._heard.wait()),
            asyncio.ensure_future(stopping.wait()),
        }
        if self._unheard:
            await asyncio.wait(
                waits, timeout=_FIRST_SCAN_TIMEOUT, return_when=asyncio.FIRST_COMPLETED
            )
        for wait in waits:
            wait.cancel()
        if self._unheard and not stopping.is_set():
            _log.warning(
                "registering without having heard of all sources",
                extra=fields(missing=sorted(self._unheard)),
            )
        else:
            self._links.keep_only(
                {
                    device.id
                    for name in self._sessions
                    for device in self._inventory.snapshot(name).devices
                }
            )

    async def _keep_inventory(self, facts: FactQueue) -> None:
        while True:
            deadline = self._inventory.deadline
            wait = None if deadline is None else max(0.0, deadline - time.monotonic())
            batch = await facts.get(wait)
            update = self._inventory.apply(batch, time.monotonic())
            self._publish(update)
            await asyncio.sleep(0)  # the streams first, then the log
            for change in update.changes:
                _log_change(change)
            if self._unheard:
                self._unheard -= {fact.source for fact in batch if isinstance(fact, AllPorts)}
                if not self._unheard:
                    self._heard.set()

    def _publish(self, update: Update) -> None:
        for change in update.changes:
            if change.after is None:
                self._links.forget(change.device.id)
            else:
                # Before the kubelet hears of it, the path it may replay leads to the right node.
                self._links.update(change.device)
        for snapshot in update.snapshots:
            self._sessions[snapshot.resource].publish(snapshot)

    def _look(self) -> None:
        for session in self._sessions.values():
            session.look()

    def _locate(self, device_id: str) -> str | None:
        device = self._inventory.find(device_id)
        return device.resource if device else None


def _log_change(change: Change) -> None:
    device = change.device
    port = device.ports[0]
    event = f"device {change.after.value}" if change.after else "device forgotten"
    unusable = change.after is not None and not change.after.is_usable
    if change.before is change.after:
        event = "device changed"
    _log.log(
        logging.WARNING if unusable else logging.INFO,
        event,
        extra=fields(
            device=device.id,
            resource=device.resource,
            node=port.node,
            number=port.number,
            reason=device.reason,
            before=change.before.value if change.before else "new",
            readiness=port.readiness.name.lower(),
        ),
    )
