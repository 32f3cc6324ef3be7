"""What has to outlive this process, in a file beside each device's links.

One small file per device, replaced atomically, so that what one event costs does not grow with the
number of devices. The directory is gone after a reboot, and so is what was allocated before.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import msgspec

from usbplugin.discovery.identity import is_device_id
from usbplugin.inventory import Memory
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger(__name__)

FILE_NAME = "device.json"
_TEMPORARY = ".device.json.new"
FILES = frozenset({FILE_NAME, _TEMPORARY})
"""All that is ever kept of a device here."""


class MemoryStore:
    """Keeps the memories of all devices below the link directory."""

    def __init__(self, directory: Path) -> None:
        """Use ``directory``, which is created with the first memory."""
        self._directory = directory
        self._complained = False

    def load(self) -> list[Memory]:
        """All memories there are; one that cannot be read is logged, and left out."""
        memories = []
        for path in sorted(self._directory.glob(f"*/{FILE_NAME}")):
            try:
                memory = msgspec.json.decode(path.read_bytes(), type=Memory)
            except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                _log.warning("memory ignored", extra=fields(file=path, error=error))
                continue
            if (
                memory.id != path.parent.name
                or not is_device_id(memory.id)
                or not _is_plain(memory)
            ):
                _log.warning("memory ignored", extra=fields(file=path, error="it is none of ours"))
                continue
            memories.append(memory)
        return memories

    def save(self, memory: Memory) -> bool:
        """Remember a device anew; False if that did not work, so that it is to be tried again."""
        folder = f"{self._directory}/{memory.id}"
        try:
            _write(folder, msgspec.json.encode(memory))
        except OSError as error:
            if not self._complained:
                self._complained = True
                _log.warning(
                    "what was allocated cannot be remembered over a restart of the plugin",
                    extra=fields(directory=self._directory, error=error),
                )
            return False
        self._complained = False
        return True

    def is_kept(self, device_id: str) -> bool:
        """Whether a device's memory is still there."""
        return (self._directory / device_id / FILE_NAME).is_file()


def _is_plain(memory: Memory) -> bool:
    """Whether all texts in it are as we wrote them: printable, with no NUL in a path."""
    left: list[object] = [msgspec.to_builtins(memory)]
    while left:
        value = left.pop()
        if isinstance(value, str) and not value.isprintable():
            return False
        if isinstance(value, dict):
            left += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            left += value
    return True


def _write(folder: str, content: bytes) -> None:
    temporary = f"{folder}/{_TEMPORARY}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        file = os.open(temporary, flags, 0o644)
    except FileNotFoundError:
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103 -- a str, as every event passes here
        file = os.open(temporary, flags, 0o644)
    try:
        while content:
            content = content[os.write(file, content) :]
    finally:
        os.close(file)
    os.replace(temporary, f"{folder}/{FILE_NAME}")  # noqa: PTH105
