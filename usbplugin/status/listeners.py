"""Where status is served: on an HTTP address for the cluster, and a Unix socket for this node.

Nothing else depends on either. If one cannot be opened, that is logged and shown as a metric, and
the plugin carries on without it.
"""

from __future__ import annotations

import logging
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

Address = tuple[str | None, int]
"""Host (None: all interfaces) and port."""


class Listeners:
    """Listens wherever it can."""

    def __init__(self, status: Status, metrics: Metrics, history: History) -> None:
        """Answer from these."""
        self._metrics = metrics
        site = Site(status, metrics, history)
        self._server = HttpServer(site.answer, metrics.http_answered, metrics.http_refused.add)

    async def open(self, address: Address | None, socket: Path) -> None:
        """Listen on ``socket``, and on ``address`` if there is one."""
        try:
            await self._server.listen_unix(socket)
        except OSError as error:
            _log.warning(
                "cannot open the control socket; usbplugin list and events will not work",
                extra=fields(socket=socket, error=error),
            )
        else:
            self._metrics.http_listening("unix", yes=True)
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

    async def close(self) -> None:
        """Stop listening."""
        await self._server.close()
