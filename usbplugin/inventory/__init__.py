"""The inventory: what the ports are, who they are, and how they fare. Pure: no I/O in here."""

from usbplugin.inventory.device import Change, Device, DeviceState, Snapshot, Update
from usbplugin.inventory.grant import Grant, GrantedPort, GrantKey, HeldDevice, Holding
from usbplugin.inventory.health import Health, HealthPolicy
from usbplugin.inventory.inventory import Inventory
from usbplugin.inventory.selector import ResourceRule, Selector, first_match

__all__ = [
    "Change",
    "Device",
    "DeviceState",
    "Grant",
    "GrantKey",
    "GrantedPort",
    "Health",
    "HealthPolicy",
    "HeldDevice",
    "Holding",
    "Inventory",
    "ResourceRule",
    "Selector",
    "Snapshot",
    "Update",
    "first_match",
]
