"""Talks to this node's daemon over its Unix socket."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from usbplugin.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from pathlib import Path

    from usbplugin.status.rows import Row

SESSION = "session "
"""How the names of parts begin that serve a resource."""
STANDING_BY = "standing by for a newer instance"
_SECONDS = 5.0
_LONGEST_LINE = 1 << 20
_OK = 200

Document = dict[str, object]
"""A JSON object."""


class Daemon:
    """This node's daemon."""

    def __init__(self, socket: Path) -> None:
        """Use ``socket``, which need not exist."""
        self._socket = socket

    def __str__(self) -> str:
        return f"the daemon at {self._socket}"

    async def is_there(self) -> bool:
        """Whether a daemon answers there.

        Raises:
            DaemonError: we may not connect to it, or its path cannot be a socket's.
        """
        try:
            async with self._connection():
                return True
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            return False
        except PermissionError as error:
            raise DaemonError(
                f"cannot connect to {self._socket}: {error.strerror}; run as root, or use --direct"
                " to read the hardware without the daemon"
            ) from error
        except OSError as error:  # such as a path too long for a socket
            raise DaemonError(
                f"cannot connect to {self._socket}: {error.strerror or error}; choose another"
                " --link-dir, or use --direct to read the hardware without the daemon"
            ) from error

    async def get(self, path: str) -> tuple[int, object]:
        """The status code and the JSON document of ``path``.

        Raises:
            DaemonError: it does not answer.
        """
        try:
            async with asyncio.timeout(_SECONDS), self._asked(path) as (code, reader):
                return code, json.loads(await reader.read())
        except (OSError, EOFError, ValueError) as error:
            reason = str(error) or "timed out"
            raise DaemonError(f"{self} does not answer: {reason}") from error

    async def rows(self) -> list[Row]:
        """Its devices and ports.

        Raises:
            DaemonError: it does not answer.
        """
        _, document = await self.get("/devices")
        if not isinstance(document, list):
            raise DaemonError(f"{self} did not answer with a list of devices")
        return document

    async def left(self) -> list[str]:
        """The resources that it leaves to a newer instance.

        Raises:
            DaemonError: it does not answer.
        """
        _, document = await self.get("/readyz")
        return left_in(document)

    async def past(self) -> list[Document]:
        """The events it remembers.

        Raises:
            DaemonError: it does not answer.
        """
        _, document = await self.get("/events")
        if not isinstance(document, list):
            raise DaemonError(f"{self} did not answer with a list of events")
        return document

    async def follow(self) -> AsyncGenerator[Document, None]:
        """The events it remembers, then new ones as they happen.

        Raises:
            DaemonError: it does not answer, or has stopped.
        """
        try:
            async with self._asked("/events", "Accept: text/event-stream\r\n") as (code, reader):
                if code != _OK:
                    raise DaemonError(f"{self} has too many listeners (HTTP {code})")
                async for line in reader:
                    if line.startswith(b"data: "):
                        yield json.loads(line.removeprefix(b"data: "))
        except (OSError, EOFError, ValueError) as error:
            raise DaemonError(f"{self} does not answer: {error}") from error
        raise DaemonError(f"{self} has stopped")

    @asynccontextmanager
    async def _connection(
        self,
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_unix_connection(self._socket, limit=_LONGEST_LINE)
        try:
            yield reader, writer
        finally:
            writer.close()

    @asynccontextmanager
    async def _asked(
        self, path: str, headers: str = ""
    ) -> AsyncIterator[tuple[int, asyncio.StreamReader]]:
        """The answer's status code, and a reader for its body."""
        async with self._connection() as (reader, writer):
            writer.write(f"GET {path} HTTP/1.1\r\nHost: usbplugin\r\n{headers}\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            status = re.match(rb"HTTP/1\.1 (\d{3}) ", head)
            if status is None:
                raise ValueError("not an HTTP answer")
            yield int(status[1]), reader


def left_in(readiness: object) -> list[str]:
    """The resources that are left to a newer instance, by an answer of ``/readyz``."""
    parts = readiness.get("parts", []) if isinstance(readiness, dict) else []
    return [
        part["name"].removeprefix(SESSION)
        for part in parts
        if part["name"].startswith(SESSION) and part["detail"] == STANDING_BY
    ]
