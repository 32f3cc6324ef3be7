"""The interface of a source, which runs in a thread and posts facts."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from usbplugin.discovery.port import Fact

if TYPE_CHECKING:
    from usbplugin.discovery.port import Port

Post = Callable[[Fact], None]
"""Takes a fact; thread-safe, returns at once."""


class Source(Protocol):
    """Discovers ports. Its supervisor restarts it if it fails."""

    @property
    def name(self) -> str:
        """Unique within the process; every fact carries it."""

    def run(self, post: Post) -> None:
        """Post ``AllPorts``, then every change, until ``stop`` is called; blocks.

        Raises:
            DiscoveryError: the source can no longer see ports. Running it again starts afresh.
        """

    def scan(self) -> tuple[Port, ...]:
        """All ports present now, without watching for changes.

        Raises:
            DiscoveryError: the source cannot see ports.
        """

    def stop(self) -> None:
        """Make ``run`` return soon. Thread-safe; a stopped source stays stopped."""


@runtime_checkable
class Listener(Protocol):
    """A source that can say how it learns about changes."""

    @property
    def learns_by(self) -> str:
        """``uevents``, ``inotify`` or ``polling``; empty while it is not running."""


class Waker:
    """Wakes a thread waiting in ``poll(2)``, from any thread. A wake before the wait counts too."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def fileno(self) -> int:
        """The descriptor to poll for reading."""
        return self._read

    def wake(self) -> None:
        """Make the descriptor readable."""
        with suppress(BlockingIOError):  # full, so already readable
            os.write(self._write, b"\0")

    def clear(self) -> None:
        """Forget all wakes so far."""
        with suppress(BlockingIOError):
            while os.read(self._read, 4096):
                pass

    def close(self) -> None:
        """Close both ends."""
        os.close(self._read)
        os.close(self._write)
