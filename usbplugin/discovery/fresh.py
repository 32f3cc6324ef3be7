"""Checks, at the moment of a decision, that a port is still what it was when found.

Sources report changes within milliseconds or, if an event was missed, at their next rescan. Where
even that is too late, look again.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from usbplugin.discovery.entry import read_entry
from usbplugin.discovery.port import Port
from usbplugin.discovery.sysfs import read_tty

if TYPE_CHECKING:
    from usbplugin.discovery.sysfs import Tty


def is_unchanged(port: Port) -> bool:
    """Whether the same device still has the same number; False if unsure. Opens no device.

    It may hang like the device does: ``Workers.answer`` asks it within a time.
    """
    found: Port | Tty | None = None
    if port.sysfs_path:
        try:
            found = read_tty(port.sysfs_path)
        except OSError:
            return False
    elif isinstance(entry := read_entry(Path(port.origin), port.name), Port):
        found = entry
    return found is not None and (found.number, found.usb) == (port.number, port.usb)
