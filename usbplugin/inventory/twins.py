"""Which serial numbers tell nobody from anybody: two devices have shown them at one time."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from usbplugin.discovery.identity import place_of, serial_of

if TYPE_CHECKING:
    from usbplugin.discovery import Port
    from usbplugin.inventory.record import Key

Serial = tuple[str, str, str]
"""Vendor and product ID, and serial number."""


class Twins:
    """Watches the ports that are there, whatever resource they are of, or of none.

    Only two devices at one time are proof. One serial number in two places one after the other is
    a device that has moved.
    """

    def __init__(self) -> None:
        self._places: defaultdict[Serial, dict[Key, str]] = defaultdict(dict)

    def arrive(self, key: Key, port: Port) -> Serial | None:
        """A port is there; returns its serial number if another device shows that one now."""
        serial = serial_of(port)
        if serial is None:
            return None
        places = self._places[serial]
        places[key] = place_of(port)
        return serial if len(set(places.values())) > 1 else None

    def leave(self, key: Key, port: Port) -> None:
        """A port is gone."""
        serial = serial_of(port)
        if serial is None or serial not in self._places:
            return
        self._places[serial].pop(key, None)
        if not self._places[serial]:
            del self._places[serial]
