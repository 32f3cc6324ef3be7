"""The kubelet's side: plugins that stream snapshots and allocate, kept registered by sessions."""

from usbplugin.kubelet.allocation import Handover
from usbplugin.kubelet.cdi import CdiDirectory
from usbplugin.kubelet.directory import PluginDirectory
from usbplugin.kubelet.links import LinkDirectory
from usbplugin.kubelet.memory import MemoryStore
from usbplugin.kubelet.plugin import DevicePlugin
from usbplugin.kubelet.podresources import PodResources
from usbplugin.kubelet.registration import ClassicRegistrar, Registrar, WatcherRegistrar
from usbplugin.kubelet.session import Session, State

__all__ = [
    "CdiDirectory",
    "ClassicRegistrar",
    "DevicePlugin",
    "Handover",
    "LinkDirectory",
    "MemoryStore",
    "PluginDirectory",
    "PodResources",
    "Registrar",
    "Session",
    "State",
    "WatcherRegistrar",
]
