"""A look at the moment of a decision, when no source has reported what happened."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from tests.discovery.test_directory import plug, pull
from tests.discovery.test_sysfs import FakeSysfs
from tests.fuzz.support import SERIAL, AbortedError, Context, Keeper, answer, within_loop
from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.custody import Offer
from usbplugin.discovery import DirectorySource, Port, PortPresent
from usbplugin.discovery.fresh import is_unchanged
from usbplugin.discovery.sysfs import read_tty

if TYPE_CHECKING:
    from pathlib import Path


def test_another_device_under_the_same_name_and_number(tmp_path: Path) -> None:
    plug(tmp_path, "ttyUSB0", "FIRST")
    (port,) = DirectorySource(tmp_path).scan()
    assert is_unchanged(port)
    pull(tmp_path, "ttyUSB0")
    assert not is_unchanged(port)
    plug(tmp_path, "ttyUSB0", "OTHER")
    assert not is_unchanged(port)
    pull(tmp_path, "ttyUSB0")
    plug(tmp_path, "ttyUSB0", "FIRST", "/dev/zero")
    assert not is_unchanged(port)
    pull(tmp_path, "ttyUSB0")
    plug(tmp_path, "ttyUSB0", "FIRST")
    assert is_unchanged(port)


def test_another_device_in_the_same_place_of_sysfs(tmp_path: Path) -> None:
    sysfs = FakeSysfs(tmp_path)
    path = sysfs.cdc_acm(sysfs.device(serial=b"FIRST"), "ttyACM0")
    tty = read_tty(path)
    assert tty is not None
    port = Port("ttyACM0", "/dev/ttyACM0", tty.number, tty.usb, tty.path)
    assert is_unchanged(port)
    shutil.rmtree(sysfs.devices)
    assert not is_unchanged(port)
    assert sysfs.cdc_acm(sysfs.device(serial=b"OTHER"), "ttyACM0") == path
    assert not is_unchanged(port)


def test_no_container_starts_with_a_device_that_was_swapped_unseen(tmp_path: Path) -> None:
    devices = tmp_path / "dev"
    devices.mkdir()
    plug(devices, "ttyUSB0", "FIRST")
    (port,) = DirectorySource(devices).scan()
    keeper = Keeper(tmp_path / "node", Offer(SERIAL))
    within_loop(lambda: keeper.custody.apply([PortPresent("dev", port)]))
    (device,) = keeper.custody.devices
    paths = {port.slot: keeper.custody.host_path(device, port)}
    within_loop(lambda: keeper.custody.grant(device, paths, [device.id]))
    request = v1beta1.PreStartContainerRequest(devices_ids=[device.id])

    def pre_start() -> object:
        return answer(lambda: keeper.plugin.PreStartContainer(request, Context()))  # type: ignore[arg-type]

    assert isinstance(pre_start(), v1beta1.PreStartContainerResponse)
    pull(devices, "ttyUSB0")
    plug(devices, "ttyUSB0", "OTHER")
    refused = pre_start()
    assert isinstance(refused, AbortedError)
    assert "has just stopped being" in refused.details
