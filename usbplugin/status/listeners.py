"""Where status is served: on an HTTP address for the cluster, and a Unix socket for this node.

Nothing else depends on either. If one cannot be opened, that is logged and shown as a metric, and
the plugin carries on without it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket as sockets
from contextlib import closing
from typing import TYPE_CHECKING

from usbplugin.status.site import Site
from usbplugin.telemetry.http import HttpServer
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from usbplugin.status.history import History
    from usbplugin.status.status import Status
    from usbplugin.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)

_BETWEEN_TRIES = 0.5
_BETWEEN_ADDRESSES = 5.0
"""Seconds between tries of the HTTP address: whoever has it may go."""
_SAID_AGAIN_AFTER = 60
"""Tries after which the failure is logged once more."""

Address = tuple[str | None, int]
"""Host (None: all interfaces) and port."""


class Listeners:
    """Listens wherever it can."""

    def __init__(
        self,
        status: Status,
        metrics: Metrics,
        history: History,
        on_change: Callable[[], None] = lambda: None,
        node_name: str = "",
    ) -> None:
        """Answer from these.

        Args:
            status: Where everything stands.
            metrics: What has been counted.
            history: What has happened.
            on_change: Called when the status's ``http_problem`` has changed.
            node_name: The node's name in the cluster, if it is known.
        """
        self._status = status
        self._on_change = on_change
        self._metrics = metrics
        self._socket: Path | None = None
        self._regaining: asyncio.Task[None] | None = None
        self._opening: asyncio.Task[None] | None = None
        site = Site(status, metrics, history, node_name)
        self._server = HttpServer(site.answer, metrics.http_answered, metrics.http_refused.add)

    async def open(self, address: Address | None, socket: Path) -> None:
        """Listen on ``socket``, and on ``address`` if there is one."""
        self._socket = socket
        await self._open_socket(socket)
        if address is None:
            return
        if not await self._listens(address, is_news=True):
            self._opening = asyncio.create_task(self._keep_opening(address))

    async def _listens(self, address: Address, *, is_news: bool) -> bool:
        """Listen on the address; False if that cannot be done now."""
        host, port = address
        try:
            addresses = await self._server.listen_tcp(host, port)
        except OSError as error:
            # asyncio's own text is a sentence about the call that failed.
            number = error.errno or 0
            reason = os.strerror(number) if number > 0 else error.strerror
            self._tell(f"{host or '*'}:{port}: {reason}")
            if is_news:
                _log.error(
                    "cannot listen on the HTTP address: no metrics or health over HTTP; trying"
                    " again",
                    extra=fields(
                        host=host or "*",
                        port=port,
                        reason=reason,
                        seconds=_BETWEEN_ADDRESSES,
                        hint="--http-address chooses another one",
                    ),
                )
            return False
        self._tell("")
        _log.info("serving metrics and health", extra=fields(addresses=addresses))
        return True

    def _tell(self, problem: str) -> None:
        self._metrics.http_listening("tcp", yes=not problem)
        if problem != self._status.http_problem:
            self._status.http_problem = problem
            self._on_change()

    async def _keep_opening(self, address: Address) -> None:
        tries = 1
        while True:
            await asyncio.sleep(_BETWEEN_ADDRESSES)
            if await self._listens(address, is_news=tries % _SAID_AGAIN_AFTER == 0):
                return
            tries += 1

    def look(self) -> None:
        """See whether another instance has taken our socket's place, and get it back after that."""
        is_lost = self._socket is not None and not self._server.is_at(self._socket)
        if is_lost and (self._regaining is None or self._regaining.done()):
            self._regaining = asyncio.create_task(self._regain())

    async def _regain(self) -> None:
        while self._socket is not None and not self._server.is_at(self._socket):
            if not _answers(self._socket):
                await self._open_socket(self._socket)
            await asyncio.sleep(_BETWEEN_TRIES)

    async def _open_socket(self, socket: Path) -> None:
        try:
            await self._server.listen_unix(socket)
        except OSError as error:
            _log.warning(
                "cannot open the control socket; usbplugin list and events will not work",
                extra=fields(socket=socket, error=error),
            )
        else:
            self._metrics.http_listening("unix", yes=True)

    async def close(self) -> None:
        """Stop listening."""
        self._socket = None
        for task in filter(None, (self._regaining, self._opening)):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._server.close()


def _answers(path: Path) -> bool:
    with closing(sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)) as probe:
        probe.settimeout(0)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return True  # so many are waiting to be answered
        except OSError:
            return False
    return True
