"""Claims that nobody will ever unprepare, and claims that are in use and whose file was lost.

The kubelet may lose its notes; then it never asks us to unprepare what it does not know of. So a
claim that no container has for two minutes, and that the API server says is gone, is forgotten.
The other way round, one that containers have by the kubelet's word is prepared again if its file
was lost.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from usbplugin.dra.claim import uid_of
from usbplugin.dra.contracts import ClaimRef
from usbplugin.errors import ApiServerError, ClaimError
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from usbplugin.dra.contracts import ClaimReader
    from usbplugin.dra.preparer import Custody, Preparer

_log = logging.getLogger(__name__)

PATIENCE = 120.0
"""Seconds for which a prepared claim may be nobody's: its pod's image may be a large one."""
_INTERVAL = 30.0


class Reaper:
    """Compares what is prepared with who has it."""

    def __init__(
        self,
        preparer: Preparer,
        custody: Custody,
        reader: ClaimReader,
        refresh: Callable[[], Awaitable[None]],
        patience: float = PATIENCE,
        interval: float = _INTERVAL,
    ) -> None:
        """Look at what ``preparer`` prepared.

        Args:
            preparer: Forgets and prepares.
            custody: Knows which claims the kubelet names.
            reader: Reads claims from the API server.
            refresh: Has the kubelet asked who holds what.
            patience: Seconds for which a prepared claim may be nobody's.
            interval: Seconds between two looks.
        """
        self._preparer = preparer
        self._custody = custody
        self._reader = reader
        self._refresh = refresh
        self._patience = patience
        self._interval = interval
        self._nobodys: dict[str, float] = {}
        """By UID, when the kubelet was asked and did not name a claim, the first time in a row."""
        self._lost: dict[str, float] = {}
        """By name, when the kubelet was asked and named a claim of which we know nothing."""

    async def run(self) -> None:
        """Look now and then, until cancelled; as long as nothing is prepared, at nothing."""
        while True:
            await asyncio.sleep(self._interval)
            await self.look()

    async def look(self) -> None:
        """Forget what is nobody's, and prepare what is somebody's and was lost."""
        claimed = self._custody.claimed
        prepared = {claim.full_name for claim in self._preparer.claims.values()}
        if prepared - claimed.named:
            await self._refresh()
        if claimed.named_at == float("-inf"):
            return  # the kubelet has not said anything yet
        for uid, claim in list(self._preparer.claims.items()):
            if claim.full_name in claimed.named:
                self._nobodys.pop(uid, None)
                continue
            since = self._nobodys.setdefault(uid, claimed.named_at)
            if claimed.named_at - since >= self._patience:
                await self._forget(ClaimRef(uid, claim.namespace, claim.name))
        for uid in self._nobodys.keys() - self._preparer.claims.keys():
            del self._nobodys[uid]
        await self._recover_lost(claimed.named - prepared, claimed.named_at)

    async def _recover_lost(self, lost: frozenset[str], asked_at: float) -> None:
        """Prepare again what two answers of the kubelet's name: one may be older than the loss."""
        for name in lost & self._lost.keys():
            if asked_at > self._lost[name]:
                await self._recover(*name.partition("/")[::2])
        self._lost = {name: self._lost.get(name, asked_at) for name in lost}

    async def _forget(self, ref: ClaimRef) -> None:
        """Unprepare a claim if it is certainly gone; while nobody says so, it is kept."""
        try:
            is_gone = uid_of(await self._reader.claim(ref)) != ref.uid
        except ApiServerError as error:
            is_gone = error.status == 404  # noqa: PLR2004 -- HTTP's
        except ClaimError:
            is_gone = False
        if not is_gone:
            self._nobodys.pop(ref.uid, None)
            return
        _log.warning("claim forgotten: it is gone, and nobody has it", extra=fields(claim=str(ref)))
        try:
            await self._preparer.unprepare(ref)
        except ClaimError as error:
            _log.error("claim cannot be forgotten", extra=fields(claim=str(ref), reason=error))

    async def _recover(self, namespace: str, name: str) -> None:
        """A container has a claim of which no file tells: read it again, and write one."""
        try:
            uid = uid_of(await self._reader.claim(ClaimRef("", namespace, name)))
            await self._preparer.prepare(ClaimRef(uid, namespace, name))
        except (ApiServerError, ClaimError) as error:
            _log.warning(
                "a container has a claim of which nothing is known here",
                extra=fields(claim=f"{namespace}/{name}", reason=error),
            )
