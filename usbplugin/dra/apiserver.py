"""HTTP/1.1 to the cluster's API server: TLS, a token, and connections that are kept.

Each request has a deadline and can be cancelled; a server that hangs, talks nonsense or hangs up
costs that request and nothing else. It knows nothing of what is asked; see ``cluster``.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import h11
import msgspec

from usbplugin import __version__
from usbplugin.errors import ApiServerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from usbplugin.dra.access import Access

REQUEST_SECONDS = 10.0
"""A request, its connection included."""
CONNECT_SECONDS = 3.0
"""Until a connection is open, TLS included."""
_LONGEST_HEAD = 64 * 1024
_LONGEST_BODY = 16 * 1024 * 1024
_MOST_IDLE = 2
"""Connections that are kept: one for slices, and one for a claim in the meantime."""
_UNAUTHORIZED = 401


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, whatever its status."""

    status: int
    body: bytes
    retry_after: float | None = None
    """Seconds that the server asks to be left alone."""

    @property
    def is_ok(self) -> bool:
        """Whether what was asked for was done."""
        return 200 <= self.status < 300  # noqa: PLR2004 -- RFC 9110

    @property
    def message(self) -> str:
        """What the server says, in one line, if it says anything that can be read."""
        with suppress(msgspec.MsgspecError, UnicodeDecodeError):
            if text := msgspec.json.decode(self.body, type=_Status).message:
                return _one_line(text)
        return _one_line(self.body[:_LONGEST_MESSAGE].decode(errors="replace"))


class _Status(msgspec.Struct):
    message: str = ""


class ApiServer:
    """Makes requests of the API server. In the event loop only."""

    def __init__(self, access: Access) -> None:
        """Prepare; nothing is opened or read yet."""
        self._access = access
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()
        self._tls: tuple[tuple[int, int, int], ssl.SSLContext] | None = None
        self._reopening: asyncio.Task[None] | None = None
        self._is_closed = False

    async def request(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        content_type: str = "application/json",
        seconds: float = REQUEST_SECONDS,
    ) -> Reply:
        """Make a request that may be made twice with the same effect: it is, if need be.

        An answer of 401 leads to one more attempt with the token read afresh.

        Args:
            method: Such as ``GET``.
            target: Path and query.
            body: What to send, if anything.
            content_type: What the body is.
            seconds: For how long to try.

        Raises:
            ApiServerError: there was no answer; its status is None.
        """
        try:
            async with asyncio.timeout(seconds):
                reply = await self._ask(method, target, body, content_type)
                if reply.status == _UNAUTHORIZED:
                    reply = await self._ask(method, target, body, content_type)
                return reply
        except TimeoutError as error:
            raise self._error(f"did not answer within {seconds:g} s") from error

    async def open(self) -> None:
        """Have a connection ready, so that the first request that matters need not wait for one.

        Raises:
            ApiServerError: there is none.
        """
        if not self._idle:
            self._keep(await self._connect())

    async def close(self) -> None:
        """Hang up."""
        self._is_closed = True
        if self._reopening is not None:
            self._reopening.cancel()
        for connection in (*self._idle, *self._busy):
            connection.abort()
        self._idle.clear()

    async def _ask(self, method: str, target: str, body: bytes | None, content_type: str) -> Reply:
        headers = [
            ("Host", self._access.authority),
            ("Authorization", f"Bearer {self._token()}"),
            ("User-Agent", f"usbplugin/{__version__}"),
            ("Accept", "application/json"),
        ]
        if body is not None:
            headers += [("Content-Type", content_type), ("Content-Length", str(len(body)))]
        try:
            head = h11.Request(method=method, target=target, headers=headers)
        except h11.LocalProtocolError as error:
            raise self._error(f"cannot be asked for {target!r}: {error}") from error
        while self._idle:
            kept = self._idle.pop()
            with suppress(_HungUpError):  # between two requests, as it may
                return await self._exchange(kept, head, body)
        connection = await self._connect()
        try:
            return await self._exchange(connection, head, body)
        except _HungUpError as error:
            raise self._error(str(error)) from error

    async def _exchange(
        self, connection: _Connection, head: h11.Request, body: bytes | None
    ) -> Reply:
        self._busy.add(connection)
        try:
            reply = await connection.exchange(head, body)
        except h11.ProtocolError as error:
            raise self._error(f"does not speak HTTP as expected: {error}") from error
        except _TooMuchError as error:
            raise self._error(str(error)) from error
        finally:
            self._busy.discard(connection)
            if not self._is_closed and connection.is_reusable:
                self._keep(connection)
            else:
                connection.abort()
        return reply

    def _keep(self, connection: _Connection) -> None:
        self._idle.append(connection)
        while len(self._idle) > _MOST_IDLE:
            self._idle.pop(0).abort()

    def _lost(self, connection: _Connection) -> None:
        """A connection has ended: if it was the last one that was kept, have another one ready."""
        if connection not in self._idle:
            return
        self._idle.remove(connection)
        if not (self._idle or self._is_closed or self._busy):
            self._reopening = asyncio.get_running_loop().create_task(self._reopen())

    async def _reopen(self) -> None:
        with suppress(ApiServerError):  # the next request will say so
            await self.open()

    async def _connect(self) -> _Connection:
        context = None if self._access.is_plain else self._context()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: _Connection(self._lost),
                    self._access.host,
                    self._access.port,
                    ssl=context,
                    server_hostname=self._access.host if context else None,
                )
        except TimeoutError as error:
            raise self._error(f"cannot be reached within {CONNECT_SECONDS:g} s") from error
        except ssl.SSLCertVerificationError as error:
            raise self._error(
                f"has a certificate that {self._access.ca_file} does not vouch for:"
                f" {error.verify_message}"
            ) from error
        except OSError as error:
            raise self._error(f"cannot be reached: {error.strerror or error}") from error
        return connection

    def _context(self) -> ssl.SSLContext:
        """What to trust, as the file says now: a cluster's CA can be replaced."""
        file = self._access.ca_file
        try:
            status = file.stat()
            stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
            if self._tls is None or self._tls[0] != stamp:
                context = ssl.create_default_context(cafile=str(file))
                # Clusters' CAs are often without a key identifier, which Python asks for since 3.13
                # and the chain of trust does without.
                context.verify_flags &= ~ssl.VERIFY_X509_STRICT
                self._tls = (stamp, context)
        except OSError as error:  # ssl.SSLError is one
            raise self._error(
                f"cannot be trusted: {file} cannot be read: {error.strerror or error}"
            ) from error
        return self._tls[1]

    def _token(self) -> str:
        """The token as it is now: the kubelet replaces it before it expires."""
        file = self._access.token_file
        try:
            token = file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise self._error(
                f"cannot be asked: no token in {file} ({_reason(error)}); the manifests' dra"
                " component mounts one"
            ) from error
        if not (token and token.isprintable()):
            raise self._error(f"cannot be asked: what is in {file} is no token")
        return token

    def _error(self, what: str) -> ApiServerError:
        return ApiServerError(None, f"the API server at {self._access.authority} {what}")


class _HungUpError(Exception):
    """The server ended the connection before its answer began or was complete."""


class _TooMuchError(Exception):
    """The answer is longer than any that we ask for."""


class _Connection(asyncio.Protocol):
    """One connection; one exchange at a time."""

    def __init__(self, on_lost: Callable[[_Connection], None]) -> None:
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_LONGEST_HEAD)
        self._on_lost = on_lost
        self._news = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._is_lost = False
        self._is_in_use = False

    @property
    def is_reusable(self) -> bool:
        """Whether another request can be made on it."""
        return not (self._is_lost or self._is_in_use) and self._http.our_state is h11.IDLE

    def abort(self) -> None:
        """End it at once."""
        self._is_lost = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def data_received(self, data: bytes) -> None:
        """The server sends something."""
        if not self._is_in_use:
            self.abort()  # unasked for
            return
        with suppress(h11.RemoteProtocolError):  # beyond what it announced: the next event tells
            self._http.receive_data(data)
        self._news.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- the API's
        """It has ended."""
        self._is_lost = True
        with suppress(h11.RemoteProtocolError):  # in the middle of something: the next event tells
            self._http.receive_data(b"")
        self._news.set()
        self._on_lost(self)

    async def exchange(self, head: h11.Request, body: bytes | None) -> Reply:
        """Send a request, and wait for all of the answer.

        Raises:
            _HungUpError: the server ended the connection.
            _TooMuchError: the answer is too long.
            h11.ProtocolError: it is not HTTP.
        """
        if self._is_lost or self._transport is None:
            raise _HungUpError("hung up")
        self._is_in_use = True
        pieces = [self._http.send(head)]
        if body is not None:
            pieces.append(self._http.send(h11.Data(data=body)))
        pieces.append(self._http.send(h11.EndOfMessage()))
        self._transport.write(b"".join(piece for piece in pieces if piece))
        reply = await self._answer()
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        self._is_in_use = False
        return reply

    async def _answer(self) -> Reply:
        response: h11.Response | None = None
        body = bytearray()
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                if self._is_lost:
                    raise _HungUpError("hung up in the middle of an answer") from error
                raise
            if isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > _LONGEST_BODY:
                    raise _TooMuchError(f"answers with more than {_LONGEST_BODY >> 20} MiB")
            elif isinstance(event, h11.EndOfMessage) and response is not None:
                return Reply(response.status_code, bytes(body), _retry_after(response))
            elif event is h11.NEED_DATA:
                await self._news.wait()
                self._news.clear()
            elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
                raise _HungUpError("hung up without an answer")


_LONGEST_MESSAGE = 1000


def _one_line(text: str) -> str:
    shown = "".join(c if c.isprintable() else " " for c in text[:_LONGEST_MESSAGE])
    return " ".join(shown.split())


def _retry_after(response: h11.Response) -> float | None:
    """What a Retry-After header asks for; the API server sends seconds, and no dates."""
    for name, value in response.headers:
        if name == b"retry-after":
            with suppress(ValueError, UnicodeDecodeError):
                return max(float(int(value.decode("ascii"))), 0.0)
    return None


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
