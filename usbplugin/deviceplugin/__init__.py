"""The device plugin front: one ``v1beta1.DevicePlugin`` per resource, kept registered by a session.

It streams the inventory's snapshots and answers Allocate. It never looks at hardware itself.
"""

from usbplugin.deviceplugin.front import DevicePluginFront
from usbplugin.deviceplugin.service import DevicePlugin
from usbplugin.deviceplugin.session import Session
from usbplugin.deviceplugin.state import State

__all__ = ["DevicePlugin", "DevicePluginFront", "Session", "State"]
