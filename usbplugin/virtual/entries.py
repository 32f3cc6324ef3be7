"""The entries of a virtual bus's directory: links, side files, and who may create them.

This module owns the names, order and atomicity of what appears in the directory, its lock, and the
removal of a killed bus's leftovers. It never opens a tty or touches anything a bus did not create.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from pathlib import Path
from typing import Final

from usbplugin.errors import VirtualTtyError

NAME: Final = re.compile(r"tty(USB|ACM)[0-9]+")
"""The form of a virtual tty's name."""
CONTROL_SOCKET: Final = ".control.sock"
"""The name, in the bus directory, of the socket that ``usbplugin.virtual.control`` serves."""

_JOURNAL = ".bus"


class Entries:
    """The paths of one device within the bus directory."""

    def __init__(self, directory: Path, name: str) -> None:
        self.link = directory / name
        self.peer = directory / f"peer-{name}"
        self.side = directory / f".{name}.json"
        self._draft = directory / f".{name}.json.tmp"

    def all(self) -> tuple[Path, ...]:
        """What must not exist before the device is plugged in."""
        return (self.link, self.peer, self.side, self._draft)

    def write_side(self, content: bytes) -> None:
        """Write the side file so that it is never seen half-written."""
        try:
            # Exclusive creation follows no symlink left there by somebody else.
            with self._draft.open("xb") as draft:
                draft.write(content)
            self._draft.replace(self.side)
        finally:
            self._draft.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what a killed bus left, in the order of an unplug."""
        for link in (self.link, self.peer):
            if link.is_symlink():
                link.unlink()
        self.side.unlink(missing_ok=True)
        self._draft.unlink(missing_ok=True)


def link(path: Path, node: str, undo: contextlib.ExitStack) -> None:
    """Create a symlink; ``undo`` removes it unless it has changed."""
    # symlink(2) is atomic and, unlike a rename, never replaces what somebody else put there.
    path.symlink_to(node)
    undo.callback(_unlink, path, node)


def _unlink(path: Path, node: str) -> None:
    # If it is no longer our link, somebody else replaced it: not ours to remove.
    if path.is_symlink() and path.readlink() == Path(node):
        path.unlink(missing_ok=True)


class Claim:
    """One process's claim to the bus directory: a lock, and a journal of what was created there.

    The lock is on the directory itself and dies with the process, however that ends. The journal
    (``DIR/.bus``: the process ID, then one name per line) tells the next process which leftovers
    came from a bus, so that entries created by hand or by other programs are never removed.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / _JOURNAL
        self._noted: set[str] = set()
        try:
            os.fspath(directory).encode()
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        except (OSError, UnicodeEncodeError) as error:
            raise VirtualTtyError(f"cannot use {directory!s:.200} as a bus: {error}") from error
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, self._lock)
            self._take()
            undo.pop_all()

    def _take(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._sweep()
            # Created afresh and kept open, so that nothing put there by others is written to.
            self._journal = self._path.open("x")
            self._write(str(os.getpid()))
        except BlockingIOError as error:
            pid = next(iter(self._read_journal()), "unknown")
            raise VirtualTtyError(
                f"another virtual bus (process {pid}) is serving {self._directory}; stop it, use "
                f"it (usbplugin virtual --dir {self._directory} --status), or choose another "
                "directory"
            ) from error
        except OSError as error:
            raise VirtualTtyError(
                f"cannot use {self._directory} as a bus: {error}; choose a directory you may "
                "write to"
            ) from error

    def note(self, name: str) -> None:
        """Enter a name in the journal, before anything is created under it."""
        if name not in self._noted:
            self._write(name)
            self._noted.add(name)

    def release(self) -> None:
        """Remove the journal, then release the lock."""
        with contextlib.ExitStack() as steps:
            steps.callback(os.close, self._lock)
            steps.callback(self._path.unlink, missing_ok=True)
            steps.callback(self._journal.close)

    def _write(self, line: str) -> None:
        self._journal.write(f"{line}\n")
        self._journal.flush()

    def _read_journal(self) -> list[str]:
        try:
            return self._path.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return []

    def _sweep(self) -> None:
        for name in self._read_journal()[1:]:
            if NAME.fullmatch(name):
                Entries(self._directory, name).sweep()
        self._path.unlink(missing_ok=True)
        control = self._directory / CONTROL_SOCKET
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(control.lstat().st_mode):
                control.unlink()
