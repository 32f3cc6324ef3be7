from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

from tests.support import usb_port
from usbplugin.inventory import Device, Health
from usbplugin.kubelet import LinkDirectory

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

PORT = usb_port()
READY = Device("usb-a", "usbplugin/serial", Health.READY, "", (PORT,), 0.0)
AWAY = dataclasses.replace(READY, health=Health.UNPLUGGED, reason="gone")


def test_a_ready_device_has_a_link_to_its_node(tmp_path: Path) -> None:
    links = LinkDirectory(tmp_path / "run")
    links.update(READY)
    path = links.host_path(READY, PORT)
    assert path == str(tmp_path / "run/usb-a/if00")
    assert os.readlink(path) == "/dev/ttyUSB0"


def test_the_link_follows_the_device_to_another_number(tmp_path: Path) -> None:
    links = LinkDirectory(tmp_path)
    links.update(READY)
    links.update(dataclasses.replace(READY, ports=(usb_port("ttyUSB9"),)))
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
    earlier.update(dataclasses.replace(READY, id="usb-b"))
    (tmp_path / "notes").write_text("somebody else's")
    LinkDirectory(tmp_path).keep_only({"usb-a"})
    assert sorted(os.listdir(tmp_path)) == ["notes", "usb-a"]


def test_without_a_writable_directory_the_node_itself_is_given(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a directory")
    links = LinkDirectory(tmp_path / "file")
    links.update(READY)
    links.update(dataclasses.replace(READY, id="usb-b"))
    assert links.host_path(READY, PORT) == "/dev/ttyUSB0"
    assert len(caplog.records) == 1


def test_something_else_in_the_links_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "usb-a").mkdir()
    (tmp_path / "usb-a/if00").write_text("a file")
    links = LinkDirectory(tmp_path)
    links.update(READY)
    assert os.readlink(tmp_path / "usb-a/if00") == "/dev/ttyUSB0"
