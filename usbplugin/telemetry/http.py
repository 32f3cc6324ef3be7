"""A small HTTP/1.1 server for GET and HEAD in the event loop, on TCP, a Unix socket or both.

It serves one request per connection, and limits the size of its head, the time it may take and the
number of connections. It knows no paths: answers come from its handler.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import unquote

import msgspec

from usbplugin.errors import ConfigError
from usbplugin.telemetry.hosts import is_trusted_host

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

_LONGEST_HEAD = 8192
_HEAD_SECONDS = 5.0
_WRITE_SECONDS = 10.0
MOST_CONNECTIONS = 64
_BACKLOG = 32
"""asyncio accepts so many connections in a turn of the loop, before one of them can be refused."""
_METHODS = ("GET", "HEAD")
_HIGHEST_PORT = 65535

JSON = "application/json"


class Request(msgspec.Struct, frozen=True):
    """A request's head; bodies are not supported."""

    method: str
    path: str
    """Without the query."""
    headers: dict[str, str] = {}
    """By name, in lower case."""


class Response(msgspec.Struct, frozen=True):
    """An answer: a body, or a stream of pieces that lasts until either side ends it."""

    body: bytes
    content_type: str = JSON
    status: HTTPStatus = HTTPStatus.OK
    headers: dict[str, str] = {}
    stream: AsyncGenerator[bytes, None] | None = None


class HttpServer:
    """Reads requests and has them answered and counted."""

    def __init__(
        self,
        handle: Callable[[Request], Awaitable[Response]],
        answered: Callable[[str, int], None],
        refused: Callable[[], None],
    ) -> None:
        """Prepare, without listening yet.

        Args:
            handle: Answers a GET or HEAD request.
            answered: Called with the path and status code of each request.
            refused: Called for each connection dropped without a request.
        """
        self._handle = handle
        self._answered = answered
        self._refused = refused
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._waiting: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        """Connections whose request has not been read yet, the oldest first."""
        self._dropped: set[asyncio.Task[None]] = set()
        self._paths: list[tuple[Path, int]] = []

    async def listen_tcp(self, host: str | None, port: int) -> list[str]:
        """Listen on a port of ``host`` (None: of all interfaces).

        Returns:
            The addresses.

        Raises:
            OSError: the address is taken, or not one of this machine's.
        """
        server = await asyncio.start_server(
            self._accept, host, port, limit=_LONGEST_HEAD, backlog=_BACKLOG
        )
        self._servers.append(server)
        return [_address(*listener.getsockname()[:2]) for listener in server.sockets]

    async def listen_unix(self, path: Path) -> None:
        """Listen on a socket that only its owner may open, replacing any older one.

        Raises:
            OSError: it cannot be created there.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(temporary))
            temporary.chmod(0o600)  # nobody can connect before it listens
            listener.setblocking(False)  # noqa: FBT003 -- the API's
            server = await asyncio.start_unix_server(
                self._accept, sock=listener, limit=_LONGEST_HEAD, backlog=_BACKLOG
            )
            self._paths = [one for one in self._paths if one[0] != path]
            self._paths.append((path, temporary.stat().st_ino))
            temporary.replace(path)
        except OSError:
            listener.close()
            temporary.unlink(missing_ok=True)
            raise
        self._servers.append(server)

    def is_at(self, path: Path) -> bool:
        """Whether the socket at ``path`` is one of ours still."""
        with suppress(OSError):
            return (path, path.lstat().st_ino) in self._paths
        return False

    async def close(self) -> None:
        """End all connections, and remove the socket unless a successor has replaced it."""
        for server in self._servers:
            server.close()
        for task in self._connections:
            task.cancel()
        if ending := self._connections | self._dropped:
            await asyncio.wait(ending)
        for path, inode in self._paths:
            with suppress(OSError):
                if path.lstat().st_ino == inode:
                    path.unlink()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(task)
        self._waiting[task] = writer
        task.add_done_callback(self._connections.discard)
        task.add_done_callback(self._dropped.discard)
        task.add_done_callback(lambda task: self._waiting.pop(task, None))
        if len(self._connections) > MOST_CONNECTIONS:
            # Drop the connection that has been silent the longest, so silent ones block nobody. It
            # counts no longer from here on, though its task ends in a later turn of the loop.
            self._refused()
            oldest = next(iter(self._waiting))
            self._waiting.pop(oldest).transport.abort()
            self._connections.discard(oldest)
            self._dropped.add(oldest)
            oldest.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await self._read(reader)
            self._waiting.pop(_this_task(), None)
            if isinstance(request, Request) and not is_trusted_host(
                request.headers.get("host", "localhost")
            ):
                request = HTTPStatus.MISDIRECTED_REQUEST
            if isinstance(request, HTTPStatus):
                response = plain(request)
                self._answered("", request)
            else:
                response = await self._handle(request)
                self._answered(request.path, response.status)
            body = isinstance(request, HTTPStatus) or request.method == "GET"
            await self._write(writer, response, with_body=body)
        except TimeoutError:
            self._refused()
            writer.transport.abort()
        except ConnectionError:
            pass  # the client has gone; there is nobody to tell
        finally:
            await _hang_up(writer)

    async def _read(self, reader: asyncio.StreamReader) -> Request | HTTPStatus:
        """The request, or what is wrong with it."""
        async with asyncio.timeout(_HEAD_SECONDS):
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.LimitOverrunError:
                return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            except asyncio.IncompleteReadError as error:
                if not error.partial:
                    raise ConnectionError from error
                return HTTPStatus.BAD_REQUEST
        return parse(head)

    async def _write(
        self, writer: asyncio.StreamWriter, response: Response, *, with_body: bool
    ) -> None:
        writer.write(_head(response))
        if with_body:
            writer.write(response.body)
        await _drain(writer)
        if with_body and response.stream is not None:
            async with aclosing(response.stream) as pieces:
                async for piece in pieces:
                    writer.write(piece)
                    await _drain(writer)


def parse_address(text: str) -> tuple[str | None, int]:
    """Host and port of ``HOST:PORT``, ``[IPV6]:PORT`` or, for all interfaces, ``:PORT``.

    Raises:
        ConfigError: it has none of these forms.
    """
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.%\w]+\]|[^\[\]:\s]*):([0-9]{1,5})", text)
    if match is None or int(match[2]) > _HIGHEST_PORT:
        raise ConfigError(
            f"--http-address: expected HOST:PORT, [IPV6]:PORT or :PORT, found {text!r}"
        )
    return match[1].strip("[]") or None, int(match[2])


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse(head: bytes) -> Request | HTTPStatus:
    """Parse a request's head, blank line included; or say what is wrong with it."""
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    parts = first.split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1.") or not parts[1].startswith("/"):  # noqa: PLR2004
        return HTTPStatus.BAD_REQUEST
    method, target, _ = parts
    if method not in _METHODS:
        return HTTPStatus.METHOD_NOT_ALLOWED
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or name != name.strip():
            return HTTPStatus.BAD_REQUEST
        headers[name.lower()] = value.strip()
    return Request(method, unquote(target.partition("?")[0], errors="replace"), headers)


def plain(status: HTTPStatus) -> Response:
    """An answer that only states its status."""
    headers = {"Allow": ", ".join(_METHODS)} if status is HTTPStatus.METHOD_NOT_ALLOWED else {}
    return Response(f"{status.phrase}\n".encode(), "text/plain; charset=utf-8", status, headers)


def _head(response: Response) -> bytes:
    headers = {
        "Content-Type": response.content_type,
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Connection": "close",
        **response.headers,
    }
    if response.stream is None:
        headers["Content-Length"] = str(len(response.body))
    lines = [f"HTTP/1.1 {response.status.value} {response.status.phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


async def _drain(writer: asyncio.StreamWriter) -> None:
    """Wait until the client has read most of it; give up on one that does not."""
    async with asyncio.timeout(_WRITE_SECONDS):
        await writer.drain()


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    """Close once the client has read everything, and abort if it does not: data must not linger."""
    writer.close()
    try:
        async with asyncio.timeout(_WRITE_SECONDS):
            await writer.wait_closed()
    except OSError:
        pass  # timed out, or the client has gone
    finally:
        writer.transport.abort()


def _this_task() -> asyncio.Task[None]:
    task: asyncio.Task[None] | None = asyncio.current_task()
    if task is None:
        raise RuntimeError("not running in a task")
    return task
