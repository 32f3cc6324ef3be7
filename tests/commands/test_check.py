"""``usbplugin check`` answers: does my selector match?"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec
import pytest

from usbplugin.cli import main
from usbplugin.commands.here import contradictions
from usbplugin.config import parse
from usbplugin.virtual import Descriptors, VirtualBus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ZIGBEE = Descriptors(vendor_id="10c4", product_id="ea60", serial="ZB1")
SERIAL = Descriptors(vendor_id="0403", product_id="6001", serial="A1B2")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("USBPLUGIN_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[VirtualBus]:
    with VirtualBus(tmp_path / "dev") as bus:
        yield bus


def lines_of_check(
    text: str, bus: VirtualBus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    """The lines of resources."""
    config = tmp_path / "config.yaml"
    config.write_text(text)
    assert main(["check", str(config), "--no-udev", "--device-dir", str(bus.directory)]) == 0
    _, _, *lines = capsys.readouterr().out.splitlines()
    return [" ".join(line.split()) for line in lines[: lines.index("")]]


def test_each_resource_has_a_line_with_what_it_selects_here(
    bus: VirtualBus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bus.plug("ttyUSB0", ZIGBEE)
    modem = Descriptors(vendor_id="1e0e", product_id="9001", location="virtual-1")
    for number in (0, 1):
        bus.plug(f"ttyACM{number}", msgspec.structs.replace(modem, interface=number))
    text = """
resources:
- {name: a/zigbee, selectors: [{vendor: "10c4"}]}
- {name: a/modem, selectors: [{vendor: 1e0e}], unit: usb-device}
- {name: a/gps, selectors: [{serial: none}]}
"""
    assert lines_of_check(text, bus, tmp_path, capsys) == [
        "a/zigbee 1 device: usb-10c4:ea60-ZB1-if00",
        "a/modem 1 device: usb-1e0e:9001-at-virtual-1",
        "a/gps matches nothing here",
    ]


def test_what_an_earlier_resource_takes_is_told(
    bus: VirtualBus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zigbee = bus.plug("ttyUSB0", ZIGBEE).node
    bus.plug("ttyUSB1", SERIAL)
    text = """
resources:
- {name: a/silabs, selectors: [{vendor: "10c4"}]}
- {name: a/zigbee, selectors: [{serial: ZB1}]}
- {name: a/ftdi, selectors: [{serial: "*"}]}
- {name: a/rest}
- {name: a/never}
"""
    assert lines_of_check(text, bus, tmp_path, capsys) == [
        "a/silabs 1 device: usb-10c4:ea60-ZB1-if00",
        f"a/zigbee matches only what a/silabs above it takes: {zigbee}",
        "a/ftdi 1 device: usb-0403:6001-A1B2-if00;"
        f" also matches what a/silabs above it takes: {zigbee}",
        "a/rest the resources above it take all ports here",
        "a/never the resources above it take all ports here",
    ]


@pytest.fixture
def ttys(tmp_path: Path) -> Path:
    """A class of ttys: ttyR0 to ttyR8 on the mainboard, and ttyUSB0."""
    device = tmp_path / "sys/devices/pci0000:00/0000:00:14.0/usb1/1-1"
    interface = device / "1-1:1.0"
    (interface / "ttyUSB0/tty/ttyUSB0").mkdir(parents=True)
    (device / "idVendor").write_text("0403\n")
    (device / "idProduct").write_text("6001\n")
    (interface / "bInterfaceNumber").write_text("00\n")
    tty = interface / "ttyUSB0/tty/ttyUSB0"
    (tty / "dev").write_text("188:0\n")
    (tty / "device").symlink_to("../..")
    ttys = tmp_path / "sys/class/tty"
    ttys.mkdir(parents=True)
    (ttys / "ttyUSB0").symlink_to(os.path.relpath(tty, ttys))
    for number in range(9):
        serial = tmp_path / f"sys/devices/platform/serial8250/tty/ttyR{number}"
        serial.mkdir(parents=True)
        (ttys / f"ttyR{number}").symlink_to(os.path.relpath(serial, ttys))
    return ttys


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("nodes: [/dev/ttyUSB*, /dev/ttyR0]", "nodes[1]: /dev/ttyR0 is not on USB here"),
        ("nodes: [/dev/ttyR*]", "nodes[0]: /dev/ttyR* matches /dev/ttyR0, /dev/ttyR1, "),
        (
            "resources: [{name: a/b, selectors: [{node: '/dev/ttyR[12]'}]}]",
            "resources[0].selectors[0].node: /dev/ttyR[12] matches /dev/ttyR1, /dev/ttyR2 here",
        ),
    ],
)
def test_nodes_that_are_here_and_not_on_usb_are_told(
    text: str, warning: str, tmp_path: Path, ttys: Path
) -> None:
    (found,) = contradictions(parse(text.encode()), tmp_path / "dev", ttys)
    assert found.startswith(warning)
    assert "on USB" in found


@pytest.mark.parametrize(
    "text", ["{}", "nodes: [/dev/tty*]", "nodes: [/dev/ttyXR*]", "nodes: [/dev/*]"]
)
def test_nodes_of_which_some_are_on_usb_or_none_is_here_are_not(
    text: str, tmp_path: Path, ttys: Path
) -> None:
    assert list(contradictions(parse(text.encode()), tmp_path / "dev", ttys)) == []


@pytest.mark.parametrize("glob", ["/dev/tty*", "/dev/ttyUSB*", "/dev/ttyR0"])
def test_a_glob_of_ports_that_may_be_plugged_in_later_is_not_told(
    glob: str, tmp_path: Path, ttys: Path
) -> None:
    (ttys / "ttyUSB0").unlink()
    found = list(contradictions(parse(f"nodes: ['{glob}']".encode()), tmp_path / "dev", ttys))
    assert len(found) == (glob == "/dev/ttyR0")


def test_what_a_name_tells_is_not_told_twice(tmp_path: Path, ttys: Path) -> None:
    (ttys / "ttyR0").rename(ttys / "ttyS0")
    assert list(contradictions(parse(b"nodes: ['/dev/ttyS*']"), tmp_path / "dev", ttys)) == []


def test_links_that_are_here_are_told(tmp_path: Path, ttys: Path) -> None:
    dev = tmp_path / "dev"
    dev.mkdir()
    (dev / "ttyZigbee").symlink_to("ttyUSB0")
    config = parse(
        b"nodes: [/dev/ttyZigbee]\nresources: [{name: a/b, selectors: [{node: /dev/ttyZigbee}]}]"
    )
    first, second = contradictions(config, dev, ttys)
    assert first.startswith(f"nodes[0]: /dev/ttyZigbee is a link to {dev}/ttyUSB0 here")
    assert second.startswith("resources[0].selectors[0].node: /dev/ttyZigbee is a link to ")


def test_a_machine_without_sysfs_contradicts_nothing(tmp_path: Path) -> None:
    config = parse(b"nodes: [/dev/ttyR*]")
    assert list(contradictions(config, tmp_path / "dev", tmp_path / "sys")) == []
