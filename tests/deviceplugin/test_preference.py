"""Which devices are preferred, and what it costs to find out."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import usb_port
from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.deviceplugin.preference import prefer
from usbplugin.inventory import Device, Health, Snapshot
from usbplugin.inventory.shares import device_of, share_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

    from _typeshed import TraceFunction

    from usbplugin.discovery import Port

SERIAL = "usbplugin/serial"


def device(device_id: str, port: Port, since: float = 0.0) -> Device:
    return Device(device_id, SERIAL, Health.READY, "", (port,), since)


HUBS = Snapshot(
    SERIAL,
    (
        device("hub1-old", usb_port("ttyUSB0", location="pci-1.1", numa_node=0), since=1.0),
        device("hub2-a", usb_port("ttyUSB1", location="pci-2.1", numa_node=0), since=3.0),
        device("hub2-b", usb_port("ttyUSB2", location="pci-2.4", numa_node=0), since=4.0),
        device("far", usb_port("ttyUSB3", location="pcj-1", numa_node=1), since=2.0),
        device("hub1-new", usb_port("ttyUSB4", location="pci-1.2", numa_node=0), since=5.0),
    ),
)


def preferred(size: int, must: tuple[str, ...] = (), without: tuple[str, ...] = ()) -> list[str]:
    request = v1beta1.ContainerPreferredAllocationRequest(
        available_deviceIDs=[d.id for d in HUBS.devices if d.id not in without],
        must_include_deviceIDs=must,
        allocation_size=size,
    )
    return list(prefer(request, HUBS, 1).deviceIDs)


def test_the_longest_ready_device_is_preferred() -> None:
    assert preferred(1) == ["hub1-old"]


def test_a_second_device_comes_from_the_same_hub() -> None:
    assert preferred(2) == ["hub1-old", "hub1-new"]


def test_what_must_be_included_is_and_decides_the_hub() -> None:
    assert preferred(2, must=("hub2-b",)) == ["hub2-b", "hub2-a"]


def test_the_same_numa_node_comes_next() -> None:
    assert preferred(2, must=("hub2-a",), without=("hub2-b",)) == ["hub2-a", "hub1-old"]


def test_no_more_is_answered_than_there_is() -> None:
    assert len(preferred(9)) == 5


def test_one_numa_node_counts_more_than_having_been_ready_for_long() -> None:
    assert preferred(2, must=("hub2-a",), without=("hub2-b", "hub1-old")) == ["hub2-a", "hub1-new"]
    assert preferred(2, must=("far",), without=("hub1-old",)) == ["far", "hub2-a"]


def test_one_hub_counts_more_than_one_numa_node() -> None:
    snapshot = Snapshot(
        SERIAL,
        (
            device("chosen", usb_port("ttyUSB0", location="pci-1.1", numa_node=0)),
            device("same-node", usb_port("ttyUSB1", location="pci-2.1", numa_node=0), since=1.0),
            device("same-hub", usb_port("ttyUSB2", location="pci-1.2", numa_node=1), since=2.0),
        ),
    )
    request = v1beta1.ContainerPreferredAllocationRequest(
        available_deviceIDs=["same-node", "same-hub"],
        must_include_deviceIDs=["chosen"],
        allocation_size=2,
    )
    assert list(prefer(request, snapshot, 1).deviceIDs) == ["chosen", "same-hub"]


@pytest.mark.parametrize(
    "places",
    [
        # Hub and NUMA node of c, a, b, and of what is free: beside c, and beside a and b.
        [("2", 0), ("1", 0), ("1", 0), ("2", 0), ("1", 0)],
        [("2", 1), ("1", 0), ("3", 0), ("4", 1), ("5", 0)],
    ],
    ids=["hub", "numa-node"],
)
def test_where_most_of_the_chosen_are_decides(places: list[tuple[str, int]]) -> None:
    names = ["c", "a", "b", "beside-c", "beside-a-and-b"]
    snapshot = Snapshot(
        SERIAL,
        tuple(
            device(
                name,
                usb_port(location=f"pci-{hub}.{position}", numa_node=node),
                since=float(position),
            )
            for position, (name, (hub, node)) in enumerate(zip(names, places, strict=True))
        ),
    )
    request = v1beta1.ContainerPreferredAllocationRequest(
        available_deviceIDs=names[3:], must_include_deviceIDs=names[:3], allocation_size=4
    )
    assert list(prefer(request, snapshot, 1).deviceIDs) == ["c", "a", "b", "beside-a-and-b"]


def chosen(available: list[str], must: list[str], size: int, shares: int = 1) -> list[str]:
    request = v1beta1.ContainerPreferredAllocationRequest(
        available_deviceIDs=available, must_include_deviceIDs=must, allocation_size=size
    )
    return list(prefer(request, HUBS, shares).deviceIDs)


def test_what_is_not_known_is_taken_last_and_hinders_nobody() -> None:
    assert chosen(["ghost", "far"], [], 1) == ["far"]
    assert chosen(["ghost", "far"], ["phantom"], 3) == ["phantom", "far", "ghost"]
    never_seen = Device("held", SERIAL, Health.UNPLUGGED, "held", (), 0.0)
    request = v1beta1.ContainerPreferredAllocationRequest(
        available_deviceIDs=["held", "a"], must_include_deviceIDs=["held"], allocation_size=2
    )
    snapshot = Snapshot(SERIAL, (never_seen, device("a", usb_port())))
    assert list(prefer(request, snapshot, 1).deviceIDs) == ["held", "a"]


def test_shares_are_spread_over_devices_that_fewer_containers_have() -> None:
    shares = ["hub1-old.1", "hub1-old.2", "far.0", "far.1", "far.2"]
    assert chosen(shares, [], 1, shares=3) == ["far.0"], "nobody has it yet"
    assert chosen(shares, [], 2, shares=3) == ["far.0", "hub1-old.1"], "one of each"
    assert chosen(shares, ["far.0"], 2, shares=3) == ["far.0", "hub1-old.1"]


def test_what_must_be_included_is_counted_once() -> None:
    assert chosen(["far", "hub1-old"], ["far", "far"], 2) == ["far", "hub1-old"]
    assert chosen(["far", "hub1-old"], ["far"], 1) == ["far"]
    assert chosen(["far", "hub1-old"], [], 0) == []


def obvious(
    available: Sequence[str], must: Sequence[str], size: int, snapshot: Snapshot, shares: int
) -> list[str]:
    """By definition: again and again the best of all that are free, the first of equals."""
    chosen = list(dict.fromkeys(must))
    free = [one for one in dict.fromkeys(available) if one not in chosen]
    left = Counter(device_of(one, shares) for one in free)

    def place(share_id: str) -> tuple[str, int | None] | None:
        found = snapshot.by_id.get(device_of(share_id, shares))
        if found is None or not found.ports:
            return None
        usb = found.ports[0].usb
        location = usb.location.replace("-", ".") if usb else ""
        return (location.rpartition(".")[0], found.ports[0].numa_node)

    def rank(share_id: str) -> tuple[float, ...]:
        device_id = device_of(share_id, shares)
        times = sum(device_of(one, shares) == device_id for one in chosen)
        if (here := place(share_id)) is None:
            return (times, -left[device_id], 1)
        places = [there for one in chosen if (there := place(one)) is not None]
        return (
            times,
            -left[device_id],
            0,
            -sum(hub == here[0] for hub, _ in places),
            -sum(node == here[1] for _, node in places),
            snapshot.by_id[device_id].since,
        )

    while free and len(chosen) < size:
        best = min(free, key=rank)
        free.remove(best)
        chosen.append(best)
    return chosen


NAMES = [f"d{number}" for number in range(12)]
ports = st.builds(
    lambda location, node: usb_port(location=location, numa_node=node),
    st.sampled_from(
        [f"pci-{hub}{number}" for hub in ("", "1.", "2.", "3.", "3.1.") for number in "12"]
    ),
    st.sampled_from([None, 0, 1, 2]),
) | st.builds(lambda node: usb_port(usb=None, numa_node=node), st.sampled_from([None, 0, 1]))
devices = st.lists(
    st.builds(
        lambda name, ports, since: Device(name, SERIAL, Health.READY, "", tuple(ports), since),
        st.sampled_from(NAMES),
        st.lists(ports, min_size=1, max_size=2) | st.just([]),
        st.sampled_from([float("-inf"), -1.0, 0.0, 0.0, 1.0, 2.5]),
    ),
    unique_by=lambda one: one.id,
    max_size=len(NAMES),
)


@st.composite
def questions(draw: st.DrawFn) -> tuple[Snapshot, int, list[str], list[str], int]:
    """Devices in all kinds of places, and a request with IDs of theirs and of nobody's."""
    snapshot = Snapshot(SERIAL, tuple(draw(devices)))
    shares = draw(st.sampled_from([1, 1, 2, 4]))
    known = [one for name in NAMES for one in share_ids(name, shares)]
    ids = st.sampled_from([*known, "", "ghost", "ghost.0", "d0.00", "d1.4", "d2.0.0"])
    available = draw(
        st.permutations(known).map(lambda all_ids: all_ids[:40]) | st.lists(ids, max_size=40)
    )
    must = draw(st.lists(ids, max_size=6))
    return snapshot, shares, available, must, draw(st.integers(-1, 50))


@given(questions())
@settings(max_examples=5 * settings().max_examples)
def test_what_is_preferred_is_what_the_definition_says(
    question: tuple[Snapshot, int, list[str], list[str], int],
) -> None:
    snapshot, shares, available, must, size = question
    request = v1beta1.ContainerPreferredAllocationRequest(
        available_deviceIDs=available, must_include_deviceIDs=must, allocation_size=size
    )
    found = list(prefer(request, snapshot, shares).deviceIDs)
    assert found == obvious(available, must, size, snapshot, shares)


def lines_run(call: Callable[[], object]) -> int:
    """How many lines of Python a call runs: the same in each run, on any machine."""
    lines = 0

    def trace(frame: FrameType, event: str, argument: object) -> TraceFunction:
        nonlocal lines
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return lines


def cost(
    count: int,
    *,
    hubs: int = 1,
    nodes: int = 1,
    shares: int = 1,
    known: bool = True,
    must: int = 0,
    times: int = 1,
    size: int | None = None,
) -> int:
    """What a request costs that names so many devices; for half of what there is, by default."""
    snapshot = Snapshot(
        SERIAL,
        tuple(
            device(f"d{n}", usb_port(location=f"pci-{n % hubs}.{n}", numa_node=n % nodes), since=n)
            for n in range(count if known else 0)
        ),
    )
    ids = [one for n in range(count) for one in share_ids(f"d{n}", shares)]
    request = v1beta1.ContainerPreferredAllocationRequest(
        available_deviceIDs=ids * times,
        must_include_deviceIDs=ids[:must] * times,
        allocation_size=len(ids) // 2 if size is None else size,
    )
    return lines_run(lambda: prefer(request, snapshot, shares))


@pytest.mark.parametrize(
    "measured",
    [
        lambda many: cost(4, shares=10 * many),
        lambda many: cost(4, shares=10 * many, must=10 * many),
        lambda many: cost(30 * many),
        lambda many: cost(30 * many, nodes=2),
        lambda many: cost(30 * many, hubs=10),
        lambda many: cost(30 * many, hubs=30 * many, nodes=2),
        lambda many: cost(30 * many, hubs=10 * many, nodes=3),
        lambda many: cost(30 * many, known=False),
        lambda many: cost(30 * many, size=2**31 - 1),
        lambda many: cost(30, times=10 * many, must=5),
    ],
    ids=[
        *("shares", "must-include", "one-hub", "two-nodes", "ten-hubs", "a-hub-each", "many-hubs"),
        *("unknown", "size", "duplicates"),
    ],
)
def test_ten_times_as_many_cost_ten_times_as_much(measured: Callable[[int], int]) -> None:
    assert measured(10) < 12 * measured(1)


def test_what_nobody_knows_costs_little_more_however_much_it_is() -> None:
    few, many = (cost(count, known=False, size=2**31 - 1) for count in (10_000, 50_000))
    assert many < 2 * few


def test_of_what_nobody_knows_ten_thousand_are_looked_at_and_hinder_nobody() -> None:
    ghosts = [f"ghost-{number}" for number in range(20_000)]
    found = chosen([*ghosts, "far", ghosts[-1]], [ghosts[-1]], 2**31 - 1)
    assert found == [ghosts[-1], "far", *ghosts[:10_000]]


@pytest.mark.parametrize("size", [-(2**31), -1, 0, 5])
def test_a_request_for_no_more_than_must_be_included_costs_nothing(size: int) -> None:
    assert cost(1000, must=5, size=size) < 20
