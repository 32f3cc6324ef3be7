"""One end of a serial line, for sending bytes through."""

from __future__ import annotations

import os
import select
import termios
import time
import tty
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self


class Line:
    """A tty in raw mode. Give it back by ``close`` or as a context manager.

    The kernel cannot take away a gadget while its side of a line is open: it waits for the close.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            tty.setraw(self._fd, termios.TCSANOW)
        except termios.error:
            self.close()
            raise

    def fileno(self) -> int:
        return self._fd

    def write(self, data: bytes, *, timeout: float = 5.0) -> None:
        deadline = time.monotonic() + timeout
        while data:
            if not select.select([], [self], [], max(0.0, deadline - time.monotonic()))[1]:
                raise TimeoutError(f"{self.path} took no bytes; {len(data)} are left")
            data = data[os.write(self._fd, data) :]

    def read(self, size: int, *, timeout: float = 5.0) -> bytes:
        """Return that many bytes, or fewer if the line hangs up."""
        data = b""
        deadline = time.monotonic() + timeout
        while len(data) < size:
            if not select.select([self], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"{self.path} gave {data!r}, which is less than {size} bytes")
            more = os.read(self._fd, size - len(data))
            if not more:
                break
            data += more
        return data

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
