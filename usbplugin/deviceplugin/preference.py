"""Which of the devices that are free a container had best be given. Pure.

The kubelet asks while a pod waits, and is answered in the event loop. So this takes no longer than
sorting what is available takes, whatever IDs and numbers are in the request.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict, deque
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.inventory.shares import device_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from usbplugin.inventory import Device, Snapshot

_MOST_UNKNOWN = 10_000
"""Shares of devices that are not known, of which no more are looked at: the kubelet may not have
heard yet that some were forgotten, but there are never so many of them."""


def prefer(
    request: v1beta1.ContainerPreferredAllocationRequest, snapshot: Snapshot, shares: int
) -> v1beta1.ContainerPreferredAllocationResponse:
    """Choose: what must be included, then one USB hub, then one NUMA node, then longest ready.

    Shared devices are spread: one that fewer containers have comes first.
    """
    chosen = list(dict.fromkeys(request.must_include_deviceIDs))
    wanted = max(0, request.allocation_size - len(chosen))
    best = _best_first(request.available_deviceIDs, chosen, snapshot, shares)
    chosen += list(islice(best, wanted))
    return v1beta1.ContainerPreferredAllocationResponse(deviceIDs=chosen)


class _Place(NamedTuple):
    """Where a device is plugged in."""

    hub: str | None
    numa_node: int | None


_NOWHERE = _Place(None, -1)
"""Of a device of which no port is known: neither the hub nor the NUMA node is anybody else's."""


class _Rank(NamedTuple):
    """How good a choice a device is, wherever it is plugged in; less is better."""

    shares: int
    """How many of its shares are chosen."""
    left: int
    """Minus how many were free at first: the more, the fewer containers have it."""
    is_nowhere: bool


@dataclass(slots=True)
class _Candidate:
    """A device that may be chosen."""

    place: _Place
    since: float
    free: deque[tuple[int, str]]
    """Its shares that may be chosen, each with its position in the request."""

    @property
    def seniority(self) -> tuple[float, int]:
        """Less is better."""
        return (self.since, self.free[0][0])


def _best_first(
    available: Iterable[str], chosen: Sequence[str], snapshot: Snapshot, shares: int
) -> Iterator[str]:
    """All that is available and not chosen yet, in the order in which it is to be chosen.

    Once chosen, a device has a worse rank. So nobody joins those of the best rank while they are
    chosen from, and they need to be put in order only once.
    """
    near = _Neighbourhood()
    times: Counter[str] = Counter()
    for share_id in chosen:
        device_id = device_of(share_id, shares)
        times[device_id] += 1
        near.add(_place(snapshot.by_id.get(device_id)))
    by_rank = defaultdict[_Rank, list[_Candidate]](list)
    for device_id, ids in _by_device(available, chosen, snapshot, shares).items():
        device = snapshot.by_id.get(device_id)
        place = _place(device)
        since = device.since if device is not None and place is not _NOWHERE else 0.0
        rank = _Rank(times[device_id], -len(ids), place is _NOWHERE)
        by_rank[rank].append(_Candidate(place, since, ids))
    ranks = list(by_rank)
    heapify(ranks)
    while ranks:
        rank = heappop(ranks)
        worse = rank._replace(shares=rank.shares + 1)
        for candidate in near.nearest_first(by_rank.pop(rank)):
            yield candidate.free.popleft()[1]
            if candidate.free:
                if worse not in by_rank:
                    heappush(ranks, worse)
                by_rank[worse].append(candidate)


def _by_device(
    available: Iterable[str], chosen: Iterable[str], snapshot: Snapshot, shares: int
) -> Mapping[str, deque[tuple[int, str]]]:
    """The shares that are free, each with its position in the request."""
    found = defaultdict[str, deque[tuple[int, str]]](deque)
    seen = set(chosen)
    unknown = 0
    for position, share_id in enumerate(available):
        if share_id in seen:
            continue
        device_id = device_of(share_id, shares)
        if device_id not in snapshot.by_id:
            unknown += 1
            if unknown > _MOST_UNKNOWN:
                continue
        seen.add(share_id)
        found[device_id].append((position, share_id))
    return found


class _Neighbourhood:
    """Where the devices are that were chosen so far."""

    def __init__(self) -> None:
        self._hubs: Counter[str | None] = Counter()
        self._numa_nodes: Counter[int | None] = Counter()

    def add(self, place: _Place) -> None:
        """A device there is chosen."""
        self._hubs[place.hub] += 1
        self._numa_nodes[place.numa_node] += 1

    def nearest_first(self, candidates: Iterable[_Candidate]) -> Iterator[_Candidate]:
        """Devices of one rank in order; each counts as chosen when it is returned.

        A hub that a device is chosen from comes nearer, and no other hub does: it is emptied before
        the next one. So only the order of hubs that are equally near depends on what is chosen
        meanwhile, by way of their NUMA nodes.
        """
        equally_near = defaultdict[int, list[_Candidate]](list)
        for candidate in sorted(candidates, key=lambda one: one.seniority):
            equally_near[self._hubs[candidate.place.hub]].append(candidate)
        for _, nearest in sorted(equally_near.items(), reverse=True):
            for candidate in self._hub_by_hub(nearest):
                self.add(candidate.place)
                yield candidate

    def _hub_by_hub(self, candidates: Iterable[_Candidate]) -> Iterator[_Candidate]:
        """Devices at equally near hubs; the most senior are given first."""
        by_hub = defaultdict[str | None, list[_Candidate]](list)
        by_node = defaultdict[int | None, deque[_Candidate]](deque)
        for candidate in candidates:
            by_hub[candidate.place.hub].append(candidate)
            by_node[candidate.place.numa_node].append(candidate)
        while by_hub:
            # However many hubs there are, NUMA nodes are few.
            nearest = min(by_node, key=lambda n: (-self._numa_nodes[n], by_node[n][0].seniority))
            yield from self._node_by_node(by_hub.pop(by_node[nearest][0].place.hub))
            for node, queue in list(by_node.items()):
                while queue and queue[0].place.hub not in by_hub:
                    queue.popleft()
                if not queue:
                    del by_node[node]

    def _node_by_node(self, candidates: Sequence[_Candidate]) -> Sequence[_Candidate]:
        """Devices at one hub. A NUMA node is emptied before the next one, as a hub is."""
        order: dict[int | None, tuple[int, int]] = {}
        for position, candidate in enumerate(candidates):
            node = candidate.place.numa_node
            order.setdefault(node, (-self._numa_nodes[node], position))
        return sorted(candidates, key=lambda one: order[one.place.numa_node])


def _place(device: Device | None) -> _Place:
    if device is None or not device.ports:
        return _NOWHERE
    return _Place(_hub(device), _numa_node(device))


def _hub(device: Device) -> str:
    """Location of the hub that the device is plugged into: its own without the last port."""
    usb = device.ports[0].usb
    return re.sub(r"[.-][^.-]*\Z", "", usb.location) if usb else ""


def _numa_node(device: Device) -> int | None:
    return device.ports[0].numa_node
