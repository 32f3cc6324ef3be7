from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from usbplugin.discovery import DeviceNumber
from usbplugin.discovery.sysfs import read_tty

if TYPE_CHECKING:
    from pathlib import Path


class FakeSysfs:
    """A tree of the shape that the kernel's USB stack builds."""

    def __init__(self, root: Path) -> None:
        self.devices = root / "devices"
        self.drivers = root / "bus/drivers"

    def device(
        self,
        controller: str = "pci0000:00/0000:00:14.0",
        bus: int = 1,
        chain: str = "1.2",
        bus_speed: str = "480",
        **attributes: bytes,
    ) -> Path:
        root_hub = self.devices / controller / f"usb{bus}"
        self._write(root_hub, speed=bus_speed.encode())
        steps = chain.split(".")
        path = root_hub
        for length in range(1, len(steps) + 1):
            path /= f"{bus}-{'.'.join(steps[:length])}"
        self._write(
            path, **{"idVendor": b"0403", "idProduct": b"6001", "speed": b"12", **attributes}
        )
        return path

    def usb_serial(self, device: Path, name: str, interface: int = 0, port: int = 0) -> Path:
        """The layout of usb-serial drivers: the tty hangs below a port device."""
        where = self._interface(device, interface)
        parent = where / name
        self._write(parent, port_number=str(port).encode())
        return self._tty(parent, name, "188:" + name.removeprefix("ttyUSB"), "ftdi_sio")

    def cdc_acm(self, device: Path, name: str, interface: int = 0) -> Path:
        """The layout of cdc-acm: the tty hangs below the interface itself."""
        parent = self._interface(device, interface)
        return self._tty(parent, name, "166:" + name.removeprefix("ttyACM"), "cdc_acm")

    def _interface(self, device: Path, number: int) -> Path:
        where = device / f"{device.name}:1.{number}"
        self._write(where, bInterfaceNumber=f"{number:02x}".encode())
        return where

    def _tty(self, parent: Path, name: str, number: str, driver: str) -> Path:
        tty = parent / "tty" / name
        self._write(tty, dev=number.encode())
        (tty / "device").symlink_to(parent)
        (self.drivers / driver).mkdir(parents=True, exist_ok=True)
        (parent / "driver").symlink_to(self.drivers / driver)
        return tty

    def _write(self, directory: Path, **attributes: bytes) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        for name, value in attributes.items():
            (directory / name).write_bytes(value + b"\n")


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeSysfs:
    return FakeSysfs(tmp_path)


def test_a_usb_serial_port(sysfs: FakeSysfs) -> None:
    device = sysfs.device(serial=b"A5069RR4", manufacturer=b"FTDI", product=b"FT232R USB UART")
    tty = read_tty(sysfs.usb_serial(device, "ttyUSB3", port=1))
    assert tty is not None
    assert tty.number == DeviceNumber(188, 3)
    assert tty.driver == "ftdi_sio"
    usb = tty.usb
    assert (usb.vendor_id, usb.product_id, usb.serial) == ("0403", "6001", "A5069RR4")
    assert (usb.manufacturer, usb.product) == ("FTDI", "FT232R USB UART")
    assert (usb.interface, usb.port_number, usb.speed) == (0, 1, "12")
    assert usb.location == "0000:00:14.0-1.2"


def test_a_cdc_acm_port_of_a_composite_device(sysfs: FakeSysfs) -> None:
    tty = read_tty(sysfs.cdc_acm(sysfs.device(), "ttyACM1", interface=2))
    assert tty is not None
    assert (tty.driver, tty.usb.interface, tty.number) == ("cdc_acm", 2, DeviceNumber(166, 1))
    assert tty.usb.serial == ""


def test_interface_numbers_are_hexadecimal(sysfs: FakeSysfs) -> None:
    tty = read_tty(sysfs.cdc_acm(sysfs.device(), "ttyACM0", interface=26))
    assert tty is not None
    assert tty.usb.interface == 26


def test_hostile_descriptors_are_rendered_printable(sysfs: FakeSysfs) -> None:
    device = sysfs.device(serial=b" a\nb\x00\xff\xe2\x80\xae\\ ")
    tty = read_tty(sysfs.cdc_acm(device, "ttyACM0"))
    assert tty is not None
    assert tty.usb.serial == r" a\x0ab\x00\xff\u202e\\ "


def test_location_does_not_depend_on_the_bus_number(sysfs: FakeSysfs) -> None:
    one = read_tty(sysfs.cdc_acm(sysfs.device(bus=1), "ttyACM0"))
    other = read_tty(sysfs.cdc_acm(sysfs.device(bus=5), "ttyACM1"))
    assert one is not None
    assert other is not None
    assert one.usb.location == other.usb.location


def test_the_two_root_hubs_of_a_controller_are_told_apart(sysfs: FakeSysfs) -> None:
    tty = read_tty(sysfs.cdc_acm(sysfs.device(bus=2, bus_speed="10000"), "ttyACM0"))
    assert tty is not None
    assert tty.usb.location == "0000:00:14.0-ss1.2"


def test_numbered_platform_controllers_are_named_by_their_parent(sysfs: FakeSysfs) -> None:
    device = sysfs.device(controller="platform/axi/1f00200000.usb/xhci-hcd.0", chain="2")
    tty = read_tty(sysfs.cdc_acm(device, "ttyACM0"))
    assert tty is not None
    assert tty.usb.location == "1f00200000.usb-2"


@pytest.mark.parametrize(("written", "node"), [(b"1", 1), (b"-1", None)])
def test_numa_node_is_the_controllers(sysfs: FakeSysfs, written: bytes, node: int | None) -> None:
    device = sysfs.device()
    (sysfs.devices / "pci0000:00/0000:00:14.0/numa_node").write_bytes(written + b"\n")
    tty = read_tty(sysfs.cdc_acm(device, "ttyACM0"))
    assert tty is not None
    assert tty.numa_node == node


def test_a_tty_that_is_not_on_usb(sysfs: FakeSysfs) -> None:
    uart = sysfs.devices / "platform/serial8250/tty/ttyS0"
    uart.mkdir(parents=True)
    assert read_tty(uart) is None


def test_a_tty_that_is_gone(sysfs: FakeSysfs) -> None:
    assert read_tty(sysfs.devices / "nowhere/ttyUSB0") is None


def test_a_tty_that_vanishes_while_it_is_read(sysfs: FakeSysfs) -> None:
    device = sysfs.device()
    tty = sysfs.cdc_acm(device, "ttyACM0")
    (device / "idProduct").unlink()
    assert read_tty(tty) is None


@pytest.mark.parametrize(
    ("controller", "place"),
    [
        ("pci0000:00/0000:00:14.0", "0000:00:14.0-1.2"),
        ("platform/soc/3f980000.usb", "3f980000.usb-1.2"),
        ("platform/soc/2184000.usb/ci_hdrc.0", "2184000.usb-1.2"),
        ("platform/ocp/4a064000.omap/4a030000.usb/xhci-hcd.1.auto", "4a030000.usb-1.2"),
        ("platform/1c19000.usb/musb-hdrc.2.auto", "1c19000.usb-1.2"),
        ("platform/ff500000.glue/whatever.3/comes-next.1.auto", "ff500000.glue-1.2"),
        ("pci0000:00/0000:00:15.0/dwc3.2.auto/xhci-hcd.3.auto", "0000:00:15.0-1.2"),
        ("platform/dummy_hcd.3", "dummy_hcd.3-1.2"),
    ],
)
def test_a_place_is_named_by_what_hardware_decides_on(
    sysfs: FakeSysfs, controller: str, place: str
) -> None:
    tty = read_tty(sysfs.usb_serial(sysfs.device(controller), "ttyUSB0"))
    assert tty is not None
    assert (tty.usb.location, tty.usb.arrival) == (place, "")


@pytest.mark.parametrize("controller", ["platform/vhci_hcd.0", "platform/ehci-board.1"])
def test_what_is_numbered_in_order_of_arrival_is_no_place(
    sysfs: FakeSysfs, controller: str
) -> None:
    devices = [sysfs.device(controller, chain=chain) for chain in ("1", "2")]
    ports = [sysfs.usb_serial(device, f"ttyUSB{n}") for n, device in enumerate(devices)]
    ports.append(sysfs.usb_serial(devices[0], "ttyUSB2", interface=1))
    first, second, third = (tty.usb for port in ports if (tty := read_tty(port)))
    assert {usb.location for usb in (first, second, third)} == {""}
    assert first.arrival == third.arrival != second.arrival, "as many as there are devices"


def test_ttys_that_the_driver_does_not_number_are_told_apart_by_their_order(
    sysfs: FakeSysfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = sysfs.device()
    # Registered in this order, under the names that happened to be free.
    names = ["ttyACM7", "ttyACM2", "ttyACM10", "ttyACM3"]
    ttys = [sysfs.cdc_acm(device, names[0])]
    for name in names[1:]:
        ttys.append(ttys[0].parent / name)
        sysfs._write(ttys[-1], dev=b"166:" + name.removeprefix("ttyACM").encode())
        (ttys[-1] / "device").symlink_to(ttys[0].parents[1])
    # A test's file system may give inodes in any order, which the kernel's does not.
    order = {str(tty): inode for inode, tty in enumerate(ttys, 1)}
    monkeypatch.setattr("usbplugin.discovery.sysfs.inode_of", order.get)
    found = [tty.usb.port_number for path in ttys if (tty := read_tty(path))]
    assert found == [0, 1, 2, 3]
