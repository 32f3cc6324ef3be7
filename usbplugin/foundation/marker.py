"""A file by which processes that use one directory know of each other, for as long as they live."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_PREFIX = ".instance-"


class Marker:
    """Marks a directory as used by this process: by a lock, which ends with its holder (flock(2)).

    A directory that was removed and made again is marked again by ``put``. The file is open for
    reading alone: one that is open for writing would keep its file system from being made
    read-only.
    """

    def __init__(self, directory: Path, name: str) -> None:
        """Prepare; ``put`` marks.

        Args:
            directory: Need not exist yet.
            name: Different for each process.
        """
        self._directory = directory
        self._path = directory / f"{_PREFIX}{name}"
        self._file: int | None = None

    def put(self) -> None:
        """Mark the directory, if it is not marked already.

        Raises:
            OSError: it cannot be marked.
        """
        if self._file is not None:
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._file), self._path.stat()):
                    return
            os.close(self._file)
            self._file = None
        self._directory.mkdir(parents=True, exist_ok=True)
        file = os.open(self._path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._file = file

    @property
    def is_alone(self) -> bool:
        """Whether no other process marks the directory. What dead ones left is removed."""
        others = [path for path in self._directory.glob(f"{_PREFIX}*") if path != self._path]
        return not [path for path in others if _is_held(path)]

    def remove(self) -> None:
        """Take the mark away."""
        if self._file is not None:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None


def _is_held(path: Path) -> bool:
    """Whether somebody holds that mark; else it is removed."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(file)
    return False
