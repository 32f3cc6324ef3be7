"""The kubelet's side: plugins that stream snapshots and allocate, kept registered by sessions."""

from usbplugin.kubelet.allocation import Handover
from usbplugin.kubelet.directory import PluginDirectory
from usbplugin.kubelet.links import LinkDirectory
from usbplugin.kubelet.plugin import DevicePlugin
from usbplugin.kubelet.session import Session, State

__all__ = [
    "DevicePlugin",
    "Handover",
    "LinkDirectory",
    "PluginDirectory",
    "Session",
    "State",
]
