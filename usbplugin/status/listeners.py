"""Where status is served: on an HTTP address for the cluster, and a Unix socket for this node.

Nothing else depends on either. If one cannot be opened, that is logged and shown as a metric, and
the plugin carries on without it.
"""

from __future__ import annotations

import asyncio
import logging
import socket as sockets
from contextlib import closing
from typing import TYPE_CHECKING

from usbplugin.status.site import Site
from usbplugin.telemetry.http import HttpServer
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from pathlib import Path

    from usbplugin.status.history import History
    from usbplugin.status.status import Status
    from usbplugin.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)

_BETWEEN_TRIES = 0.5

Address = tuple[str | None, int]
"""Host (None: all interfaces) and port."""


class Listeners:
    """Listens wherever it can."""

    def __init__(self, status: Status, metrics: Metrics, history: History) -> None:
        """Answer from these."""
        self._metrics = metrics
        self._socket: Path | None = None
        self._regaining: asyncio.Task[None] | None = None
        site = Site(status, metrics, history)
        self._server = HttpServer(site.answer, metrics.http_answered, metrics.http_refused.add)

    async def open(self, address: Address | None, socket: Path) -> None:
        """Listen on ``socket``, and on ``address`` if there is one."""
        self._socket = socket
        await self._open_socket(socket)
        if address is None:
            return
        host, port = address
        try:
            addresses = await self._server.listen_tcp(host, port)
        except OSError as error:
            _log.error(
                "cannot listen on the HTTP address; no metrics or health over HTTP",
                extra=fields(host=host or "*", port=port, error=error),
            )
        else:
            self._metrics.http_listening("tcp", yes=True)
            _log.info("serving metrics and health", extra=fields(addresses=addresses))

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
        if self._regaining is not None:
            self._regaining.cancel()
            await asyncio.gather(self._regaining, return_exceptions=True)
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
