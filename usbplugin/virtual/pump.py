"""A virtual bus's ptys, and the one thread that moves bytes between them.

This module owns descriptors, buffers and that thread. It never touches the bus's directory.

Limits of a pty: it has no modem lines and no baud rate, and since the bus keeps it open, an
application's settings (termios, TIOCEXCL) outlive the application's close.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import struct
import termios
import threading
import tty
from concurrent import futures
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from usbplugin.errors import VirtualTtyError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

# Bytes buffered per direction between two ptys, on top of the kernel's own buffers (some 13 kB).
_BUFFER = 64 * 1024
# The kernel's line buffer is 4 kB (N_TTY_BUF_SIZE). Flushing well before it is full keeps lines
# whole: a line is then never accepted in part.
_UNREAD_LINES = 2048


class Pump:
    """One thread with one selector loop, which moves all bytes and owns all state of a bus.

    An unexpected exception ends it, and is reported by every later call, by ``wait``, and when the
    bus is closed.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._failure: BaseException | None = None
        self._stopped: futures.Future[None] = futures.Future()
        try:
            self.loop = asyncio.SelectorEventLoop()
        except OSError as error:
            raise VirtualTtyError(f"cannot start {what}: {error}") from error
        self._cleanups = contextlib.ExitStack()
        self._cleanups.callback(self.loop.close)
        self.loop.set_exception_handler(self._fail)
        self._thread = threading.Thread(target=self._run, name="virtual-bus", daemon=True)
        self._thread.start()

    def call(self, work: Callable[[], T]) -> T:
        """Run ``work`` in the pump's thread and return its result.

        Raises:
            VirtualTtyError: the pump has stopped, or ``work`` raised this.
            OSError: ``work`` raised this.
        """
        if threading.current_thread() is self._thread:
            return work()
        answer: futures.Future[T] = futures.Future()
        either: tuple[futures.Future[Any], ...] = (answer, self._stopped)

        def run() -> None:
            try:
                answer.set_result(work())
            except (VirtualTtyError, OSError) as error:
                answer.set_exception(error)

        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(run)
            futures.wait(either, return_when=futures.FIRST_COMPLETED)
        if not answer.done():
            self.raise_failure()
            raise VirtualTtyError(f"{self._what} is closed; create a new one")
        return answer.result()

    def finish(self, work: Callable[[], None]) -> None:
        """Run clean-up ``work`` in the pump's thread, or here if that has ended."""
        if self._stopped.done():
            work()
        else:
            self.call(work)

    def at_close(self, cleanup: Callable[[], None]) -> None:
        """Register a function for ``close`` to call once the thread has ended."""
        self._cleanups.callback(cleanup)

    def wait(self, timeout: float | None) -> bool:
        """Wait until the thread has ended; False if that took longer than ``timeout`` seconds."""
        done, _ = futures.wait((self._stopped,), timeout)
        self.raise_failure()
        return bool(done)

    def raise_failure(self) -> None:
        """Raise what ended the thread, unless it was stopped on purpose."""
        if self._failure is not None:
            raise VirtualTtyError(
                f"{self._what} has failed: {self._failure!r}; close it and create a new one"
            ) from self._failure

    def stop(self) -> None:
        """End the thread and wait for it; the loop stays open until ``close``."""
        if not self._stopped.done():
            self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()

    def close(self) -> None:
        """Run the clean-up functions and close the loop. Call it only after ``stop``."""
        self._cleanups.close()

    def _run(self) -> None:
        try:
            self.loop.run_forever()
        except OSError as error:
            self._failure = error
        finally:
            self._stopped.set_result(None)

    def _fail(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._failure = context.get("exception") or RuntimeError(context["message"])
        loop.stop()


class Pty:
    """A pty in raw mode with both ends open, so that the master never sees a hang-up.

    Closing the master hangs up every open slave, ours and the applications'.
    """

    def __init__(self, undo: contextlib.ExitStack) -> None:
        self.master, self.slave = os.openpty()
        undo.callback(os.close, self.slave)
        undo.callback(os.close, self.master)
        os.set_blocking(self.master, False)
        tty.setraw(self.slave)
        self.node = os.ttyname(self.slave)
        # Containers mostly run as another user. If we may not change the mode, leave it as it is.
        with contextlib.suppress(PermissionError):
            os.fchmod(self.slave, 0o666)


class Flow:
    """Copies bytes from one master to another, or back to itself; pauses while the sink is full."""

    def __init__(self, loop: asyncio.AbstractEventLoop, source: int, sink: int) -> None:
        self._loop = loop
        self._source = source
        self._sink = sink
        self._held = bytearray()
        loop.add_reader(source, self._read)

    def close(self) -> None:
        """Release both masters. Call it before they are closed."""
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._sink)

    def _read(self) -> None:
        self._held += _read(self._source, _BUFFER - len(self._held))
        self._write()

    def _write(self) -> None:
        with contextlib.suppress(BlockingIOError):
            del self._held[: os.write(self._sink, self._held)]
        if self._held:
            self._loop.add_writer(self._sink, self._write)
        else:
            self._loop.remove_writer(self._sink)
        if len(self._held) < _BUFFER:
            self._loop.add_reader(self._source, self._read)
        else:
            self._loop.remove_reader(self._source)


class Lines:
    """Writes a numbered line every interval, and discards whatever it is sent."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, pty: Pty, label: str, interval: float
    ) -> None:
        self._loop = loop
        self._pty = pty
        self._label = label
        self._interval = interval
        self._count = 0
        self._timer = loop.call_soon(self._send)
        loop.add_reader(pty.master, self._drop)

    def close(self) -> None:
        """Release the master. Call it before it is closed."""
        self._timer.cancel()
        self._loop.remove_reader(self._pty.master)

    def _send(self) -> None:
        self._timer = self._loop.call_later(self._interval, self._send)
        self._count += 1
        line = msgspec.json.encode({"device": self._label, "count": self._count}) + b"\n"
        answer = fcntl.ioctl(self._pty.slave, termios.FIONREAD, struct.pack("i", 0))
        (unread,) = struct.unpack("i", answer)
        if unread + len(line) > _UNREAD_LINES:
            termios.tcflush(self._pty.slave, termios.TCIFLUSH)
        # If it is still full, the line is lost, as on a wire that nobody listens to.
        with contextlib.suppress(BlockingIOError):
            os.write(self._pty.master, line)

    def _drop(self) -> None:
        _read(self._pty.master, _BUFFER)


def _read(master: int, size: int) -> bytes:
    try:
        data = os.read(master, size)
    except BlockingIOError:
        return b""
    if not data:
        # Impossible while we keep the slave open, and would repeat forever.
        raise OSError(errno.EIO, "a virtual tty was hung up by another process")
    return data
