"""``usbplugin serve`` with a saboteur inside: signals kill its threads, one kind each.

    python -m tests.faults.victim serve ...

SIGUSR1: all threads of watchdog. SIGUSR2: all threads of sources. They die the next time that they
have something to do, by an error that nobody foresaw. All else is as in production.
"""

from __future__ import annotations

import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

from watchdog.observers.api import BaseObserver
from watchdog.observers.inotify import InotifyEmitter
from watchdog.observers.inotify_c import InotifyFD
from watchdog.utils import BaseThread

from usbplugin.cli import main
from usbplugin.discovery import DirectorySource

if TYPE_CHECKING:
    from collections.abc import Callable

_doomed: set[threading.Thread] = set()


class SabotageError(RuntimeError):
    """What a thread might die of."""


def make_mortal(owner: type, method: str) -> None:
    """A doomed thread dies when it comes to this method."""
    original = getattr(owner, method)

    def mortal(self: object, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 -- as it is
        if (thread := threading.current_thread()) in _doomed:
            _doomed.discard(thread)
            raise SabotageError
        return original(self, *arguments, **options)

    setattr(owner, method, mortal)


def kill_when_signalled(number: signal.Signals, wanted: Callable[[threading.Thread], bool]) -> None:
    signal.signal(number, lambda *_: _doomed.update(filter(wanted, threading.enumerate())))


def is_watchdogs(thread: threading.Thread) -> bool:
    return isinstance(thread, BaseThread)


def is_sources(thread: threading.Thread) -> bool:
    return thread.name.startswith("source")


if __name__ == "__main__":
    make_mortal(InotifyFD, "handle_event")
    make_mortal(InotifyEmitter, "build_and_queue_event")
    make_mortal(BaseObserver, "dispatch_events")
    make_mortal(DirectorySource, "_list")
    kill_when_signalled(signal.SIGUSR1, is_watchdogs)
    kill_when_signalled(signal.SIGUSR2, is_sources)
    sys.exit(main())
