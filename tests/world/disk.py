"""A disk that fails for a while: nothing below a directory can be written, or nothing new."""

from __future__ import annotations

import errno
import io
import os
from contextlib import ExitStack
from enum import Enum
from typing import TYPE_CHECKING
from unittest.mock import patch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Trouble(Enum):
    """What is wrong with a disk."""

    READ_ONLY = errno.EROFS
    FULL = errno.ENOSPC
    """What is there can still be removed or renamed."""


class Disk:
    """Lets the process's own system calls fail, those of ``pathlib`` included."""

    def __init__(self) -> None:
        """Begin with nothing wrong."""
        self.troubles: dict[str, Trouble] = {}
        """By the path of a directory, what is wrong with all below it."""

    def spoil(self, directory: Path, trouble: Trouble) -> None:
        """From now on, writing below a directory fails."""
        self.troubles[f"{directory}/"] = trouble

    def is_well(self, directory: Path) -> bool:
        """Whether a directory can be written to."""
        return f"{directory}/" not in self.troubles

    def inserted(self) -> ExitStack:
        """Replaces the system calls until it is closed."""
        calls: Mapping[str, Callable[..., object]] = {
            "symlink": self._refuses(os.symlink, 1),
            "mkdir": self._refuses(os.mkdir, 0),
            "replace": self._refuses(os.replace, 1, is_new=False),
            "unlink": self._refuses(os.unlink, 0, is_new=False),
            "rmdir": self._refuses(os.rmdir, 0, is_new=False),
        }
        stack = ExitStack()
        for name, call in calls.items():
            stack.enter_context(patch.object(os, name, call))
        stack.enter_context(patch.object(os, "open", self._open()))
        stack.enter_context(patch.object(io, "open", self._open_file()))
        return stack

    def _refuses(
        self, call: Callable[..., object], position: int, *, is_new: bool = True
    ) -> Callable[..., object]:
        """That call, which fails where the disk does.

        Args:
            call: Of ``os``.
            position: Of the path among its arguments.
            is_new: Whether it makes something, for which a disk has to have room.
        """

        def refusing(*arguments: object, **options: object) -> object:
            if self.troubles and (trouble := self._trouble(arguments[position])):
                path = os.fspath(arguments[position])  # type: ignore[call-overload]
                exists = os.path.lexists(path)
                if exists and is_new:
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
                if not exists and call.__name__ in {"unlink", "rmdir"}:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
                if is_new or trouble is Trouble.READ_ONLY:
                    raise _error(trouble, path)
            return call(*arguments, **options)

        return refusing

    def _open(self) -> Callable[..., int]:
        call = os.open

        def opening(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            if self.troubles and flags & _WRITING and (trouble := self._trouble(path)):
                raise _error(trouble, path)
            return call(path, flags, mode, dir_fd=dir_fd)

        return opening

    def _open_file(self) -> Callable[..., object]:
        call = io.open

        def opening(path: object, mode: str = "r", *arguments: object, **options: object) -> object:
            if self.troubles and mode.strip("rbt") and (trouble := self._trouble(path)):
                raise _error(trouble, path)
            return call(path, mode, *arguments, **options)  # type: ignore[call-overload]

        return opening

    def _trouble(self, path: object) -> Trouble | None:
        if not isinstance(path, str | os.PathLike):
            return None
        text = f"{os.fspath(path)}/"
        return next((bad for top, bad in self.troubles.items() if text.startswith(top)), None)


def _error(trouble: Trouble, path: object) -> OSError:
    return OSError(trouble.value, os.strerror(trouble.value), str(path))
