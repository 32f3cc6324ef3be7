"""What has to outlive this process and the boot: a file for each device.

One small file per device, replaced atomically, so that what one event costs does not grow with the
number of devices. The kubelet's checkpoint outlives a reboot, and so must what its IDs stand for.
"""

from __future__ import annotations

import logging
import os
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from usbplugin.discovery.identity import is_device_id, is_ours
from usbplugin.inventory import DeviceState, Grant
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger(__name__)

_SUFFIX = ".json"
_LONG_AGO = 600.0
FILE_OF_0_1 = "device.json"
"""Where version 0.1 kept a device's state, in the folder of its links."""


class StateStore:
    """Keeps the states of all devices in one directory."""

    def __init__(self, directory: Path, links: Path) -> None:
        """Use ``directory``, which is created with the first state.

        Args:
            directory: Outlives a reboot.
            links: The link directory, in which version 0.1 kept its states.
        """
        self._directory = directory
        self._links = links
        self._token = secrets.token_hex(4)
        self._seen: tuple[int, int, int] | None = None
        self._complained = False

    def load(self) -> list[DeviceState]:
        """All states there are; one that cannot be read is logged, and left out."""
        self._sweep()
        found = {path.stem: path for path in _listed(self._directory, f"*{_SUFFIX}")}
        for path in _listed(self._links, f"*/{FILE_OF_0_1}"):
            # A newer one is of a version 0.1 that was gone back to for a while.
            ours = found.get(path.parent.name)
            if ours is None or _written_at(path) > _written_at(ours):
                found[path.parent.name] = path
        states = (_read(device_id, path) for device_id, path in sorted(found.items()))
        return [state for state in states if state is not None]

    def save(self, state: DeviceState) -> str:
        """Remember a device anew.

        Returns:
            Why that did not work, so that it is to be tried again; empty if it did.
        """
        try:
            self._write(state.id, msgspec.json.encode(state))
        except OSError as error:
            if not self._complained:
                self._complained = True
                _log.error(
                    "cannot save state; devices of which nothing can be remembered are not offered",
                    extra=fields(
                        directory=self._directory,
                        error=error,
                        hint="make it writable, or choose another --state-dir",
                    ),
                )
            return f"its state cannot be written to {self._directory}: {error.strerror}"
        self._complained = False
        return ""

    def is_kept(self, device_id: str) -> bool:
        """Whether a device's state is still there."""
        return os.path.exists(f"{self._directory}/{device_id}{_SUFFIX}")  # noqa: PTH110 -- a str

    def is_disturbed(self) -> bool:
        """Whether the directory is missing, or has changed since the last call, whoever did it."""
        before, self._seen = self._seen, None
        with suppress(OSError):
            status = self._directory.stat()
            self._seen = status.st_dev, status.st_ino, status.st_mtime_ns
        return self._seen is None or self._seen != before

    def forget(self, device_id: str) -> None:
        """Remove a device's state."""
        paths = (self._directory / f"{device_id}{_SUFFIX}", self._links / device_id / FILE_OF_0_1)
        for path in paths:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                if not isinstance(error, NotADirectoryError):
                    _log.warning("cannot remove state", extra=fields(file=path, error=error))

    def _sweep(self) -> None:
        """Remove what writers left that were killed long ago."""
        # Their age is told by what was written since: clocks may have been set.
        written = {path: _written_at(path) for path in _listed(self._directory, "*")}
        oldest = max(written.values(), default=0.0) - _LONG_AGO
        for path, moment in written.items():
            if path.name.startswith(".") and is_ours(path.name[1:]) and moment < oldest:
                with suppress(OSError):
                    path.unlink()

    def _write(self, device_id: str, content: bytes) -> None:
        directory = str(self._directory)
        # Another instance may write the same device's.
        temporary = f"{directory}/.{device_id}.{self._token}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        try:
            file = os.open(temporary, flags, 0o644)
        except FileNotFoundError:
            os.makedirs(directory, exist_ok=True)  # noqa: PTH103 -- a str, as every event is here
            file = os.open(temporary, flags, 0o644)
        try:
            try:
                while content:
                    content = content[os.write(file, content) :]
            finally:
                os.close(file)
            os.replace(temporary, f"{directory}/{device_id}{_SUFFIX}")  # noqa: PTH105
        except OSError:
            with suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108
            raise


def _listed(directory: Path, pattern: str) -> list[Path]:
    """What is there; a directory that cannot be read is logged, and counts as empty."""
    try:
        return list(directory.glob(pattern))
    except OSError as error:
        _log.error(
            "cannot read states; what was granted is known from the kubelet alone",
            extra=fields(directory=directory, error=error),
        )
        return []


def _written_at(path: Path) -> float:
    """When it was written, in seconds of the wall clock of then; long ago if it is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _read(device_id: str, path: Path) -> DeviceState | None:
    """A state that we wrote; None if it cannot be read, or was not written by us."""
    try:
        state = msgspec.json.decode(path.read_bytes(), type=DeviceState)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        _log.warning("state ignored", extra=fields(file=path, error=error))
        return None
    if state.id != device_id or not is_device_id(state.id) or not _is_plain(state):
        _log.warning("state ignored", extra=fields(file=path, error="not written by usbplugin"))
        return None
    if state.handed_over and not state.grants:
        grant = Grant(state.resource, state.id, state.handed_over, is_of_all_shares=True)
        state = msgspec.structs.replace(state, grants=(grant,), handed_over={})
    return state


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
