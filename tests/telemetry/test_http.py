"""The HTTP server through real sockets: what it answers, and what it does with hostile clients."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING

import pytest

from usbplugin.errors import ConfigError
from usbplugin.telemetry import http
from usbplugin.telemetry.http import HttpServer, Request, Response, parse_address

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from pathlib import Path


class Server:
    """Answers with what was asked; a path ``/stream`` never ends."""

    def __init__(self) -> None:
        self.answered: list[tuple[str, int]] = []
        self.refused = 0
        self.streams = 0
        self.ended = asyncio.Event()
        self.port = 0
        self.server = HttpServer(self.answer, lambda *a: self.answered.append(a), self.refuse)

    def refuse(self) -> None:
        self.refused += 1

    async def answer(self, request: Request) -> Response:
        if request.path == "/stream":
            return Response(b"first\n", "text/plain", stream=self.pieces())
        return Response(f"{request.method} {request.path} {sorted(request.headers)}".encode())

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        self.streams += 1
        try:
            while True:
                yield b"x" * 65536
        finally:
            self.ended.set()


@asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    server = Server()
    (address,) = await server.server.listen_tcp("127.0.0.1", 0)
    server.port = int(address.rpartition(":")[2])
    try:
        yield server
    finally:
        await server.server.close()


@asynccontextmanager
async def connected(
    server: Server,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def asked(server: Server, request: bytes) -> bytes:
    async with connected(server) as (reader, writer):
        writer.write(request)
        return await asyncio.wait_for(reader.read(), 10)


async def test_get_and_head() -> None:
    async with serving() as server:
        answer = await asked(server, b"GET /x?y=z HTTP/1.1\r\nHost: h\r\nAccept: a\r\n\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert body == b"GET /x ['accept', 'host']"
        assert f"Content-Length: {len(body)}".encode() in head
        assert b"X-Content-Type-Options: nosniff" in head
        answer = await asked(server, b"HEAD /x HTTP/1.0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\n")
        assert server.answered == [("/x", 200), ("/x", 200)]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "get"])
async def test_nothing_but_get_and_head(method: str) -> None:
    async with serving() as server:
        answer = await asked(server, f"{method} / HTTP/1.1\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 405 ")
        assert b"Allow: GET, HEAD" in answer


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"\r\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"GET / HTTP/2\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\n\r\n", 400),
        (b"GET http://other/ HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nname : value\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n folded: value\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 20_000 + b"\r\n\r\n", 431),
        (b"G" * 20_000, 431),
    ],
    ids=str,
)
async def test_invalid_requests(request_: bytes, status: int) -> None:
    async with serving() as server:
        answer = await asked(server, request_)
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize(
    "path",
    ["/%2e%2e/x", "/%00", "/%0d%0aSet-Cookie:x", "/caf\xc3\xa9", "/%ff", "//", "/" + "a" * 7000],
)
async def test_odd_paths_are_paths(path: str) -> None:
    async with serving() as server:
        answer = await asked(server, f"GET {path} HTTP/1.1\r\n\r\n".encode("latin-1"))
        head = answer.partition(b"\r\n\r\n")[0]
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"Set-Cookie" not in head


async def test_a_client_that_hangs_up_midway_does_no_harm() -> None:
    async with serving() as server:
        for beginning in (b"", b"GET / HT"):
            async with connected(server) as (_, writer):
                writer.write(beginning)
                writer.write_eof()
        assert (await asked(server, b"GET / HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_the_silent_are_dropped_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_HEAD_SECONDS", 0.05)
    async with serving() as server, connected(server) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nA: b\r\n")
        assert await asyncio.wait_for(reader.read(), 10) == b""
        assert server.refused == 1


async def test_the_silent_keep_nobody_out() -> None:
    async with serving() as server:
        silent = [
            await asyncio.open_connection("127.0.0.1", server.port)
            for _ in range(http.MOST_CONNECTIONS)
        ]
        answer = await asked(server, b"GET / HTTP/1.1\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert await asyncio.wait_for(silent[0][0].read(), 10) == b"", "the oldest made room"
        for _, writer in silent:
            writer.close()


async def test_a_reader_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_WRITE_SECONDS", 0.05)
    async with serving() as server, connected(server) as (_, writer):
        writer.write(b"GET /stream HTTP/1.1\r\n\r\n")
        await asyncio.wait_for(server.ended.wait(), 10)
        assert server.refused == 1


async def test_closing_ends_what_is_open() -> None:
    async with serving() as server, connected(server) as (reader, writer):
        writer.write(b"GET /stream HTTP/1.1\r\n\r\n")
        await reader.readuntil(b"first\n")
        await server.server.close()
        await asyncio.wait_for(server.ended.wait(), 10)
        while await asyncio.wait_for(reader.read(1 << 20), 10):
            pass


async def test_the_unix_socket_is_its_owners_alone_and_replaces_a_dead_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "usbplugin.sock"
    first, second = Server(), Server()
    await first.server.listen_unix(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    await second.server.listen_unix(path)
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    await reader.read()
    writer.close()
    assert (first.answered, second.answered) == ([], [("/", 200)])
    await first.server.close()
    assert path.is_socket(), "it is the successor's"
    await second.server.close()
    assert os.listdir(path.parent) == []


async def test_a_place_where_no_socket_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    server = Server()
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        await server.server.listen_unix(tmp_path / "file" / "x.sock")
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="directory"):
        await server.server.listen_unix(tmp_path / "taken")
    assert sorted(os.listdir(tmp_path)) == ["file", "taken"]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":9808", (None, 9808)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[::1]:9808", ("::1", 9808)),
        ("node-7.example:65535", ("node-7.example", 65535)),
    ],
)
def test_addresses(text: str, address: tuple[str | None, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "9808", "host", "host:", ":65536", "::1:80", "a b:1", "h:80 "]
)
def test_invalid_addresses(text: str) -> None:
    with pytest.raises(ConfigError, match="--http-address: expected HOST:PORT"):
        parse_address(text)


def test_a_plain_answer_says_its_status() -> None:
    assert http.plain(HTTPStatus.NOT_FOUND).body == b"Not Found\n"


async def test_what_is_left_unread_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_WRITE_SECONDS", 0.1)
    transports: list[asyncio.WriteTransport] = []

    async def handle(request: http.Request) -> http.Response:
        del request
        return http.Response(bytes(8_000_000))  # more than the kernel takes

    class Watched(http.HttpServer):
        def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            transports.append(writer.transport)
            super()._accept(reader, writer)

    server = Watched(handle, lambda path, status: None, lambda: None)
    (address,) = await server.listen_tcp("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2]))
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    writer.transport.pause_reading()  # type: ignore[attr-defined]  # a TCP transport has it
    async with asyncio.timeout(10):
        while not transports or server._connections:  # noqa: ASYNC110 -- nothing tells
            await asyncio.sleep(0.01)
    assert transports[0].get_write_buffer_size() == 0
    del reader
    writer.transport.abort()
    await server.close()


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:9808", "[::1]:9808", "10.0.0.7", "localhost", "node-1:9808", "usbplugin",
     "usbplugin.usbplugin.svc", "usbplugin.usbplugin.svc.cluster.local:9808"],
)  # fmt: skip
async def test_who_asks_for_an_address_or_a_name_nobody_else_can_own_is_answered(
    host: str,
) -> None:
    async with serving() as server:
        answer = await asked(server, f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "host", ["rebound.evil.example", "svc.evil.example:9808", "a b", "", "[x]"]
)
async def test_a_page_whose_name_was_made_to_lead_here_is_not_answered(
    host: str,
) -> None:
    async with serving() as server:
        answer = await asked(server, f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 421 ")


async def test_bursts_take_no_more_descriptors_than_connections_one_by_one() -> None:
    most = 0
    clients: list[socket.socket] = []
    async with serving() as server:
        before = len(os.listdir("/proc/self/fd"))
        try:
            for _ in range(10):
                for _ in range(30):
                    clients.append(client := socket.socket())
                    client.settimeout(0)
                    client.connect_ex(("127.0.0.1", server.port))
                for _ in range(20):  # turns of the loop
                    await asyncio.sleep(0)
                    most = max(most, len(os.listdir("/proc/self/fd")) - before - len(clients))
        finally:
            for client in clients:
                client.close()
        assert http.MOST_CONNECTIONS <= most <= 2 * http.MOST_CONNECTIONS
        answer = await asked(server, b"GET / HTTP/1.1\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")
