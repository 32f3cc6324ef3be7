"""A node without hardware and without a cluster: virtual ttys, and an embedded kubelet.

For the demo, the tests, and anyone who writes a device plugin. Nothing in ``usbplugin serve``
depends on it.
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
