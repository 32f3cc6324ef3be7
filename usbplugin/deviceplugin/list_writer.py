"""The list of devices as the kubelet is to see it, made anew only where a device has changed.

The whole list is sent whenever one device changes. Serialized messages that are joined are one
message with all their devices, so each device is serialized once and kept.

The kubelet ends the stream over a message that is too large, and then nothing of the resource is
served. So a list that would be too large has no more devices than fit, those worth most.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.inventory import Health
from usbplugin.inventory.shares import share_ids

if TYPE_CHECKING:
    from usbplugin.inventory import Device, Snapshot

HEALTHY = "Healthy"
UNHEALTHY = "Unhealthy"

LARGEST_LIST = 4 * 1024 * 1024 - 64 * 1024
"""Bytes. The kubelet leaves the limit at grpc-go's default, 4 MiB
(``defaultClientMaxReceiveMessageSize`` in its clientconn.go); the rest is a margin."""


class ListWriter:
    """Writes one resource's list."""

    def __init__(self, shares: int = 1, largest: int = LARGEST_LIST) -> None:
        """List each device so many times, in no more than ``largest`` bytes."""
        self.left_out: tuple[Device, ...] = ()
        """The devices that the last list had no room for, those worth most first."""
        self._shares = shares
        self._largest = largest
        self._entries: dict[str, tuple[Device, bytes]] = {}

    def write(self, snapshot: Snapshot) -> bytes:
        """The serialized ``ListAndWatchResponse``; equal if the kubelet would see no difference."""
        known, self._entries = self._entries, {}
        for device in snapshot.devices:
            entry = known.get(device.id)
            if entry is None or entry[0] is not device:
                entry = (device, _serialized(device, self._shares))
            self._entries[device.id] = entry
        parts = [listed for _, listed in self._entries.values()]
        if sum(map(len, parts)) <= self._largest:
            self.left_out = ()
        else:
            self.left_out = self._excess()
            without = {device.id for device in self.left_out}
            parts = [part for one, (_, part) in self._entries.items() if one not in without]
        return b"".join(parts)

    def _excess(self) -> tuple[Device, ...]:
        """What there is no room for: from the first device that does not fit, all worth less."""
        by_worth = sorted(self._entries.values(), key=lambda entry: _worth(entry[0]))
        sizes = accumulate(len(listed) for _, listed in by_worth)
        fitting = bisect_right(list(sizes), self._largest)
        return tuple(device for device, _ in by_worth[fitting:])


def _worth(device: Device) -> tuple[bool, bool, bool, float]:
    """What a place in the list is worth to a device; less is more.

    What the kubelet has allocated comes first, or it would count the device as gone; then what it
    can allocate, what may soon be usable, and what is away, the longer the less likely to return.
    """
    is_away = device.health is Health.UNPLUGGED
    return (
        not device.holders,
        not device.health.is_usable,
        is_away,
        -device.since if is_away else 0.0,
    )


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
            for share_id in dict.fromkeys((*share_ids(device.id, shares), *device.also_listed))
        ]
    ).SerializeToString()
