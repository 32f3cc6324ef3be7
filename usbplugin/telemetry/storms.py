"""Keeps a storm of similar records from filling the log, and logs how many were suppressed.

Two limits apply: on records with the same text about the same thing, and a higher one on records
with the same text about anything, because a device that invents serials is a new thing each time.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, TextIO

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

WINDOW = 10.0
"""Seconds; a window begins with the first record of its kind."""
MOST_ALIKE = 10
"""How many records with the same text about the same thing a window lets through."""
MOST_OF_A_KIND = 200
"""How many records with the same text a window lets through."""
_MOST_WINDOWS = 1024

LEVELS = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warning",
    logging.ERROR: "error",
    logging.CRITICAL: "critical",
}

_SUBJECTS = ("device", "devices", "entry", "resource", "part")
"""Fields that say what a record is about; the first one present counts."""
_WHATEVER = "*"

_Key = tuple[str, str]
"""A record's text, and the thing it is about."""


class _Window(msgspec.Struct):
    ends: float
    most: int
    passed: int = 0
    held_back: int = 0
    level: int = logging.NOTSET


class Counts:
    """How many records were logged and suppressed, by level."""

    def __init__(self) -> None:
        """Start at zero."""
        self._logged: Counter[int] = Counter()
        self._suppressed: Counter[int] = Counter()

    def log(self, level: int) -> None:
        """A line was written."""
        self._logged[level] += 1

    def suppress(self, level: int) -> None:
        """A line was suppressed."""
        self._suppressed[level] += 1

    def logged(self) -> Mapping[tuple[str, ...], float]:
        """Lines written, by level."""
        return _by_name(self._logged)

    def suppressed(self) -> Mapping[tuple[str, ...], float]:
        """Lines suppressed, by level."""
        return _by_name(self._suppressed)


class StormHandler(logging.StreamHandler[TextIO]):
    """Writes records to a stream, but limits how many are alike."""

    def __init__(self, stream: TextIO, counts: Counts, seconds: float = WINDOW) -> None:
        """Write to ``stream`` and count in ``counts``; a window lasts ``seconds``."""
        super().__init__(stream)
        self._counts = counts
        self._seconds = seconds
        self._windows: dict[_Key, _Window] = {}
        self._timer: threading.Timer | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record or suppress it; ``handle`` has taken the lock."""
        now = time.monotonic()
        full = self._full_window(record, now)
        if full is None:
            self._counts.log(record.levelno)
            super().emit(record)
            return
        full.held_back += 1
        full.level = max(full.level, record.levelno)
        self._counts.suppress(record.levelno)
        self._see_to_it(now)

    def close(self) -> None:
        """Log what was still being suppressed."""
        self._close_windows(math.inf)
        super().close()

    def _full_window(self, record: logging.LogRecord, now: float) -> _Window | None:
        """The window with no room for the record; None if it may pass."""
        text = record.getMessage()
        fields: Mapping[str, object] = getattr(record, "fields", {})
        about = next((str(fields[key]) for key in _SUBJECTS if key in fields), "")
        windows = [
            self._window((text, about), MOST_ALIKE, now),
            self._window((text, _WHATEVER), MOST_OF_A_KIND, now),
        ]
        for window in windows:
            if window.passed >= window.most:
                return window
        for window in windows:
            window.passed += 1
        return None

    def _window(self, key: _Key, most: int, now: float) -> _Window:
        window = self._windows.get(key)
        if window is None or window.ends <= now:
            if window is not None or len(self._windows) >= _MOST_WINDOWS:
                self._close_windows(now)
            # If there are too many kinds at once, the later ones share a window.
            if len(self._windows) >= _MOST_WINDOWS:
                key = (_WHATEVER, _WHATEVER)
            window = self._windows.setdefault(key, _Window(now + self._seconds, most))
        return window

    def _see_to_it(self, now: float) -> None:
        """Schedule the summary in a thread: the next record may be a long time coming."""
        if self._timer is not None:
            return
        if ends := [window.ends for window in self._windows.values() if window.held_back]:
            self._timer = threading.Timer(max(0.0, min(ends) - now), self._time_is_up)
            self._timer.daemon = True
            self._timer.start()

    def _time_is_up(self) -> None:
        self.acquire()
        try:
            now = time.monotonic()
            self._timer = None
            self._close_windows(now)
            self._see_to_it(now)
        finally:
            self.release()

    def _close_windows(self, now: float) -> None:
        for key, window in list(self._windows.items()):
            if window.ends <= now:
                del self._windows[key]
                if window.held_back:
                    self._tell(key, window)

    def _tell(self, key: _Key, window: _Window) -> None:
        text, about = key
        fields = {"alike": text, "about": about, "count": window.held_back}
        record = logging.makeLogRecord(
            {
                "name": __name__,
                "levelno": window.level,
                "levelname": logging.getLevelName(window.level),
                "msg": "similar log lines suppressed",
                "fields": fields,
            }
        )
        self._counts.log(record.levelno)
        super().emit(record)


def _by_name(counts: Counter[int]) -> dict[tuple[str, ...], float]:
    return {(name,): counts[number] for number, name in LEVELS.items()}
