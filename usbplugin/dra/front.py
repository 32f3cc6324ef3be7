"""The DRA front as the agent sees it: found by the kubelet, told of devices, drained, closed.

One socket in the kubelet's plugins_registry serves everything. What the API server is told goes
through the publisher, which this module feeds and does not know.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from enum import Enum
from typing import TYPE_CHECKING

import grpc

from usbplugin.dra.roster import Roster
from usbplugin.dra.service import DraPlugin, Registration, ResourceHealth, add_services
from usbplugin.errors import ApiServerError, KubeletError
from usbplugin.kubelet.directory import unix_target
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence
    from pathlib import Path

    from usbplugin.custody import Offer
    from usbplugin.dra.contracts import DraObserver, PublishedDevice, Publisher
    from usbplugin.dra.preparer import Custody, Preparer
    from usbplugin.inventory import Change
    from usbplugin.kubelet import PluginDirectory

_log = logging.getLogger(__name__)

SOCKETS = "usbplugin DRA driver"
"""In place of a resource's name, for the name of the socket."""

_DRAIN_PATIENCE = 20.0
_STOP_GRACE = 1.0


class FrontState(Enum):
    """Where the front stands with the kubelet."""

    CLOSED = "closed"
    WAITING = "waiting for the kubelet"
    REGISTERED = "registered"
    REFUSED = "refused by the kubelet"


class DraFront:
    """Serves the kubelet, and has devices published. In the event loop only."""

    def __init__(
        self,
        custody: Custody,
        preparer: Preparer,
        publisher: Publisher,
        registry: PluginDirectory,
        pool: str,
        observer: DraObserver,
        retention: float,
        on_state: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Put the parts together; ``configure``, ``heard`` and ``run`` start them.

        Args:
            custody: Decides about devices.
            preparer: Gives them to claims.
            publisher: Has the API server know of them.
            registry: Where the kubelet finds our socket.
            pool: This node's name.
            observer: Told what happens.
            retention: Seconds for which devices that are unknown here are published, once a claim
                was allocated one.
            on_state: Called whenever ``state`` has changed.
            clock: The inventory's.
            wall: Unix seconds.
        """
        self._custody = custody
        self._preparer = preparer
        self._publisher = publisher
        self._registry = registry
        self._observer = observer
        self._roster = Roster(retention)
        self._on_state = on_state
        self._clock, self._wall = clock, wall
        self._offers: dict[str, Offer] = {}
        self._evict_after: float | None = None
        self._health = ResourceHealth(pool)
        self._plugin = DraPlugin(preparer, observer)
        self._heard = self._scheduled = False
        self._closing = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        self.state = FrontState.CLOSED
        self.refusal = ""
        """Why the kubelet refused us; empty if it did not."""
        self._listed: tuple[PublishedDevice, ...] | None = None

    @property
    def published(self) -> tuple[PublishedDevice, ...]:
        """All devices as they were published last."""
        return self._listed or ()

    @property
    def is_registered(self) -> bool:
        """Whether the kubelet knows it."""
        return self.state is FrontState.REGISTERED

    @property
    def is_draining(self) -> bool:
        """Whether it is here only for claims that are prepared: no resource is its own."""
        return not self._offers

    @property
    def is_done(self) -> bool:
        """Whether nobody needs it any longer."""
        return self.is_draining and not self._preparer.claims

    def configure(self, offers: Iterable[Offer], evict_after: float | None) -> None:
        """From now on, claims may have devices of these resources, on these terms."""
        self._offers = {offer.resource: offer for offer in offers}
        self._evict_after = evict_after
        self._preparer.offer(self._offers.values())
        self.changed()

    def make_true(self, changes: Sequence[Change]) -> None:
        """Devices have changed: see to what containers are given before anybody hears of it."""
        self._preparer.make_true(changes)
        self.changed()

    def heard(self) -> None:
        """Every source has listed its ports: what is not there now is away.

        Until then nothing is published: nobody is evicted for what is only not known yet.
        """
        self._heard = True
        self.changed()

    def changed(self) -> None:
        """Devices or claims have changed: publish them once this batch is through."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._publish)

    def look(self) -> None:
        """Something has changed in a directory, or it is time to check."""
        self._preparer.look()
        self._wake.set()

    async def run(self) -> None:
        """Be found and serve until ``close``; then drain, and be found no longer.

        It ends by itself once nobody needs it: no resource is its own, and no claim is prepared.
        """
        self._registry.remove_dead_sockets(SOCKETS)
        while not self._closing.is_set():
            path = self._registry.new_socket(SOCKETS)
            async with self._serving(path):
                self._enter(FrontState.WAITING)
                await self._until_lost(path)
                if self._closing.is_set():
                    # While the kubelet still finds us: a call that is cut off is repeated late.
                    await self._plugin.drain(_DRAIN_PATIENCE)
        if self.is_done:
            await self._withdraw()
        self._enter(FrontState.CLOSED)

    def close(self) -> None:
        """Make ``run`` return once no call is in flight."""
        self._closing.set()
        self._wake.set()

    async def _withdraw(self) -> None:
        """Take back what was published."""
        self._listed = None
        try:
            await self._publisher.withdraw()
        except ApiServerError as error:
            _log.warning(
                "ResourceSlices cannot be deleted; the kubelet does it in half a minute",
                extra=fields(reason=error),
            )

    async def _until_lost(self, path: Path) -> None:
        """Wait until closing, or until somebody has deleted the socket."""
        while not self._closing.is_set():
            self._wake.clear()
            if not _is_there(path):
                _log.info("beginning a new socket", extra=fields(reason=f"{path} was deleted"))
                return
            await self._wake.wait()

    @asynccontextmanager
    async def _serving(self, path: Path) -> AsyncIterator[None]:
        server = grpc.aio.server()
        add_services(server, Registration(self._verdict), self._plugin, self._health)
        try:
            # A whole server before the name that the kubelet looks for: it asks at once.
            server.add_insecure_port(unix_target(path))
        except RuntimeError as error:
            raise KubeletError(f"cannot serve on {path}: {error}") from error
        try:
            await server.start()
            _log.info("waiting for the kubelet's plugin watcher", extra=fields(socket=path))
            yield
        finally:
            self._registry.remove_socket(path)
            self._observer.dra_registered(is_registered=False)
            if self._closing.is_set():
                self._health.close()
            await server.stop(_STOP_GRACE)

    def _verdict(self, refusal: str) -> None:
        self.refusal = refusal
        self._observer.dra_registered(is_registered=not refusal)
        if refusal:
            _log.warning("the kubelet refused the DRA driver", extra=fields(reason=refusal))
            self._enter(FrontState.REFUSED)
        else:
            _log.info("registered as a DRA driver")
            self._enter(FrontState.REGISTERED)
            # It deletes our slices when it starts, a little before or after this.
            self._publisher.registered()

    def _publish(self) -> None:
        self._scheduled = False
        if self.is_done:
            self.close()
        if not self._heard or self._closing.is_set():
            return
        now = self._wall()
        if self._preparer.missed:
            self._roster.haunt(self._preparer.missed, now)
            self._preparer.missed.clear()
        listed = self._roster.list(
            self._custody.devices,
            self._offers,
            self._custody.claimed.holdings,
            frozenset(self._preparer.urgent),
            self._evict_after,
            (self._clock(), now),
        )
        self._observer.dra_claims(len(self._preparer.claims))
        if tuple(listed) != self._listed:
            self._listed = tuple(listed)
            self._publisher.publish(listed)
            self._health.publish(listed)
        self._set_timer(now)

    def _set_timer(self, now: float) -> None:
        """Publish again when the next ghost ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (end := self._roster.next_end()) is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(end - now, 0.0) + 0.01, self.changed)

    def _enter(self, state: FrontState) -> None:
        if state is not self.state:
            self.state = state
            self._on_state()


def _is_there(path: Path) -> bool:
    return path.exists()
