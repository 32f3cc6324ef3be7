"""Log lines: one event per line, with fields, for people or for machines.

Device strings, kubelet messages and paths are all treated as hostile: whatever a value contains, a
record stays one line of printable characters.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, TextIO

from usbplugin.telemetry.storms import Counts, StormHandler

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

_log = logging.getLogger(__name__)

_LEVEL_WIDTH = 7

COUNTS = Counts()
"""Counts every line of this process; global, like logging itself."""


class LogFormat(Enum):
    """How log lines look."""

    TEXT = "text"
    JSON = "json"


def fields(**values: object) -> dict[str, Mapping[str, object]]:
    """The ``extra`` argument that gives a record its fields; omits empty and None values."""
    return {
        "fields": {key: value for key, value in values.items() if value not in (None, "", (), [])}
    }


def logger(name: str) -> logging.Logger:
    """A module's logger."""
    return logging.getLogger(name)


def configure(level: str, log_format: LogFormat, stream: TextIO = sys.stderr) -> None:
    """Send the ``usbplugin`` loggers' records of ``level`` and above to ``stream``."""
    handler = StormHandler(stream, COUNTS)
    handler.setFormatter(_JsonFormatter() if log_format is LogFormat.JSON else _TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("usbplugin").setLevel(level.upper())


def catch_the_uncaught() -> None:
    """Also log what Python would print by itself: warnings and uncaught exceptions."""
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda args: _log_uncaught(
        args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback
    )


def _log_uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    _log.critical("bug: uncaught exception", exc_info=(kind, error, traceback))


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        parts = [
            moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z",
            record.levelname.ljust(_LEVEL_WIDTH),
            _one_line(record.getMessage()),
            *(f"{key}={_quoted(value)}" for key, value in _fields_of(record).items()),
        ]
        return " ".join(parts)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
        }
        # A field never overwrites the keys every line has.
        line |= {
            key if key not in line else f"{key}_": value
            for key, value in _fields_of(record).items()
        }
        return json.dumps(line, default=_plain)


def _fields_of(record: logging.LogRecord) -> dict[str, object]:
    values: Mapping[str, object] = getattr(record, "fields", {})
    found = dict(values)
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        found["exception"] = f"{type(error).__name__}: {error}"
        # Log the whole traceback: only a bug of ours gets here.
        found["traceback"] = logging.Formatter().formatException(record.exc_info)
    return found


def _plain(value: object) -> str | list[str]:
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, list | tuple | set | frozenset):
        return [str(item) for item in value]
    return str(value)


def _quoted(value: object) -> str:
    if isinstance(value, bool | int | float):
        return str(value)
    plain = _plain(value)
    text = _one_line(plain if isinstance(plain, str) else ",".join(plain))
    if text and not set(text) & set(' "=\\'):
        return text
    escaped = text.replace('"', '\\"')
    return f'"{escaped}"'


def _one_line(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
