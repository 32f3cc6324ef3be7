"""Whether udevd keeps a database here, and which of its entries change.

udevd writes an entry when it has finished with a device. Like every event, that is only a hint:
callers look for themselves. This uses inotify(7) through ctypes rather than watchdog, which would
pass each event from thread to thread; the source polls descriptors anyway.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

DIRECTORY = "/run/udev/data"

# linux/inotify.h. udevd writes an entry under a temporary name, then renames it.
_MOVED_TO = 0x80
_DELETE = 0x200
_QUEUE_OVERFLOW = 0x4000
_WATCH_IS_GONE = 0x8000
_ONLY_DIRECTORY = 0x1000000
_EVENT = struct.Struct("iIII")
_BUFFER = 64 * 1024


def udevd_has_written(directory: str = DIRECTORY) -> bool:
    """Whether a udevd has written a database that will show when it has finished with a device.

    A udevd that has since stopped looks the same, as its entries remain: never wait without limit.
    """
    # Its control socket would tell more, but anyone who can reach that can command udevd.
    try:
        with os.scandir(directory) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


class DatabaseWatch:
    """Watches one directory for entries being written or deleted."""

    def __init__(self, directory: str = DIRECTORY) -> None:
        """Prepare to watch ``directory``, which need not exist yet.

        Raises:
            OSError: inotify is missing or has no instance left (max_user_instances).
        """
        self._directory = os.fsencode(directory)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._watching = False
        self._file = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._file < 0:
            raise _error()

    def fileno(self) -> int:
        """The descriptor to poll for reading."""
        return int(self._file)

    def refresh(self) -> bool:
        """Start watching, again if the directory was recreated. Call it before each look.

        Returns:
            False while changes go unnoticed.
        """
        if not self._watching:
            mask = _MOVED_TO | _DELETE | _ONLY_DIRECTORY
            watch = self._libc.inotify_add_watch(self._file, self._directory, mask)
            self._watching = watch >= 0
        return self._watching

    def changed(self) -> set[str] | None:
        """Names of the entries changed since the last call; None if any of them may have."""
        names: set[str] = set()
        missed = False
        while events := self._read():
            while events:
                _, mask, _, size = _EVENT.unpack_from(events)
                name, events = events[_EVENT.size :][:size], events[_EVENT.size + size :]
                names.add(os.fsdecode(name.rstrip(b"\0")))
                missed |= bool(mask & (_QUEUE_OVERFLOW | _WATCH_IS_GONE))
                self._watching &= not mask & _WATCH_IS_GONE
        return None if missed else names

    def close(self) -> None:
        """Stop watching for good."""
        os.close(self._file)

    def _read(self) -> bytes:
        try:
            return os.read(self._file, _BUFFER)
        except BlockingIOError:
            return b""


def _error() -> OSError:
    code = ctypes.get_errno() or errno.ENOSYS
    return OSError(code, os.strerror(code))
