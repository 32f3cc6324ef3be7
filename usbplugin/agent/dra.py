"""The DRA front's place in the agent: built, opened, and closed again, as the configuration asks.

It is the only module of the daemon that imports ``usbplugin.dra``, and does so when a front is
built: whoever uses the device plugin alone loads nothing of it, nor what speaks HTTP and TLS.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from usbplugin.errors import ApiServerError, ConfigError
from usbplugin.foundation.boot import boot_id
from usbplugin.status.dra import FRONT, PUBLISHER, REAPER, DraJournal, DraView
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from usbplugin.config import Config
    from usbplugin.custody import Custody
    from usbplugin.dra.apiserver import ApiServer
    from usbplugin.dra.front import DraFront
    from usbplugin.dra.preparer import Preparer
    from usbplugin.foundation.places import Places
    from usbplugin.kubelet import PluginDirectory
    from usbplugin.status.history import History
    from usbplugin.telemetry.metrics import Metrics

    Help = Callable[[str, Callable[[], Awaitable[None]]], asyncio.Task[None]]
    """Keeps a part of that name running."""

_log = logging.getLogger(__name__)

_CLOSE_TIMEOUT = 25.0


class DraPart:
    """The DRA front, while there is one. In the event loop only."""

    def __init__(
        self,
        custody: Custody,
        places: Places,
        registry: PluginDirectory,
        metrics: Metrics,
        history: History,
        refresh: Callable[[], Awaitable[None]],
        on_state: Callable[[], None],
    ) -> None:
        """Begin with no front.

        Args:
            custody: Decides about devices.
            places: Where on this node things are.
            registry: Where the kubelet finds sockets.
            metrics: Show what happens, while there is a front.
            history: Remembers what happens.
            refresh: Has the kubelet asked who holds what.
            on_state: Called when the front's state changes.
        """
        self._custody = custody
        self._places = places
        self.registry = registry
        """Where the kubelet finds sockets."""
        self._metrics = metrics
        self._history = history
        self._refresh = refresh
        self._on_state = on_state
        self._front: DraFront | None = None
        self._preparer: Preparer | None = None
        self._server: ApiServer | None = None
        self._config: Config | None = None
        self._heard = self._closing = False
        self._start: Callable[[], None] = lambda: None
        self._serving: asyncio.Task[None] | None = None
        self._helpers: list[asyncio.Task[None]] = []

    @property
    def front(self) -> DraFront | None:
        """The front, if there is one."""
        return self._front

    def view(self) -> DraView | None:
        """Where the front stands; None if there is none."""
        if (front := self._front) is None:
            return None
        from usbplugin.dra.front import FrontState

        publication = self._publisher.publication
        return DraView(
            front.state is FrontState.REGISTERED,
            front.state.value + (f": {front.refusal}" if front.refusal else ""),
            publication.slices,
            publication.problem,
            publication.dropped_fields,
            self._publisher.taints,
        )

    def begin(self, config: Config) -> None:
        """Build a front if the configuration asks for one, or an earlier one has left claims.

        Raises:
            ConfigError: something is missing without which there can be none.
        """
        self._config = config
        if config.uses_dra or _has_any(self._places.claims_dir):
            self._build(config)

    def open(self, help_: Help) -> None:
        """What is plugged in is known: let the front serve, if there is one."""
        self._start = lambda: self._open(help_)
        self._start()

    def heard(self) -> None:
        """Every source has listed its ports."""
        self._heard = True
        if self._front is not None:
            self._front.heard()

    def configure(self, config: Config) -> None:
        """Go on under another configuration: build a front, or have it drain."""
        self._config = config
        if self._front is not None:
            self._apply(self._front, config)
        elif config.uses_dra:
            try:
                self._build(config)
            except ConfigError as error:
                _log.error("no DRA front", extra=fields(reason=error))
                return
            self._start()

    def look(self) -> None:
        """Something has changed in a directory, or it is time to check."""
        if self._front is not None and self._serving is not None:
            self._front.look()

    async def close(self) -> None:
        """Drain and end the front, if there is one; what was published stays."""
        self._closing = True
        if self._front is not None and self._serving is not None:
            self._front.close()
            await asyncio.wait({self._serving}, timeout=_CLOSE_TIMEOUT)
        await self._end()

    def _build(self, config: Config) -> None:
        # Only here: most never need it.
        from usbplugin.dra.access import Access
        from usbplugin.dra.apiserver import ApiServer
        from usbplugin.dra.claims import ClaimStore
        from usbplugin.dra.cluster import Cluster
        from usbplugin.dra.front import DraFront
        from usbplugin.dra.poolfile import PoolFile
        from usbplugin.dra.preparer import Preparer
        from usbplugin.dra.publisher import SlicePublisher
        from usbplugin.dra.reaper import Reaper
        from usbplugin.dra.specs import ClaimSpecs
        from usbplugin.telemetry.dra import DraMetrics

        node = self._places.node_name
        if not node:
            raise ConfigError("front: dra needs to know this node's name: set --node-name")
        try:
            if url := self._places.api_server:
                access = Access.of(url, self._places.service_account)
            else:
                access = Access.in_cluster(directory=self._places.service_account)
        except ApiServerError as error:
            raise ConfigError(str(error)) from error
        self._metrics.dra = DraMetrics()
        observer = self._journal = DraJournal(self._metrics.dra, self._history)
        self._server = ApiServer(access)
        cluster = Cluster(self._server)
        publisher = SlicePublisher(
            cluster, node, PoolFile(self._places.state_dir / "pool"), observer
        )
        self._preparer = Preparer(
            self._custody,
            ClaimStore(self._places.claims_dir),
            ClaimSpecs(self._places.cdi_dir),
            cluster,
            node,
            boot_id(),
            self._changed,
        )
        self._front = DraFront(
            self._custody,
            self._preparer,
            publisher,
            self.registry,
            node,
            observer,
            config.health_policy().retention,
            self._on_state,
        )
        self._reaper = Reaper(self._preparer, self._custody, cluster, self._refresh)
        self._publisher = publisher
        self._custody.claimed.precede(self._front.make_true)
        self._preparer.begin()
        self._changed()
        self._apply(self._front, config)
        if self._heard:
            self._front.heard()

    def _apply(self, front: DraFront, config: Config) -> None:
        offers = [offer for offer in config.offers() if offer.by_claim]
        front.configure(offers, config.evicts_after)

    def _open(self, help_: Help) -> None:
        if self._front is None or self._preparer is None:
            return
        self._preparer.attend()
        front = self._front
        self._serving = help_(FRONT, front.run)
        self._serving.add_done_callback(self._served)
        self._helpers = [
            help_(PUBLISHER, self._publisher.run),
            help_(REAPER, self._reaper.run),
        ]

    def _changed(self) -> None:
        """Claims have come or gone."""
        if self._front is not None and self._preparer is not None:
            self._front.changed()
            self._journal.claims(
                {
                    claim.full_name: tuple(one.device_id for one in claim.devices)
                    for claim in self._preparer.claims.values()
                }
            )

    def _served(self, task: asyncio.Task[None]) -> None:
        """It has ended by itself: forget it, unless it was asked for again in the meantime."""
        if not self._closing and not task.cancelled():
            self._serving = asyncio.get_running_loop().create_task(self._renew())

    async def _renew(self) -> None:
        await self._end()
        if self._config is not None:
            self.configure(self._config)

    async def _end(self) -> None:
        for task in self._helpers:
            task.cancel()
        if self._helpers:
            await asyncio.wait(self._helpers)
        self._helpers.clear()
        if self._server is not None:
            await self._server.close()
        self._custody.claimed.precede(lambda _: None)
        self._front = self._preparer = self._server = self._metrics.dra = None
        self._on_state()


def _has_any(claims: Path) -> bool:
    """Whether any claim is prepared here, for all that its directory tells."""
    try:
        return any(path.suffix == ".json" for path in claims.iterdir())
    except OSError:
        return False
