from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from tests.support import usb_port
from usbplugin.inventory import Device, Health
from usbplugin.status.nodefeatures import NodeFeatures, features

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def device(name: str, resource: str = "usbplugin/serial", product_id: str = "6001") -> Device:
    port = usb_port(product_id=product_id)
    return Device(name, resource, Health.READY, "", (port,), 0.0)


def test_counts_per_resource_and_per_model() -> None:
    devices = [device("a"), device("b", product_id="6015"), device("c", "usbplugin/zigbee")]
    assert features(devices).splitlines() == [
        "usb-0403-6001.count=2",
        "usb-0403-6015.count=1",
        "usbplugin_serial.count=2",
        "usbplugin_zigbee.count=1",
    ]


def test_what_cannot_be_used_does_not_count() -> None:
    assert features([msgspec.structs.replace(device("a"), health=Health.UNPLUGGED)]) == ""


def test_no_serial_number_gets_out() -> None:
    assert "A5069RR4" not in features([device("usb-0403:6001-A5069RR4-if00")])


def test_a_name_too_long_for_a_label_is_left_out() -> None:
    assert "example" not in features([device("a", "example.com/" + "x" * 63)])


def test_the_file_is_replaced_whole_and_only_when_it_changes(tmp_path: Path) -> None:
    offered = NodeFeatures(tmp_path)
    offered.write([device("a")])
    path = tmp_path / "usbplugin"
    first = path.stat().st_ino
    offered.write([device("a")])
    assert path.stat().st_ino == first
    offered.write([])
    assert path.read_text() == ""
    assert os.listdir(tmp_path) == ["usbplugin"]
    offered.remove()
    assert os.listdir(tmp_path) == []


def test_a_directory_that_is_not_there_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    offered = NodeFeatures(tmp_path / "missing")
    offered.write([device("a")])
    offered.write([device("b"), device("c")])
    assert len(caplog.records) == 1
