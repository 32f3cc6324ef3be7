"""Kubelets that no one would wish for, on the real one's socket while that one is away."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import grpc

from tests.faults import http2
from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.api import deviceplugin_v1beta1_pb2_grpc as rpc

if TYPE_CHECKING:
    import random
    import socket
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class RawKubelet:
    """Accepts connections, and treats them as ``talk`` does; counts them."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._open: set[asyncio.StreamWriter] = set()
        self._changed = asyncio.Condition()
        self.met = 0

    @asynccontextmanager
    async def at(self, path: Path) -> AsyncIterator[RawKubelet]:
        path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._meet, path)
        try:
            yield self
        finally:
            server.close()
            for writer in self._open:
                writer.close()

    async def until_met(self, times: int, within: float) -> bool:
        """Whether so many connections came within so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within), self._changed:
                await self._changed.wait_for(lambda: self.met >= times)
        return self.met >= times

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        async with self._changed:
            self.met += 1
            self._changed.notify_all()
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._talk(reader, writer)
        self._open.discard(writer)
        writer.close()


async def dies_in_register(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Lets the connection come up, takes the request, and is gone."""
    writer.write(http2.frame(http2.SETTINGS, 0, 0))
    taken = b""
    while b"usbplugin/" not in taken:
        taken += await _some(reader)


async def says_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Takes all there is, for ever."""
    del writer
    while True:
        await _some(reader)


def talks_rubbish(rng: random.Random) -> Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if rng.random() < 0.5:  # as far as the preface, everything was well
            writer.write(http2.frame(http2.SETTINGS, 0, 0))
        for _ in range(rng.randint(1, 4)):
            writer.write(rubbish(rng))
            await writer.drain()
            await _some(reader)

    return talk


def rubbish(rng: random.Random) -> bytes:
    """Bytes that are no HTTP/2, or nearly some."""
    match rng.randrange(4):
        case 0:
            return rng.randbytes(rng.randint(1, 4096))
        case 1:
            return http2.frame(
                rng.randrange(256), rng.randrange(256), rng.randrange(8), b"\xff" * 9
            )
        case 2:
            return http2.opening() + http2.call(
                http2.ALLOCATE, rng.randbytes(rng.randint(1, 200)), rng.randrange(0, 9)
            )
        case _:
            return http2.opening() + rng.randbytes(rng.randint(1, 4096))


async def _some(reader: asyncio.StreamReader) -> bytes:
    if data := await reader.read(65_536):
        return data
    raise asyncio.IncompleteReadError(b"", None)


class OddKubelet(rpc.RegistrationServicer):
    """Accepts every plugin after a while, and then reads its stream oddly, or opens none."""

    def __init__(self, directory: Path, delay: float, *, streams: bool) -> None:
        self._directory = directory
        self._delay = delay
        self._streams = streams
        self._unread: list[socket.socket] = []
        self._accepted = asyncio.Event()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[OddKubelet]:
        path = self._directory / "kubelet.sock"
        path.unlink(missing_ok=True)
        server = grpc.aio.server()
        rpc.add_RegistrationServicer_to_server(self, server)
        server.add_insecure_port(f"unix:{path}")
        await server.start()
        try:
            yield self
        finally:
            await server.stop(None)
            for connection in self._unread:
                connection.close()

    async def until_accepted(self, within: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._accepted.wait()

    async def Register(  # noqa: N802 -- the API's name
        self, request: v1beta1.RegisterRequest, context: object
    ) -> v1beta1.Empty:
        del context
        await asyncio.sleep(self._delay)
        if self._streams:
            with suppress(OSError):
                self._unread.append(http2.never_reading_stream(self._directory / request.endpoint))
        self._accepted.set()
        return v1beta1.Empty()
