"""What any front needs from a kubelet: its sockets, both kinds of registration, and PodResources.

It knows the kubelet's rules, and nothing of the fronts that follow them.
"""

from usbplugin.kubelet.directory import PluginDirectory
from usbplugin.kubelet.podresources import PodResources
from usbplugin.kubelet.registration import ClassicRegistrar, Registrar, WatcherRegistrar

__all__ = [
    "ClassicRegistrar",
    "PluginDirectory",
    "PodResources",
    "Registrar",
    "WatcherRegistrar",
]
