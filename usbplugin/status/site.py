"""What is served under which path. Anyone who can reach the address may read it all."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from usbplugin.telemetry.http import Request, Response, plain
from usbplugin.telemetry.instruments import CONTENT_TYPE

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from usbplugin.status.health import Report
    from usbplugin.status.history import Event, History
    from usbplugin.status.status import Status
    from usbplugin.telemetry.metrics import Metrics

EVENT_STREAM = "text/event-stream"
MOST_FOLLOWERS = 16
_KEEP_ALIVE = 15.0
_PAGE = Path(__file__).with_name("page.html")


class Site:
    """Answers requests about a running agent."""

    def __init__(
        self, status: Status, metrics: Metrics, history: History, node_name: str = ""
    ) -> None:
        """Answer from these; ``node_name`` is the node's name in the cluster, if it is known."""
        self._node_name = node_name
        self._status = status
        self._metrics = metrics
        self._history = history
        self._followers = 0
        # Tells this process's events from those of an earlier one.
        self._life = f"{time.time_ns() // 1_000_000:x}"
        self._answers: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "/": self._page,
            "/metrics": self._render_metrics,
            "/healthz": self._liveness,
            "/readyz": self._readiness,
            "/devices": self._devices,
            "/events": self._events,
        }

    async def answer(self, request: Request) -> Response:
        """The answer to a GET or HEAD request."""
        answer = self._answers.get(request.path)
        return await answer(request) if answer else plain(HTTPStatus.NOT_FOUND)

    async def _page(self, request: Request) -> Response:
        del request
        page = _PAGE.read_bytes()
        headers = {"Content-Security-Policy": policy(page), "Referrer-Policy": "no-referrer"}
        return Response(page, "text/html; charset=utf-8", headers=headers)

    async def _render_metrics(self, request: Request) -> Response:
        del request
        return Response(self._metrics.render(await self._status.readings()), CONTENT_TYPE)

    async def _liveness(self, request: Request) -> Response:
        del request
        return _verdict(await self._status.liveness())

    async def _readiness(self, request: Request) -> Response:
        del request
        return _verdict(self._status.readiness(), {"node": self._node_name})

    async def _devices(self, request: Request) -> Response:
        del request
        return Response(_json(await self._status.rows()))

    async def _events(self, request: Request) -> Response:
        if EVENT_STREAM not in request.headers.get("accept", ""):
            await self._status.refresh()
            return Response(
                _json([msgspec.structs.asdict(event) for event in self._history.events])
            )
        if self._followers >= MOST_FOLLOWERS:
            return plain(HTTPStatus.SERVICE_UNAVAILABLE)
        life, _, sequence = request.headers.get("last-event-id", "").partition("-")
        seen = int(sequence) if life == self._life and re.fullmatch("[0-9]{1,15}", sequence) else 0
        return Response(b"retry: 2000\n\n", EVENT_STREAM, stream=self._stream(seen))

    async def _stream(self, seen: int) -> AsyncGenerator[bytes, None]:
        """Server-sent events, in the format of the HTML standard."""
        self._followers += 1
        try:
            async for events in self._history.follow(seen, _KEEP_ALIVE):
                if not events:
                    await self._status.refresh()  # anything this reveals is an event too
                # Send a comment now and then, to notice when the other end has gone.
                yield b"".join(map(self._frame, events)) or b":\n\n"
        finally:
            self._followers -= 1

    def _frame(self, event: Event) -> bytes:
        data = json.dumps(msgspec.structs.asdict(event)).encode()  # always one line
        return b"id: %s-%d\ndata: %s\n\n" % (self._life.encode(), event.sequence, data)


def policy(page: bytes) -> str:
    """A Content-Security-Policy that lets the page's own script and style run, and nothing else."""

    def sources(tag: bytes) -> str:
        found = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), page, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(text).digest()).decode() for text in found)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {sources(b'script')}; style-src {sources(b'style')};"
        " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'"
    )


def _verdict(report: Report, more: Mapping[str, object] | None = None) -> Response:
    status = HTTPStatus.OK if report.ok else HTTPStatus.SERVICE_UNAVAILABLE
    return Response(_json(report.document() | dict(more or {})), status=status)


def _json(document: object) -> bytes:
    return json.dumps(document, indent=2).encode() + b"\n"
