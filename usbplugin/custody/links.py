"""Links that lead to a device's nodes, whatever their numbers are now.

The kubelet caches an Allocate answer and replays it for years; a runtime resolves the path at each
container start. So the path given is ``<directory>/<device id>/<slot>``, and what it leads to
is changed here, before the device is announced. A device that is away has no link at all, for
its old node may come to be somebody else's.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from usbplugin.custody.state import FILE_OF_0_1
from usbplugin.foundation.marker import Marker
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

    from usbplugin.inventory import Device

_log = logging.getLogger(__name__)

_OUR_FOLDERS = ("usb-", "dir-")
"""How device IDs begin. The directory may be one that others use too, such as /run."""


class LinkDirectory:
    """Keeps the links of all devices below one directory.

    Every change of a device passes through here before the kubelet hears of it: hence plain
    strings, and no system call that is not needed.
    """

    def __init__(self, directory: Path) -> None:
        """Use ``directory``, which is created when the first link is."""
        self._directory = directory
        self._prefix = f"{directory}/"
        token = secrets.token_hex(4)
        self._temporary = f".new-{token}-"  # another instance has its own
        self._marker = Marker(directory, token)
        self._state: tuple[int, int, int] | None = None
        self._has_links = False
        self._complained = False

    def host_path(self, device_id: str, slot: str) -> str:
        """Where on the host a port is found: its link."""
        return f"{self._prefix}{device_id}/{slot}"

    def update(self, device: Device) -> str:
        """Make the device's links lead to its nodes, or nowhere if it is away.

        A link that somebody has deleted or changed is made again.

        Returns:
            Why that could not be done; empty if it could.
        """
        for port in device.ports:
            link = self.host_path(device.id, port.slot)
            try:
                if device.health.is_there:
                    if self._point(link, port.node):
                        self._complained, self._has_links = False, True
                else:
                    _remove(link)
            except OSError as error:
                self._complain(error)
                return f"its link {link} cannot be written: {error.strerror}"
        return ""

    def mark(self) -> None:
        """Let other instances see that links are kept here, until ``unmark``."""
        try:
            self._marker.put()
        except OSError as error:
            self._complain(error)

    def unmark(self) -> None:
        """Links are not kept here any longer."""
        self._marker.remove()

    @property
    def is_shared(self) -> bool:
        """Whether another instance keeps links here too."""
        return not self._marker.is_alone

    def is_disturbed(self) -> bool:
        """Whether a device's folder was made or removed since the last call, by us or others."""
        before, self._state = self._state, None
        with suppress(OSError):
            status = self._directory.stat()
            self._state = status.st_dev, status.st_ino, status.st_mtime_ns
        return self._has_links if self._state is None else self._state != before

    def forget(self, device_id: str) -> None:
        """Remove what is left of a device that is not remembered any longer.

        What is not ours stays, whoever put it there, and so does the folder around it.
        """
        folder = self._directory / device_id
        try:
            if not _is_ours(folder):
                return
            for entry in folder.iterdir():
                if entry.is_symlink() or entry.name == FILE_OF_0_1:
                    entry.unlink(missing_ok=True)
            folder.rmdir()
        except FileNotFoundError:
            pass  # somebody else was faster
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                self._complain(error)

    def keep_only(self, device_ids: Collection[str]) -> None:
        """Remove what an earlier run left of devices that are not there now."""
        for device_id in self._folders():
            if device_id not in device_ids:
                self.forget(device_id)

    def _point(self, link: str, node: str) -> bool:
        """Make ``link`` lead to ``node``, at no time to nothing; whether it did not before."""
        try:
            os.symlink(node, link)  # noqa: PTH211 -- here and below: see the class
        except FileNotFoundError:
            os.makedirs(os.path.dirname(link), exist_ok=True)  # noqa: PTH103, PTH120
            os.symlink(node, link)  # noqa: PTH211
        except FileExistsError:
            with suppress(OSError):  # no link at all, or gone by now
                if os.readlink(link) == node:  # noqa: PTH115
                    return False
            folder, name = os.path.split(link)
            temporary = f"{folder}/{self._temporary}{name}"
            _remove(temporary)
            os.symlink(node, temporary)  # noqa: PTH211
            os.replace(temporary, link)  # noqa: PTH105
        return True

    def _folders(self) -> Iterable[str]:
        try:
            entries = list(self._directory.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            self._complain(error)
            return []
        return [entry.name for entry in entries if entry.name.startswith(_OUR_FOLDERS)]

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            _log.error(
                "cannot keep links; devices without one are not offered",
                extra=fields(
                    directory=self._directory,
                    error=error,
                    hint="make it writable, or choose another --link-dir",
                ),
            )


def _is_ours(folder: Path) -> bool:
    """Whether it is a folder of a device: by its name, and not a link to a place elsewhere."""
    return folder.name.startswith(_OUR_FOLDERS) and stat.S_ISDIR(folder.lstat().st_mode)


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108
