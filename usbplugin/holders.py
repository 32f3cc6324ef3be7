"""Asks the kubelet who holds which device: at start, now and then, and soon where it decides."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from usbplugin.errors import KubeletError
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from usbplugin.custody import Custody
    from usbplugin.kubelet import PodResources
    from usbplugin.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)

_INTERVAL = 30.0
_SHORTEST_INTERVAL = 1.0


class Holders:
    """Keeps custody informed of who holds what."""

    def __init__(self, pod_resources: PodResources, custody: Custody, metrics: Metrics) -> None:
        """Ask ``pod_resources``, tell ``custody``."""
        self._pod_resources = pod_resources
        self._custody = custody
        self._metrics = metrics

    @property
    def can_be_asked(self) -> bool:
        """Whether there is anybody to ask."""
        return self._pod_resources.is_there

    async def ask(self) -> None:
        """Ask once, if there is anybody to ask."""
        if not self.can_be_asked:
            return
        asked_at = time.monotonic()
        try:
            holdings = await self._pod_resources.list()
        except KubeletError as error:
            # It is away now and then, and asked again soon.
            _log.info("who holds devices is not known now", extra=fields(reason=error))
            self._metrics.holder_queries.add("failed")
        else:
            self._metrics.holder_queries.add("ok")
            self._custody.hold(holdings, asked_at)

    async def watch(self) -> None:
        """Ask again and again: when devices change or are given away, and now and then besides."""
        while True:
            soon = self._custody.awaits_holders
            with suppress(TimeoutError):
                async with asyncio.timeout(_SHORTEST_INTERVAL if soon else _INTERVAL):
                    await self._custody.changed()
            await self.ask()
            await asyncio.sleep(_SHORTEST_INTERVAL)  # a storm is asked about once
