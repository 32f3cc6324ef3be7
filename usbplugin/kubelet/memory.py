"""What has to outlive this process, in a file beside each device's links.

One small file per device, replaced atomically, so that what one event costs does not grow with the
number of devices. The directory is gone after a reboot, and so is what was allocated before.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec

from usbplugin.discovery.identity import ID_FORM
from usbplugin.inventory import Memory
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger(__name__)

FILE_NAME = "device.json"
_TEMPORARY = ".device.json.new"


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
            except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
                _log.warning("memory ignored", extra=fields(file=path, error=error))
                continue
            if memory.id == path.parent.name and ID_FORM.fullmatch(memory.id):
                memories.append(memory)
        return memories

    def save(self, memory: Memory) -> None:
        """Remember a device anew."""
        folder = self._directory / memory.id
        try:
            folder.mkdir(parents=True, exist_ok=True)
            temporary = folder / _TEMPORARY
            temporary.write_bytes(msgspec.json.encode(memory))
            temporary.replace(folder / FILE_NAME)
        except OSError as error:
            if not self._complained:
                self._complained = True
                _log.warning(
                    "what was allocated cannot be remembered over a restart of the plugin",
                    extra=fields(directory=self._directory, error=error),
                )
