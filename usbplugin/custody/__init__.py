"""Custody: the inventory and what hangs on it outside (links, CDI specs, state on disk, holders).

What a path leads to changes before anybody hears of a device, and what a container is granted is
on disk before it is told. Custody knows no front: fronts ask it through a Protocol of their own.
"""

from usbplugin.custody.cdi import CdiDirectory
from usbplugin.custody.custody import Custody
from usbplugin.custody.holders import Holders
from usbplugin.custody.links import LinkDirectory
from usbplugin.custody.offer import Offer
from usbplugin.custody.state import StateStore

__all__ = ["CdiDirectory", "Custody", "Holders", "LinkDirectory", "Offer", "StateStore"]
