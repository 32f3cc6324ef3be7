"""The inventory: what the ports are, who they are, and how they fare. Pure: no I/O in here."""

from usbplugin.inventory.device import Change, Device, Snapshot, Update
from usbplugin.inventory.health import Health
from usbplugin.inventory.inventory import Inventory
from usbplugin.inventory.selector import ResourceRule, Selector, first_match

__all__ = [
    "Change",
    "Device",
    "Health",
    "Inventory",
    "ResourceRule",
    "Selector",
    "Snapshot",
    "Update",
    "first_match",
]
