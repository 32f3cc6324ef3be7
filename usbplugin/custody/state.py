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
from usbplugin.inventory import DeviceState
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger(__name__)

FILE_NAME = "device.json"
_TEMPORARY = ".device.json.new"
FILES = frozenset({FILE_NAME, _TEMPORARY})
"""All that is ever kept of a device here."""


class StateStore:
    """Keeps the states of all devices below the link directory."""

    def __init__(self, directory: Path) -> None:
        """Use ``directory``, which is created with the first state."""
        self._directory = directory
        self._complained = False

    def load(self) -> list[DeviceState]:
        """All states there are; one that cannot be read is logged, and left out."""
        states = []
        for path in sorted(self._directory.glob(f"*/{FILE_NAME}")):
            try:
                state = msgspec.json.decode(path.read_bytes(), type=DeviceState)
            except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                _log.warning("state ignored", extra=fields(file=path, error=error))
                continue
            if state.id != path.parent.name or not is_device_id(state.id) or not _is_plain(state):
                _log.warning(
                    "state ignored", extra=fields(file=path, error="not written by usbplugin")
                )
                continue
            states.append(state)
        return states

    def save(self, state: DeviceState) -> bool:
        """Remember a device anew; False if that did not work, so that it is to be tried again."""
        folder = f"{self._directory}/{state.id}"
        try:
            _write(folder, msgspec.json.encode(state))
        except OSError as error:
            if not self._complained:
                self._complained = True
                _log.warning(
                    "cannot save state; a restarted plugin will not know what was allocated",
                    extra=fields(directory=self._directory, error=error),
                )
            return False
        self._complained = False
        return True

    def is_kept(self, device_id: str) -> bool:
        """Whether a device's state is still there."""
        return (self._directory / device_id / FILE_NAME).is_file()


def _is_plain(state: DeviceState) -> bool:
    """Whether all texts in it are as we wrote them: printable, with no NUL in a path."""
    left: list[object] = [msgspec.to_builtins(state)]
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
