"""What the program knows of a source: it runs in a thread and posts facts."""

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
    """A place where ports are discovered. Its supervisor runs it again if it fails."""

    @property
    def name(self) -> str:
        """Unique among the sources of a process; facts carry it."""

    def run(self, post: Post) -> None:
        """Post ``AllPorts``, then what changes, until ``stop``; blocks.

        Raises:
            DiscoveryError: the source went blind. Running it again starts over.
        """

    def scan(self) -> tuple[Port, ...]:
        """All ports there are at this moment, without following what changes.

        Raises:
            DiscoveryError: the source cannot see ports.
        """

    def stop(self) -> None:
        """Make ``run`` return soon. Thread-safe; a source that was stopped stays stopped."""


@runtime_checkable
class Listener(Protocol):
    """A source that can say how it learns of changes."""

    @property
    def learns_by(self) -> str:
        """``uevents``, ``inotify``, ``polling``, or empty as long as it does not run."""


class Waker:
    """Wakes a thread that waits in ``poll(2)``, from any thread. Wakes before a wait are kept."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def fileno(self) -> int:
        """The descriptor to poll for reading."""
        return self._read

    def wake(self) -> None:
        """Make the descriptor readable."""
        with suppress(BlockingIOError):  # full: it is readable already
            os.write(self._write, b"\0")

    def clear(self) -> None:
        """Forget all wakes up to now."""
        with suppress(BlockingIOError):
            while os.read(self._read, 4096):
                pass

    def close(self) -> None:
        """Close both ends."""
        os.close(self._read)
        os.close(self._write)
