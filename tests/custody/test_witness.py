"""What the kubelet's notes say of our devices, and how sure that is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from usbplugin.custody.witness import grants_of, number_at
from usbplugin.discovery import DeviceNumber
from usbplugin.inventory import Grant, GrantedPort
from usbplugin.kubelet import Replay

if TYPE_CHECKING:
    from pathlib import Path

SERIAL = "usbplugin/serial"
GPS, DOOR = "usb-0403:6001-GPS-if00", "usb-0403:6001-DOOR-if00"
MODEM = "usb-1e0e:9001-0123"
NUMBERS = {
    f"/run/usbplugin/{GPS}/if00": DeviceNumber(188, 0),
    f"/run/usbplugin/{DOOR}/if00": DeviceNumber(188, 1),
}


def replay(device_ids: tuple[str, ...], *paths: str, **changes: object) -> Replay:
    host_paths = {f"/dev/port{number}": path for number, path in enumerate(paths)}
    whole = Replay(SERIAL, device_ids, "uid", "main", host_paths, (), {})
    return msgspec.structs.replace(whole, **changes)


def told(*replays: Replay) -> dict[str, dict[str, GrantedPort]]:
    grants = grants_of(replays, NUMBERS.get)
    assert all(grant.resource == SERIAL and grant.is_unsure for grant in grants)
    return {grant.listed_id: grant.ports for grant in grants}


def test_links_tell_which_device_they_are_of_wherever_they_are() -> None:
    paths = [f"/run/usbplugin/{DOOR}/if00", f"/old/links/{GPS}/if00"]
    assert told(replay((GPS, DOOR), *paths)) == {
        DOOR: {"if00": GrantedPort(None, paths[0], (DeviceNumber(188, 1),))},
        GPS: {"if00": GrantedPort(None, paths[1])},
    }


def test_a_modems_ports_are_told_apart_by_their_slots() -> None:
    paths = {slot: f"/run/usbplugin/{MODEM}/{slot}" for slot in ("if00", "if02", "if03-port1")}
    assert told(replay((MODEM,), *paths.values())) == {
        MODEM: {slot: GrantedPort(None, path) for slot, path in paths.items()}
    }


def test_shares_are_of_their_device() -> None:
    path = f"/run/usbplugin/{GPS}/if00"
    given = {"if00": GrantedPort(None, path, (DeviceNumber(188, 0),))}
    assert told(replay((f"{GPS}.0", f"{GPS}.7"), path)) == {f"{GPS}.0": given, f"{GPS}.7": given}


def test_the_node_of_a_single_port_is_its() -> None:
    for listed_id in (GPS, f"{GPS}.3"):
        assert told(replay((listed_id,), "/dev/ttyUSB0", "/dev/ttyUSB0")) == {
            listed_id: {"if00": GrantedPort(None, "/dev/ttyUSB0")}
        }
    entry = "dir-ttyUSB0-0123abcd"
    assert told(replay((entry,), "/dev/pts/3")) == {
        entry: {"if00": GrantedPort(None, "/dev/pts/3")}
    }


@pytest.mark.parametrize(
    "doubtful",
    [
        replay((GPS, DOOR), "/dev/ttyUSB0", "/dev/ttyUSB1"),
        replay((GPS,), "/dev/ttyUSB0", "/dev/ttyUSB1"),
        replay((MODEM,), "/dev/ttyUSB0"),
        replay((GPS,), f"/run/usbplugin/{GPS}/if00", "/dev/ttyUSB1"),
        replay((GPS,), f"/run/usbplugin/{DOOR}/if00"),
        replay((GPS,)),
        replay((), f"/run/usbplugin/{GPS}/if00"),
        replay((GPS,), f"/run/usbplugin/{GPS}/if00", is_legible=False),
    ],
)
def test_what_is_not_beyond_doubt_is_left_out(doubtful: Replay) -> None:
    assert told(doubtful) == {}


def test_the_name_in_the_container_tells_a_number_that_it_may_have() -> None:
    path = f"/run/usbplugin/{GPS}/if00"
    named = replay((GPS,), host_paths={"/dev/ttyACM7": path})
    assert told(named) == {
        GPS: {"if00": GrantedPort(None, path, (DeviceNumber(188, 0), DeviceNumber(166, 7)))}
    }
    same = replay((GPS,), host_paths={"/dev/ttyUSB0": path})
    assert told(same) == {GPS: {"if00": GrantedPort(None, path, (DeviceNumber(188, 0),))}}


def test_two_notes_that_differ_say_nothing_and_two_that_agree_say_it_once() -> None:
    one, other = (replay((GPS,), f"/{place}/{GPS}/if00") for place in ("a", "b"))
    assert told(one, other) == {}
    assert told(one, other, one) == {}
    assert told(one, one).keys() == {GPS}


def test_by_cdi_there_is_a_name_and_no_path() -> None:
    names = (f"{SERIAL}={GPS}", f"{SERIAL}={MODEM}", f"{SERIAL}=0usb-0403:6001-X_-if00_0")
    ids = (GPS, MODEM, "usb-0403:6001-X_-if00_", DOOR)
    grants = grants_of([replay(ids, cdi_devices=names)], NUMBERS.get)
    assert {(grant.listed_id, slot) for grant in grants for slot in grant.ports} == {
        (GPS, "if00"),
        (MODEM, ""),
        ("usb-0403:6001-X_-if00_", ""),
    }
    assert all(grant.is_cdi for grant in grants)


def test_other_plugins_notes_are_not_told(tmp_path: Path) -> None:
    assert grants_of([Replay("vendor.com/gpu", ("gpu0",), "uid", "main", {}, (), {})]) == ()


def test_a_path_has_the_number_of_what_it_leads_to(tmp_path: Path) -> None:
    link = tmp_path / "if00"
    assert number_at(str(link)) is None
    link.symlink_to("/dev/null")
    assert number_at(str(link)) == DeviceNumber(1, 3)
    link.unlink()
    link.symlink_to(link)
    assert number_at(str(link)) is None


def test_a_grant_is_of_a_listed_id() -> None:
    assert Grant(SERIAL, f"{GPS}.0", {}).key == (SERIAL, f"{GPS}.0")
