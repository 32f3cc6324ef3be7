"""Links that lead to a device's nodes, whatever their numbers are now.

The kubelet caches an Allocate answer and replays it for years; a runtime resolves the path at each
container start. So the path given is ``<directory>/<device id>/<slot>``, and what it leads to
is changed here, before the device is announced. A device that is away has no link at all, for
its old node may come to be somebody else's.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from usbplugin.discovery.identity import ID_FORM
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

    from usbplugin.discovery import Port
    from usbplugin.inventory import Device

_log = logging.getLogger(__name__)

_TEMPORARY = ".new-"


class LinkDirectory:
    """Keeps the links of all devices below one directory."""

    def __init__(self, directory: Path) -> None:
        """Use ``directory``, which is created when the first link is."""
        self._directory = directory
        self._good: set[Path] = set()
        self._complained = False

    def host_path(self, device: Device, port: Port) -> str:
        """Where on the host the port is found: its link, or its node where no link can be kept."""
        link = self._directory / device.id / port.slot
        return str(link) if link in self._good else port.node

    def update(self, device: Device) -> None:
        """Make the device's links lead to its nodes, or nowhere if it is away."""
        for port in device.ports:
            link = self._directory / device.id / port.slot
            try:
                if device.health.is_there:
                    _point(link, port.node)
                    self._good.add(link)
                else:
                    self._good.discard(link)
                    link.unlink(missing_ok=True)
            except OSError as error:
                self._good.discard(link)
                self._complain(error)

    def forget(self, device_id: str) -> None:
        """Remove what is left of a device that is not remembered any longer."""
        folder = self._directory / device_id
        try:
            for entry in folder.iterdir() if folder.is_dir() else ():
                entry.unlink(missing_ok=True)
                self._good.discard(entry)
            if folder.is_dir():
                folder.rmdir()
        except OSError as error:
            self._complain(error)

    def keep_only(self, device_ids: Collection[str]) -> None:
        """Remove what an earlier run left of devices that are not there now."""
        for device_id in self._folders():
            if device_id not in device_ids:
                self.forget(device_id)

    def _folders(self) -> Iterable[str]:
        try:
            entries = list(self._directory.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            self._complain(error)
            return []
        return [entry.name for entry in entries if entry.is_dir() and ID_FORM.fullmatch(entry.name)]

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            _log.warning(
                "links cannot be kept; allocating nodes themselves, which a container restarted"
                " after a replug may find gone or taken",
                extra=fields(
                    directory=self._directory,
                    error=error,
                    hint="make it writable, or choose another --link-dir",
                ),
            )


def _point(link: Path, node: str) -> None:
    """Make ``link`` lead to ``node``, at no time to nothing."""
    if link.is_symlink() and os.readlink(link) == node:  # noqa: PTH115 -- a str is compared
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(_TEMPORARY + link.name)
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(node)
    temporary.replace(link)
