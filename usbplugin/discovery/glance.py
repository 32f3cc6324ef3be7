"""One glance at a name: all that is read of a tty, which may hang like the device behind it."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from usbplugin.discovery.port import DeviceNumber
from usbplugin.discovery.sysfs import inode_of, read_tty
from usbplugin.errors import DiscoveryError

if TYPE_CHECKING:
    from usbplugin.discovery.libudev import DatabaseEntry, Libudev
    from usbplugin.discovery.sysfs import Tty


@dataclass(slots=True)
class Glance:
    """What is asked, and what was found so far: it is read in one thread, and used in another."""

    path: str
    """The tty in sysfs, by its name."""
    node: str
    udev: Libudev
    known: Tty | None
    """What was read of the name before: not read again during the same life of the name."""
    began: float
    """When it was asked for; ``time.monotonic`` seconds."""
    inode: int | None = None
    """Tells which life of the name this is about; there before anything is read that may hang."""
    tty: Tty | None = None
    """``known`` itself if this is still the same life; None if there is no such tty."""
    entry: DatabaseEntry | None = None
    """What udevd has recorded; there if ``tty`` is."""
    fault: str = ""
    """How the node differs from what sysfs says; empty if it does not."""

    def run(self) -> None:
        """Read it all.

        Raises:
            DiscoveryError: sysfs cannot be read.
        """
        self.inode = inode_of(self.path)
        self.tty = self._tty()
        if self.tty is not None:
            self.entry = self.udev.database_entry(self.tty.path)
            self.fault = _fault(self.node, self.tty)

    def _tty(self) -> Tty | None:
        if self.known is not None and self.known.inode == self.inode:
            return self.known
        try:
            return read_tty(self.path)
        except OSError as error:
            raise DiscoveryError(f"cannot read {self.path}: {error}") from error


def _fault(node: str, tty: Tty) -> str:
    """How the node differs from what sysfs says; empty if it does not."""
    try:
        status = os.stat(node)  # noqa: PTH116 -- a str
    except OSError as error:
        return f"{node}: {error.strerror}"
    if not stat.S_ISCHR(status.st_mode):
        return f"{node} is not a character device"
    number = DeviceNumber.of(status.st_rdev)
    if number != tty.number:
        return f"{node} has device number {number}, sysfs says {tty.number}"
    return ""
