"""Follows the configuration file: yields what it says whenever its text has changed."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from usbplugin.config import load, parse_file
from usbplugin.errors import ConfigError
from usbplugin.foundation.watch import follow
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from usbplugin.config import Config

_log = logging.getLogger(__name__)


async def configurations(file: Path, refused: Callable[[], None]) -> AsyncIterator[Config]:
    """Yield the configuration at first, and again after each change that is valid.

    Args:
        file: Need not exist; its directory is watched, since a ConfigMap changes by a swapped link.
        refused: Called after a text that is not valid was logged; the one before stays in force.
    """
    seen: bytes | None = None
    is_first = True
    async for _ in follow(file.parent, asyncio.Event(), contents=True):
        text = _content(file)
        if text == seen and not is_first:
            continue
        seen, is_first = text, False
        try:
            # What was compared, and not read again: that might be another text, which would then
            # never be compared with what is in force.
            config = load(file) if text is None else parse_file(file, text)
        except ConfigError as error:
            _log.error(
                "configuration refused; keeping the previous one", extra=fields(reason=error)
            )
            refused()
            continue
        yield config


def _content(path: Path) -> bytes | None:
    """A file's content; None if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return None
