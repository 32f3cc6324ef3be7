"""Asks the kubelet who holds which device: where it decides something, and when somebody looks.

Otherwise hardly ever: each question wakes gRPC's threads, which take a quarter of a minute to calm
down again.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from usbplugin.errors import KubeletError
from usbplugin.foundation.pulse import Pulse
from usbplugin.inventory import HeldDevice
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from usbplugin.custody.custody import Custody
    from usbplugin.foundation.workers import Workers
    from usbplugin.kubelet import Checkpoint, PodResources
    from usbplugin.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)

_INTERVAL = 300.0
_SHORTEST_INTERVAL = 1.0
_INTERVAL_OF_FAILURES = 10.0
_PATIENCE_OF_WHO_LOOKS = 0.5
_PATIENCE_WITH_NOTES = 2.0
_LONG = 60.0
"""Seconds of not knowing that a restarted kubelet should not take."""


class Holders:
    """Keeps custody informed of who holds what."""

    def __init__(
        self,
        pod_resources: PodResources,
        checkpoint: Checkpoint,
        workers: Workers,
        custody: Custody,
        metrics: Metrics,
    ) -> None:
        """Ask ``pod_resources``, or else read ``checkpoint``; tell ``custody``."""
        self._pod_resources = pod_resources
        self._checkpoint = checkpoint
        self._workers = workers
        self._custody = custody
        self._metrics = metrics
        self._asked_at = -math.inf
        self._failed = True
        self._complaint = ""
        self._failing_since: float | None = None
        self._wanted = asyncio.Event()
        self._answered = Pulse()

    @property
    def can_be_asked(self) -> bool:
        """Whether there is anybody to ask."""
        return self._pod_resources.is_there or self._checkpoint.is_there

    async def ask(self) -> None:
        """Ask once, if there is anybody to ask."""
        self._failed = True
        if not self.can_be_asked:
            return
        asked_at = time.monotonic()
        try:
            held = await self._held()
        except KubeletError as error:
            self._complain(error, asked_at)
            self._metrics.holder_queries.add("failed")
        else:
            self._failed, self._complaint, self._failing_since = False, "", None
            self._metrics.holder_queries.add("ok")
            await self._custody.hear(held, asked_at)
        self._asked_at = asked_at

    async def _held(self) -> tuple[HeldDevice, ...]:
        """Who holds what.

        Raises:
            KubeletError: nobody says so.
        """
        if self._pod_resources.is_there:
            return await self._pod_resources.list()
        # Its notes name pods that have gone until the kubelet admits the next one: better a device
        # that waits too long than one with two containers.
        try:
            replays = await self._workers.answer(self._checkpoint.read, _PATIENCE_WITH_NOTES)
        except TimeoutError as error:
            raise KubeletError("the kubelet's checkpoint cannot be read in time") from error
        return tuple(
            HeldDevice(replay.resource, device_id, f"pod {replay.pod_uid}/{replay.container}")
            for replay in replays
            for device_id in replay.device_ids
        )

    async def watch(self) -> None:
        """Ask again and again: when devices change or are given away, and when somebody looks."""
        while True:
            await self._cause()
            self._wanted.clear()
            await self.ask()
            self._answered.beat()
            await asyncio.sleep(_SHORTEST_INTERVAL)  # a storm is asked about once

    async def refresh(self) -> None:
        """Have it asked for somebody who looks, unless that was done within the last second.

        A kubelet that does not answer is waited for half a second: then what is known has to do.
        """
        if not self.can_be_asked or time.monotonic() < self._asked_at + _SHORTEST_INTERVAL:
            return
        self._wanted.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_OF_WHO_LOOKS):
                await self._answered.wait()

    def _complain(self, error: KubeletError, now: float) -> None:
        """The kubelet is away now and then. It is asked again soon, perhaps every second."""
        if self._failing_since is None:
            self._failing_since = now
        lasts = now >= self._failing_since + _LONG
        complaint = f"{lasts} {error}"
        if complaint != self._complaint:
            self._complaint = complaint
            level = logging.WARNING if lasts else logging.INFO
            _log.log(
                level, "the kubelet does not say who holds devices", extra=fields(reason=error)
            )

    async def _cause(self) -> None:
        """Wait until there is a reason to ask."""
        causes = {
            asyncio.ensure_future(self._custody.changed()),
            asyncio.ensure_future(self._wanted.wait()),
        }
        try:
            await asyncio.wait(causes, timeout=self._interval, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for cause in causes:
                cause.cancel()

    @property
    def _interval(self) -> float:
        """Seconds after which to ask if nothing happens."""
        if self._custody.awaits_holders:
            return _SHORTEST_INTERVAL
        return _INTERVAL_OF_FAILURES if self._failed else _INTERVAL
