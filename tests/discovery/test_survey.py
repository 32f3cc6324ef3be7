"""What is plugged in and no port all the same is named, with the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usbplugin.discovery.port import DEFAULT_NODES
from usbplugin.discovery.survey import survey

if TYPE_CHECKING:
    from pathlib import Path

HUB = "sys/devices/pci0000:00/0000:00:14.0/usb1"


def usb(root: Path, name: str, attributes: dict[str, str]) -> Path:
    """A USB device or interface with its link in /sys/bus."""
    device = root / HUB / name.partition(":")[0]
    place = device / name if ":" in name else device
    place.mkdir(parents=True, exist_ok=True)
    for attribute, value in attributes.items():
        (place / attribute).write_bytes(value.encode() + b"\n")
    link = root / "sys/bus/usb/devices" / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(f"../../../../{place.relative_to(root)}")
    return place


def tty(root: Path, name: str, place: Path) -> None:
    link = root / "sys/class/tty" / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(f"../../../{place.relative_to(root)}/tty/{name}")


def test_nothing_is_nothing(tmp_path: Path) -> None:
    assert survey(DEFAULT_NODES, tmp_path).lines() == []


def test_a_device_that_is_kept_off_is_named(tmp_path: Path) -> None:
    about = {"idVendor": "10c4", "idProduct": "ea60", "manufacturer": "Maker\x1b[2J"}
    usb(tmp_path, "1-2", about | {"authorized": "0"})
    usb(tmp_path, "1-3", about | {"authorized": "1"})
    usb(tmp_path, "1-3:1.0", {"authorized": "0", "bInterfaceClass": "02"})
    first, second = survey(DEFAULT_NODES, tmp_path).lines()
    assert first.startswith("1-2 (10c4:ea60 Maker\\x1b[2J) is plugged in, but kept off: its auth")
    assert second.startswith("interface 1-3:1.0 is plugged in, but kept off")


def test_ttys_that_nodes_leaves_out_are_named_those_elsewhere_are_not(tmp_path: Path) -> None:
    place = usb(tmp_path, "1-2:1.0", {})
    for number in range(10):
        tty(tmp_path, f"ttyCH9344USB{number}", place)
    tty(tmp_path, "ttyUSB0", place)
    tty(tmp_path, "ttyS0", tmp_path / "sys/devices/pnp0/00:05")
    (line,) = survey(DEFAULT_NODES, tmp_path).lines()
    assert line.startswith("10 USB ttys match none of nodes in the configuration: /dev/ttyCH9344U")
    assert line.endswith("/dev/ttyCH9344USB7 and 2 more")
    assert survey([*DEFAULT_NODES, "/dev/ttyCH9344USB*"], tmp_path).lines() == []


def test_an_adapter_without_a_driver(tmp_path: Path) -> None:
    usb(tmp_path, "1-2", {"idVendor": "1a86", "authorized": "1"})
    place = usb(tmp_path, "1-2:1.0", {"bInterfaceClass": "ff"})
    (line,) = survey(DEFAULT_NODES, tmp_path).lines()
    assert line == (
        "USB interface 1-2:1.0 looks like a serial port and has no driver: modprobe ch341"
    )
    (place / "driver").mkdir()
    assert survey(DEFAULT_NODES, tmp_path).lines() == []
