"""What any front needs of a kubelet: its sockets, both ways to register, and who holds what.

It knows the kubelet's rules and nothing of the fronts that live by them.
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
