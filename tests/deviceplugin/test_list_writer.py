"""What the kubelet's list has in it, and what is left out of one that would be too large."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import usb_port
from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.custody import Offer
from usbplugin.deviceplugin import DevicePlugin
from usbplugin.deviceplugin.list_writer import LARGEST_LIST, ListWriter
from usbplugin.inventory import Device, Health, Snapshot
from usbplugin.inventory.shares import MOST_SHARES, device_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from usbplugin.discovery import Port

SERIAL = "usbplugin/serial"
THE_KUBELETS_LIMIT = 4 * 1024 * 1024


def device(
    device_id: str, health: Health = Health.READY, *holders: str, since: float = 0.0
) -> Device:
    return Device(device_id, SERIAL, health, "", (usb_port(numa_node=0),), since, holders)


def listed(written: bytes) -> list[str]:
    return [one.ID for one in v1beta1.ListAndWatchResponse.FromString(written).devices]


def room_for(devices: Sequence[Device], shares: int = 1) -> int:
    """What a list of these takes."""
    return len(ListWriter(shares).write(Snapshot(SERIAL, tuple(devices))))


def test_a_list_that_is_just_not_too_large_has_every_device() -> None:
    devices = tuple(device(name) for name in "abc")
    writer = ListWriter(largest=room_for(devices))
    assert listed(writer.write(Snapshot(SERIAL, devices))) == ["a", "b", "c"]
    assert writer.left_out == ()


def test_of_a_list_that_would_be_too_large_whole_devices_are_left_out() -> None:
    devices = tuple(device(name) for name in "abc")
    writer = ListWriter(2, largest=room_for(devices, shares=2) - 1)
    assert listed(writer.write(Snapshot(SERIAL, devices))) == ["a.0", "a.1", "b.0", "b.1"]
    assert writer.left_out == devices[2:]


BY_WORTH = (
    device("held-and-ready", Health.READY, "ns/pod/c"),
    device("held-and-displaced", Health.DISPLACED, "ns/pod/c"),
    device("held-and-away", Health.UNPLUGGED, "ns/pod/c", since=2.0),
    device("held-and-away-for-long", Health.UNPLUGGED, "ns/pod/c", since=1.0),
    device("ready", since=5.0),
    device("ready-seen-later", since=4.0),
    device("flapping", Health.FLAPPING, since=9.0),
    device("broken", Health.BROKEN, since=8.0),
    device("incomplete", Health.INCOMPLETE, since=7.0),
    device("away", Health.UNPLUGGED, since=3.0),
    device("away-for-longer", Health.UNPLUGGED, since=2.0),
    device("away-for-longest", Health.UNPLUGGED, since=float("-inf")),
)


@pytest.mark.parametrize("count", range(len(BY_WORTH) + 1))
def test_what_is_worth_least_is_left_out_first(count: int) -> None:
    # As they were first seen, which is not by worth, but for those that are worth the same.
    seen = (*BY_WORTH[9:], *BY_WORTH[3:9], *reversed(BY_WORTH[:3]))
    writer = ListWriter(largest=room_for(BY_WORTH[:count]))
    written = listed(writer.write(Snapshot(SERIAL, seen)))
    kept = {one.id for one in BY_WORTH[:count]}
    assert written == [one.id for one in seen if one.id in kept], "in the order of before"
    assert writer.left_out == BY_WORTH[count:]


def test_a_smaller_device_takes_no_place_from_one_that_is_worth_more() -> None:
    large, small = device("x" * 50), device("s", Health.UNPLUGGED)
    writer = ListWriter(largest=room_for([device("a"), small]))
    assert listed(writer.write(Snapshot(SERIAL, (device("a"), large, small)))) == ["a"]
    assert writer.left_out == (large, small)


def test_what_was_left_out_is_listed_once_there_is_room() -> None:
    devices = tuple(device(name) for name in "abc")
    writer = ListWriter(largest=room_for(devices[:2]))
    assert listed(writer.write(Snapshot(SERIAL, devices))) == ["a", "b"]
    assert listed(writer.write(Snapshot(SERIAL, devices[1:]))) == ["b", "c"]
    assert writer.left_out == ()


devices_of_all_kinds = st.lists(
    st.builds(
        lambda name, health, holders, since: device(name, health, *holders, since=since),
        st.text("abcdef", min_size=1, max_size=40),
        st.sampled_from(Health),
        st.sampled_from([(), (), ("ns/pod/c",)]),
        st.sampled_from([float("-inf"), 0.0, 1.0, 2.0]),
    ),
    unique_by=lambda one: one.id,
    max_size=12,
)


@given(devices_of_all_kinds, st.integers(0, 800), st.sampled_from([1, 3]))
def test_a_list_is_never_too_large_and_has_all_that_fits(
    devices: list[Device], largest: int, shares: int
) -> None:
    snapshot = Snapshot(SERIAL, tuple(devices))
    writer = ListWriter(shares, largest)
    written = writer.write(snapshot)
    assert len(written) <= largest
    left_out = {one.id for one in writer.left_out}
    kept = [one for one in devices if one.id not in left_out]
    assert written == ListWriter(shares).write(Snapshot(SERIAL, tuple(kept)))
    assert writer.write(snapshot) == written
    if writer.left_out:
        assert room_for([*kept, writer.left_out[0]], shares) > largest


def crowd(count: int, away: int = 0) -> Snapshot:
    """Devices with the longest of IDs, of which so many are away."""
    return Snapshot(
        SERIAL,
        tuple(
            device(f"usb-{n:055}", Health.UNPLUGGED if n < away else Health.READY)
            for n in range(count)
        ),
    )


def test_by_default_a_list_is_almost_as_large_as_the_kubelet_takes() -> None:
    writer = ListWriter(MOST_SHARES)
    written = writer.write(crowd(60, away=20))
    assert 0.95 * THE_KUBELETS_LIMIT < len(written) <= LARGEST_LIST < THE_KUBELETS_LIMIT
    assert all(one.health is Health.UNPLUGGED for one in writer.left_out)
    names = [device_of(one, MOST_SHARES) for one in listed(written)]
    assert len(names) == MOST_SHARES * len(set(names))
    assert len(set(names)) + len(writer.left_out) == 60


class NoCustody:
    """For a plugin that is not asked for a device."""

    def host_path(self, device: Device, port: Port) -> str:
        raise NotImplementedError

    def locate(self, device_id: str) -> str | None:
        raise NotImplementedError

    def leave(self, resource: str) -> None:
        pass

    async def catch_up(self, resource: str) -> None:
        pass

    async def take_charge(self, resource: str) -> None:
        pass

    async def grant_problem(self, devices: Sequence[Device]) -> str:
        raise NotImplementedError

    def grant(self, device: Device, paths: Mapping[str, str], listed_ids: Sequence[str]) -> str:
        raise NotImplementedError

    async def start(self, resource: str, listed_ids: Sequence[str]) -> str:
        raise NotImplementedError


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str, object]]:
    """What was logged since it was asked last."""
    found = [(one.levelno, one.getMessage(), vars(one)["fields"]) for one in caplog.records]
    caplog.clear()
    return found


def test_that_devices_are_left_out_is_logged_when_it_changes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "usbplugin")
    plugin = DevicePlugin(Offer(SERIAL, shares=MOST_SHARES), crowd(3), NoCustody(), lambda: None)
    assert plugin.left_out == 0
    assert lines(caplog) == []
    plugin.publish(crowd(60, away=20))
    ((level, message, about),) = lines(caplog)
    assert level == logging.WARNING
    assert "lower shares or retention" in message
    assert about == {
        "resource": SERIAL,
        "count": plugin.left_out,
        "some": [f"usb-{n:055}" for n in range(20 - plugin.left_out, 20)][:5],
    }
    assert 5 < plugin.left_out < 20
    *others, last = crowd(60, away=20).devices
    plugin.publish(Snapshot(SERIAL, (*others, msgspec.structs.replace(last, reason="other"))))
    plugin.publish(crowd(60, away=20))
    assert lines(caplog) == [], "the same devices are left out"
    plugin.publish(crowd(61, away=20))
    assert [level for level, _, _ in lines(caplog)] == [logging.WARNING]
    plugin.publish(crowd(3))
    assert lines(caplog) == [
        (
            logging.INFO,
            "no device is left out of the kubelet's list any more",
            {"resource": SERIAL},
        )
    ]
    assert plugin.left_out == 0
