"""What any front needs from a kubelet: its sockets, registration, PodResources, its checkpoint.

It knows the kubelet's rules, and nothing of the fronts that follow them.
"""

from usbplugin.kubelet.checkpoint import Checkpoint, Replay
from usbplugin.kubelet.directory import PluginDirectory
from usbplugin.kubelet.podresources import PodResources
from usbplugin.kubelet.registration import ClassicRegistrar, Registrar, WatcherRegistrar

__all__ = [
    "Checkpoint",
    "ClassicRegistrar",
    "PluginDirectory",
    "PodResources",
    "Registrar",
    "Replay",
    "WatcherRegistrar",
]
