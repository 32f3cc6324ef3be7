from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from tests.support import usb_port
from usbplugin.custody import LinkDirectory
from usbplugin.inventory import Device, Health

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

PORT = usb_port()
READY = Device("usb-a", "usbplugin/serial", Health.READY, "", (PORT,), 0.0)
AWAY = msgspec.structs.replace(READY, health=Health.UNPLUGGED, reason="gone")


def test_a_ready_device_has_a_link_to_its_node(tmp_path: Path) -> None:
    links = LinkDirectory(tmp_path / "run")
    links.update(READY)
    path = links.host_path(READY, PORT)
    assert path == str(tmp_path / "run/usb-a/if00")
    assert os.readlink(path) == "/dev/ttyUSB0"


def test_the_link_follows_the_device_to_another_number(tmp_path: Path) -> None:
    links = LinkDirectory(tmp_path)
    links.update(READY)
    links.update(msgspec.structs.replace(READY, ports=(usb_port("ttyUSB9"),)))
    assert os.readlink(tmp_path / "usb-a/if00") == "/dev/ttyUSB9"
    assert os.listdir(tmp_path / "usb-a") == ["if00"]


def test_a_device_that_is_away_has_no_link(tmp_path: Path) -> None:
    links = LinkDirectory(tmp_path)
    links.update(READY)
    links.update(AWAY)
    assert not os.path.lexists(tmp_path / "usb-a/if00")
    assert links.host_path(AWAY, PORT) == "/dev/ttyUSB0"


def test_what_an_earlier_run_left_of_absent_devices_is_removed(tmp_path: Path) -> None:
    earlier = LinkDirectory(tmp_path)
    earlier.update(READY)
    earlier.update(msgspec.structs.replace(READY, id="usb-b"))
    (tmp_path / "notes").write_text("somebody else's")
    LinkDirectory(tmp_path).keep_only({"usb-a"})
    assert sorted(os.listdir(tmp_path)) == ["notes", "usb-a"]


def test_nothing_that_is_not_ours_is_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    theirs = ["systemd/notify", "usb-b/notes", "usb-b/lost/found", "dir-x"]
    for name in theirs:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("somebody else's")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "device.json").write_text("somebody else's")
    (run / "usb-link").symlink_to(elsewhere)
    (run / "systemd/link").symlink_to("/dev/null")
    for name in ("if00", ".new-if00"):
        (run / "usb-b" / name).symlink_to("/dev/ttyUSB0")
    for name in ("device.json", ".device.json.new"):
        (run / "usb-b" / name).write_text("{}")
    links = LinkDirectory(run)
    links.keep_only(())
    for device_id in ("systemd", "usb-link", "usb-b"):
        links.forget(device_id)
    assert all((run / name).read_text() == "somebody else's" for name in theirs)
    assert sorted(os.listdir(run / "usb-b")) == ["lost", "notes"]
    assert (run / "systemd/link").is_symlink()
    assert os.listdir(elsewhere) == ["device.json"]
    assert not caplog.records


def test_all_that_is_ours_goes_with_its_folder(tmp_path: Path) -> None:
    links = LinkDirectory(tmp_path)
    for device_id in ("usb-a", "dir-ttyUSB0-12"):
        links.update(msgspec.structs.replace(READY, id=device_id))
        (tmp_path / device_id / "device.json").write_text("{}")
        (tmp_path / device_id / ".device.json.new").write_text("{")
        (tmp_path / device_id / ".new-if00").symlink_to("/dev/ttyUSB0")
    links.keep_only(())
    assert os.listdir(tmp_path) == []


def test_without_a_writable_directory_the_node_itself_is_given(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a directory")
    links = LinkDirectory(tmp_path / "file")
    links.update(READY)
    links.update(msgspec.structs.replace(READY, id="usb-b"))
    assert links.host_path(READY, PORT) == "/dev/ttyUSB0"
    assert len(caplog.records) == 1


def test_something_else_in_the_links_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "usb-a").mkdir()
    (tmp_path / "usb-a/if00").write_text("a file")
    links = LinkDirectory(tmp_path)
    links.update(READY)
    assert os.readlink(tmp_path / "usb-a/if00") == "/dev/ttyUSB0"
