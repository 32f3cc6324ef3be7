"""A directory with a small file system of its own, which can be filled, frozen and taken away.

Mounting needs root, and a mount namespace of its own, so that nothing is left behind whatever
happens; ``enter_namespace`` makes one. Without these, what needs a mount is not done.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MARK = "USBPLUGIN_FAULTS_NAMESPACE"
_SIZE = "512k"
_INODES = 256
_MOST_TRIES = 20


def enter_namespace() -> None:
    """Run this very program again, in a mount namespace of its own, if that can be had."""
    if os.environ.get(_MARK) or os.geteuid() != 0 or not shutil.which("unshare"):
        return
    unshare = ["unshare", "--mount", "--propagation", "private"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode == 0:
        os.environ[_MARK] = "1"
        # orig_argv keeps the -m that sys.argv has lost.
        os.execvp("unshare", [*unshare, sys.executable, *sys.orig_argv[1:]])


def can_mount() -> bool:
    return _MARK in os.environ


class Volume:
    """A directory; its own file system if one can be mounted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self.mount()

    def mount(self) -> None:
        if can_mount():
            options = f"size={_SIZE},nr_inodes={_INODES},mode=755"
            _run("mount", "-t", "tmpfs", "-o", options, "faults", str(self.path))

    def unmount(self) -> None:
        """Take it away with all that is on it, though somebody may still use it."""
        _run("umount", "--lazy", str(self.path))

    def close(self) -> None:
        if can_mount():
            self.unmount()

    @contextmanager
    def read_only(self) -> Iterator[None]:
        self._freeze()
        try:
            yield
        finally:
            _run("mount", "-o", "remount,bind,rw", str(self.path))

    def _freeze(self) -> None:
        """Refused as long as a file is open for writing: the plugin's states are, now and then."""
        for left in reversed(range(_MOST_TRIES)):
            try:
                _run("mount", "-o", "remount,bind,ro", str(self.path))
            except subprocess.CalledProcessError:
                if not left:
                    raise
            else:
                return

    @contextmanager
    def full(self) -> Iterator[None]:
        """No room for a byte, and none for a name."""
        ballast = self.path / "ballast"
        ballast.mkdir()
        try:
            with suppress(OSError), (ballast / "bytes").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            with suppress(OSError):
                for number in range(10 * _INODES):
                    (ballast / str(number)).touch()
            yield
        finally:
            shutil.rmtree(ballast)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
