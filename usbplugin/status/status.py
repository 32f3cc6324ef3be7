"""The status of a running agent, gathered from its parts on request."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from usbplugin.status import collect, health
from usbplugin.status.rows import Row, rows

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from usbplugin.custody import Custody
    from usbplugin.deviceplugin import Session
    from usbplugin.discovery import Source
    from usbplugin.foundation.supervision import Part
    from usbplugin.inventory import ResourceRule
    from usbplugin.status.dra import DraView
    from usbplugin.telemetry.instruments import Readings

_FRESH = 1.0


class Status:
    """A view of the agent's parts: the mappings are the agent's own, and live."""

    def __init__(
        self,
        custody: Custody,
        rules: Callable[[], Sequence[ResourceRule]],
        sources: Sequence[Source],
        sessions: Mapping[str, Session],
        parts: Mapping[str, Part],
        listed_at: Mapping[str, float],
        refresh: Callable[[], Awaitable[None]],
        dra: Callable[[], DraView | None] = lambda: None,
    ) -> None:
        """Watch these.

        Args:
            custody: The devices.
            rules: Returns the resources in force.
            sources: The sources of ports.
            sessions: The sessions, by resource.
            parts: The supervisor's view of sources and sessions, by name.
            listed_at: When each source last listed its ports, ``time.monotonic`` seconds.
            refresh: Asks the kubelet who holds what; called before devices are shown.
            dra: Returns where the DRA front stands; None if there is none.
        """
        self._custody = custody
        self._rules = rules
        self._sources = sources
        self._sessions = sessions
        self._parts = parts
        self._listed_at = listed_at
        self.refresh = refresh
        self.http_problem = ""
        """Why nobody listens on the HTTP address that was asked for; empty if somebody does."""
        self._dra = dra
        self._began = time.monotonic()
        self._dialling = asyncio.Lock()
        self._last_look: tuple[float, health.Report] | None = None

    async def rows(self) -> list[Row]:
        """Devices and ports, as rows."""
        await self.refresh()
        view = self._dra()
        return rows(
            self._custody.devices,
            self._custody.ports.values(),
            self._rules(),
            time.monotonic(),
            self._claims_of,
            view.taints if view else {},
        )

    async def liveness(self) -> health.Report:
        """Whether all parts are alive; dials our sockets at most once a second."""
        async with self._dialling:
            if self._last_look is not None:
                looked_at, report = self._last_look
                if time.monotonic() - looked_at < _FRESH:
                    return report
            sessions = list(self._sessions.values())
            report = await health.liveness(
                self._sources,
                self._listed_at,
                sessions,
                self._parts,
                self._began,
                has_dra=self._dra() is not None,
            )
            self._last_look = time.monotonic(), report
            return report

    def readiness(self) -> health.Report:
        """Whether all resources are served, and HTTP is where it was asked for."""
        rules = self._rules()
        return health.readiness(
            self._sources,
            self._listed_at,
            [rule.name for rule in rules if not rule.by_claim],
            self._sessions,
            self.http_problem,
            serves_claims=any(rule.by_claim for rule in rules),
            view=self._dra(),
        )

    async def readings(self) -> Iterable[Readings]:
        """The metrics that are read on demand rather than counted."""
        await self.refresh()
        return [
            *collect.of_devices(self._custody.devices, self._sessions),
            *collect.of_sources(self._sources, self._custody.ports, self._listed_at, self._parts),
            *collect.of_sessions(self._sessions.values()),
        ]

    def _claims_of(self, device_id: str) -> list[str]:
        holdings = self._custody.claimed.holdings(device_id)
        return sorted({holding.claim for holding in holdings if holding.claim})
