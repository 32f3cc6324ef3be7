"""Which device is in which ResourceSlice of the node's pool, and what a slice says. Pure.

A device stays in its slice as long as it is published, so that one unplug is one request, and a
slice is small: what the API server and the controllers take to handle a change grows with it.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from usbplugin.dra.device import Entry
from usbplugin.dra.names import DRIVER

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

SLICE_SIZE = 16
"""Devices in a slice. The API allows 64 if any of them is tainted, which takes five times as long
to be acted upon."""

MOST_SLICES = 128
"""As many as a pool is to have."""

API_VERSION = "resource.k8s.io/v1"


class Pool(msgspec.Struct, frozen=True):
    """How a node's devices are divided into slices."""

    generation: int = 0
    """Rises whenever more than one slice changes its devices, or their number changes: consumers
    then wait until they have seen all slices of it."""
    places: dict[str, int] = {}
    """By device name, the number of its slice, from 0."""

    @property
    def count(self) -> int:
        """The number of slices; there is always one, if only to say that there is no device."""
        return max(self.places.values(), default=0) + 1

    def arrange(self, names: Iterable[str], least_generation: int = 1) -> Pool:
        """The pool for these devices; this one if nothing has to change.

        Args:
            names: All the devices that are published.
            least_generation: Not below this, if nothing is known of what was published before.
        """
        wanted = set(names)
        places = {name: place for name, place in self.places.items() if name in wanted}
        touched = {place for name, place in self.places.items() if name not in wanted}
        sizes = Counter(places.values())
        first = 0
        for name in sorted(wanted - places.keys()):  # other instances come to the same result
            while sizes[first] >= SLICE_SIZE:
                first += 1
            if first >= MOST_SLICES:
                break
            places[name] = first
            sizes[first] += 1
            touched.add(first)
        arranged = Pool(self.generation, places)
        if self.generation and not touched:
            return self
        if not self.generation or len(touched) > 1 or arranged.count != self.count:
            generation = max(self.generation + 1, least_generation)
            return msgspec.structs.replace(arranged, generation=generation)
        return arranged


class PoolRef(msgspec.Struct, frozen=True, rename="camel"):
    """To which pool a slice belongs."""

    name: str
    generation: int
    resource_slice_count: int


class SliceSpec(msgspec.Struct, frozen=True, rename="camel"):
    """What a slice says."""

    driver: str
    node_name: str
    pool: PoolRef
    devices: tuple[Entry, ...]


class OwnerReference(msgspec.Struct, frozen=True, rename="camel"):
    """Whose slice it is: with its node, it goes."""

    name: str
    uid: str
    api_version: str = "v1"
    kind: str = "Node"


class Metadata(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A slice's name and owner."""

    name: str
    owner_references: tuple[OwnerReference, ...] = ()


class ResourceSlice(msgspec.Struct, frozen=True, rename="camel"):
    """A slice as it is applied: all that we say of it, and nothing else."""

    metadata: Metadata
    spec: SliceSpec
    api_version: str = API_VERSION
    kind: str = "ResourceSlice"


def slice_name(node: str, number: int) -> str:
    """The name of a node's slice: known beforehand, so that nobody has to look for it."""
    return f"{node}-{DRIVER}-{number}"


def slices_of(
    pool: Pool, entries: Mapping[str, Entry], node: str, node_uid: str
) -> list[ResourceSlice]:
    """All slices of the pool, each at its number.

    Args:
        pool: How devices are divided.
        entries: By name, what is said of each device; one that is missing is left out.
        node: The node's name, which is the pool's too.
        node_uid: The Node's UID.
    """
    devices: list[list[Entry]] = [[] for _ in range(pool.count)]
    for name in sorted(pool.places.keys() & entries.keys()):
        devices[pool.places[name]].append(entries[name])
    owners = (OwnerReference(node, node_uid),)
    reference = PoolRef(node, pool.generation, pool.count)
    return [
        ResourceSlice(
            Metadata(slice_name(node, number), owners),
            SliceSpec(DRIVER, node, reference, tuple(found)),
        )
        for number, found in enumerate(devices)
    ]


def dropped_fields(sent: Collection[Entry], kept: Mapping[str, Mapping[str, object]]) -> set[str]:
    """What the API server left out of devices, as it does where a feature gate is off.

    Args:
        sent: Entries that it accepted.
        kept: By name, the devices of its answer.
    """
    dropped = set()
    for entry in sent:
        device = kept.get(entry.name, {})
        if entry.taints and not device.get("taints"):
            dropped.add("taints")
        if entry.allow_multiple_allocations and not device.get("allowMultipleAllocations"):
            dropped.add("allowMultipleAllocations")
    return dropped
