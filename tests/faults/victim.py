"""``usbplugin serve`` with a saboteur inside: signals kill its threads, one kind each.

    python -m tests.faults.victim serve ...

SIGUSR1: all threads of watchdog. SIGUSR2: all threads of sources. All else is as in production.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
from typing import TYPE_CHECKING

from usbplugin.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable


class SabotageError(RuntimeError):
    """What a thread of somebody else's library might die of."""


def is_watchdogs(thread: threading.Thread) -> bool:
    return any(base.__module__.startswith("watchdog.") for base in type(thread).__mro__)


def is_sources(thread: threading.Thread) -> bool:
    return thread.name.startswith("source")


def kill_when_signalled(number: signal.Signals, wanted: Callable[[threading.Thread], bool]) -> None:
    def kill(*_: object) -> None:
        for thread in threading.enumerate():
            if wanted(thread) and thread.ident is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(thread.ident), ctypes.py_object(SabotageError)
                )

    signal.signal(number, kill)


if __name__ == "__main__":
    kill_when_signalled(signal.SIGUSR1, is_watchdogs)
    kill_when_signalled(signal.SIGUSR2, is_sources)
    sys.exit(main())
