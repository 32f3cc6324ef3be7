"""Discovery: finds serial ports. Runs in threads; knows nothing of Kubernetes.

Import ``UdevSource`` from ``usbplugin.discovery.udev``: it alone needs libudev.
"""

from usbplugin.discovery.directory import DirectorySource
from usbplugin.discovery.identity import IdentityMode, Unit
from usbplugin.discovery.port import (
    AllPorts,
    DeviceNumber,
    Fact,
    Port,
    PortGone,
    PortPresent,
    Readiness,
    UsbInterface,
)
from usbplugin.discovery.queue import FactQueue
from usbplugin.discovery.source import Listener, Post, Source

__all__ = [
    "AllPorts",
    "DeviceNumber",
    "DirectorySource",
    "Fact",
    "FactQueue",
    "IdentityMode",
    "Listener",
    "Port",
    "PortGone",
    "PortPresent",
    "Post",
    "Readiness",
    "Source",
    "Unit",
    "UsbInterface",
]
