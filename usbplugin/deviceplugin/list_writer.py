"""The list of devices as the kubelet is to see it, made anew only where a device has changed.

The whole list is sent whenever one device changes. Serialized messages that are joined are one
message with all their devices, so each device is serialized once and kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.inventory.shares import share_ids

if TYPE_CHECKING:
    from usbplugin.inventory import Device, Snapshot

HEALTHY = "Healthy"
UNHEALTHY = "Unhealthy"


class ListWriter:
    """Writes one resource's list."""

    def __init__(self, shares: int = 1) -> None:
        """List each device so many times."""
        self._shares = shares
        self._entries: dict[str, tuple[Device, bytes]] = {}

    def write(self, snapshot: Snapshot) -> bytes:
        """The serialized ``ListAndWatchResponse``; equal if the kubelet would see no difference."""
        known, self._entries = self._entries, {}
        for device in snapshot.devices:
            entry = known.get(device.id)
            if entry is None or entry[0] is not device:
                entry = (device, _serialized(device, self._shares))
            self._entries[device.id] = entry
        return b"".join([entry for _, entry in self._entries.values()])


def _serialized(device: Device, shares: int) -> bytes:
    health = HEALTHY if device.health.is_usable else UNHEALTHY
    numa_nodes = {port.numa_node for port in device.ports if port.numa_node is not None}
    topology = None
    if numa_nodes:
        nodes = [v1beta1.NUMANode(ID=node) for node in sorted(numa_nodes)]
        topology = v1beta1.TopologyInfo(nodes=nodes)
    return v1beta1.ListAndWatchResponse(
        devices=[
            v1beta1.Device(ID=share_id, health=health, topology=topology)
            # What a container holds on other terms is listed as well: the kubelet reports an
            # unlisted device as healthy.
            for share_id in dict.fromkeys((*share_ids(device.id, shares), *device.held_as))
        ]
    ).SerializeToString()
