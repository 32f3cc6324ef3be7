"""A node without hardware or a cluster: virtual ttys and an embedded kubelet.

For the demo, the tests, and anyone writing a device plugin. ``usbplugin serve`` does not depend on
it.
"""

from usbplugin.virtual.containers import (
    Container,
    ContainerState,
    CreateContainerConfigError,
    Holder,
    UnexpectedAdmissionError,
)
from usbplugin.virtual.kubelet import EmbeddedKubelet
from usbplugin.virtual.plugin_client import EmbeddedKubeletError, Resource
from usbplugin.virtual.ttys import Descriptors, Peer, VirtualBus, VirtualPort

__all__ = [
    "Container",
    "ContainerState",
    "CreateContainerConfigError",
    "Descriptors",
    "EmbeddedKubelet",
    "EmbeddedKubeletError",
    "Holder",
    "Peer",
    "Resource",
    "UnexpectedAdmissionError",
    "VirtualBus",
    "VirtualPort",
]
