"""The DRA front's place in the agent: built, opened, and closed again, as the configuration asks.

It is the only module of the daemon that imports ``usbplugin.dra``, and does so when a front is
built: whoever uses the device plugin alone loads nothing of it, nor what speaks HTTP and TLS.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from usbplugin.errors import ConfigError
from usbplugin.foundation.boot import boot_id
from usbplugin.status.dra import FRONT, PUBLISHER, REAPER, DraJournal, DraView
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from usbplugin.config import Config
    from usbplugin.custody import Custody
    from usbplugin.dra.assembly import Assembly
    from usbplugin.dra.front import DraFront
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
        self._parts: Assembly | None = None
        self._config: Config | None = None
        self._heard = self._closing = False
        self._start: Callable[[], None] = lambda: None
        self._serving: asyncio.Task[None] | None = None
        self._helpers: list[asyncio.Task[None]] = []

    @property
    def front(self) -> DraFront | None:
        """The front, if there is one."""
        return self._parts.front if self._parts is not None else None

    def view(self) -> DraView | None:
        """Where the front stands; None if there is none."""
        if (parts := self._parts) is None:
            return None
        front, publication = parts.front, parts.publisher.publication
        return DraView(
            front.is_registered,
            front.state.value + (f": {front.refusal}" if front.refusal else ""),
            publication.slices,
            publication.problem,
            publication.dropped_fields,
            dict(parts.publisher.taints),
        )

    def check(self, config: Config) -> None:
        """See that a front can be built if the configuration asks for one.

        Raises:
            ConfigError: something is missing without which there can be none.
        """
        if config.uses_dra:
            from usbplugin.dra.assembly import access_of

            access_of(self._places)

    def begin(self, config: Config) -> None:
        """Build a front if the configuration asks for one, or an earlier one has left claims."""
        self._config = config
        if config.uses_dra or _has_any(self._places.claims_dir):
            self._build_or_complain(config)

    def open(self, help_: Help) -> None:
        """What is plugged in is known: let the front serve, if there is one."""
        self._start = lambda: self._open(help_)
        self._start()

    def heard(self) -> None:
        """Every source has listed its ports."""
        self._heard = True
        if self.front is not None:
            self.front.heard()

    def configure(self, config: Config) -> None:
        """Go on under another configuration: build a front, or have it drain."""
        self._config = config
        if self.front is not None:
            self._apply(self.front, config)
        elif config.uses_dra:
            self._build_or_complain(config)
            self._start()

    def look(self) -> None:
        """Something has changed in a directory, or it is time to check."""
        if self.front is not None and self._serving is not None:
            self.front.look()

    async def close(self) -> None:
        """Drain and end the front, if there is one; what was published stays."""
        self._closing = True
        if self.front is not None and self._serving is not None:
            self.front.close()
            await asyncio.wait({self._serving}, timeout=_CLOSE_TIMEOUT)
        await self._end()

    def _build_or_complain(self, config: Config) -> None:
        try:
            self._build(config)
        except ConfigError as error:
            _log.error("no DRA front", extra=fields(reason=error))

    def _build(self, config: Config) -> None:
        """Build a front.

        Raises:
            ConfigError: the configuration asks for one, and something is missing.
        """
        # Only here: most never need it.
        from usbplugin.dra.assembly import Assembly
        from usbplugin.telemetry.dra import DraMetrics

        metrics = DraMetrics()
        journal = DraJournal(metrics, self._history)
        parts = self._parts = Assembly(
            self._custody,
            self._places,
            self.registry,
            journal,
            self._refresh,
            self._on_state,
            journal.claims,
            boot=boot_id(),
            retention=config.health_policy().retention,
            has_to_publish=config.uses_dra,
        )
        self._metrics.dra = metrics
        self._apply(parts.front, config)
        if self._heard:
            parts.front.heard()

    def _apply(self, front: DraFront, config: Config) -> None:
        offers = [offer for offer in config.offers() if offer.by_claim]
        front.configure(offers, config.evicts_after)

    def _open(self, help_: Help) -> None:
        if (parts := self._parts) is None:
            return
        parts.preparer.attend()
        self._serving = help_(FRONT, parts.front.run)
        self._serving.add_done_callback(self._served)
        self._helpers = [help_(PUBLISHER, parts.publisher.run), help_(REAPER, parts.reaper.run)]

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
        if self._parts is not None:
            await self._parts.close()
        self._custody.claimed.precede(lambda _: None)
        self._parts = self._metrics.dra = None
        self._on_state()


def _has_any(claims: Path) -> bool:
    """Whether any claim is prepared here, for all that its directory tells."""
    try:
        return any(path.suffix == ".json" for path in claims.iterdir())
    except OSError:
        return False
