from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import usb_port
from usbplugin.discovery import DeviceNumber, Port, UsbInterface
from usbplugin.discovery.port import printable
from usbplugin.dra.contracts import PublishedDevice, Terms
from usbplugin.dra.device import attributes_of, entry_of, fitted, hub_of
from usbplugin.dra.names import device_name
from usbplugin.inventory import Device, Health

ALWAYS = {
    *("resource", "id", "vendor", "product", "serial", "manufacturer", "productName"),
    *("driver", "location", "interface", "port", "ports", "unique"),
}


def published(*ports: Port, health: Health = Health.READY, **changes: object) -> PublishedDevice:
    device = Device("usb-0403:6001-A5069RR4-if00", "usbplugin/gps", health, "", ports, since=0)
    one = PublishedDevice(device_name(device.id), device, since=1_000_000_000.25)
    return msgspec.structs.replace(one, **changes)


def values(one: PublishedDevice) -> dict[str, object]:
    return {name: next(iter(value.values())) for name, value in attributes_of(one).items()}


def test_what_a_pod_can_ask_for() -> None:
    port = usb_port(location="0000:00:14.0-1.2", interface=2, numa_node=1)
    assert values(published(port)) == {
        "resource": "usbplugin/gps",
        "id": "usb-0403:6001-A5069RR4-if00",
        "vendor": "0403",
        "product": "6001",
        "serial": "A5069RR4",
        "manufacturer": "FTDI",
        "productName": "FT232R USB UART",
        "driver": "ftdi_sio",
        "location": "0000:00:14.0-1.2",
        "interface": 2,
        "port": 0,
        "ports": 1,
        "unique": True,
        "usbDevice": "0000:00:14.0-1.2",
        "hub": "0000:00:14.0-1",
        "resource.kubernetes.io/numaNode": 1,
    }


@pytest.mark.parametrize(
    "one",
    [
        published(),
        published(terms=Terms.GHOST, health=Health.UNPLUGGED),
        published(Port("ttyUSB0", "/dev/pts/4", DeviceNumber(136, 4), origin="/dev/virtual")),
        published(usb_port(serial="", location="")),
    ],
    ids=["never seen", "ghost", "virtual", "bare"],
)
def test_cel_finds_each_attribute_of_each_device(one: PublishedDevice) -> None:
    assert attributes_of(one).keys() == ALWAYS
    assert values(one)["unique"] is False


def test_a_device_whose_place_is_of_one_plugging_in_is_still_told_from_others() -> None:
    usb = UsbInterface("0403", "6001", arrival="usb1-12")
    both = [
        values(published(Port(name, f"/dev/{name}", DeviceNumber(188, 0), usb)))
        for name in ("ttyUSB0", "ttyUSB1")
    ]
    assert both[0]["usbDevice"] == both[1]["usbDevice"] == "usb1-12"
    assert "hub" not in both[0]


def test_twins_are_not_unique() -> None:
    assert values(published(usb_port(), is_unique=False))["unique"] is False


def test_a_modem_says_how_many_ports_it_has() -> None:
    ports = (usb_port("ttyUSB0"), usb_port("ttyUSB1", interface=1))
    assert values(published(*ports))["ports"] == 2


@pytest.mark.parametrize(
    ("location", "hub"),
    [
        ("0000:00:14.0-1.2.3", "0000:00:14.0-1.2"),
        ("0000:00:14.0-1", "0000:00:14.0"),
        ("fe980000.usb-1.4", "fe980000.usb-1"),
        ("soc-usb-2", "soc-usb"),
        ("", ""),
        ("-1", ""),
        ("controller-", ""),
        ("controller", ""),
    ],
)
def test_the_hub_of_a_place(location: str, hub: str) -> None:
    assert hub_of(location) == hub


def test_shares_are_a_capacity_of_which_a_claim_takes_one_by_default() -> None:
    entry = msgspec.to_builtins(entry_of(published(usb_port(), shares=3)))
    assert entry["allowMultipleAllocations"] is True
    assert entry["capacity"] == {
        "share": {
            "value": "3",
            "requestPolicy": {"default": "1", "validRange": {"min": "1", "max": "3", "step": "1"}},
        }
    }


def test_an_exclusive_device_says_nothing_of_shares() -> None:
    assert msgspec.to_builtins(entry_of(published(usb_port()))).keys() == {"name", "attributes"}


def test_long_texts_stay_apart() -> None:
    one, other = (fitted("x" * 100 + end) for end in "ab")
    assert one != other
    assert one.startswith("x" * 55 + "-")
    assert len(one) == 64


def test_a_text_is_not_cut_in_the_middle_of_a_character() -> None:
    assert re.fullmatch("(🔌){13}-[0-9a-f]{8}", fitted("🔌" * 20))


@given(st.text(), st.text(), st.binary(), st.text(), st.text())
def test_no_descriptor_makes_an_entry_that_the_api_server_refuses(
    serial: str, manufacturer: str, product: bytes, location: str, device_id: str
) -> None:
    usb = UsbInterface("0403", "6001", serial, manufacturer, printable(product), location=location)
    port = msgspec.structs.replace(usb_port(), usb=usb)
    device = Device(device_id, "usbplugin/gps", Health.READY, "", (port,), 0)
    entry = entry_of(PublishedDevice(device_name(device_id), device, since=0))

    sent = msgspec.json.decode(msgspec.json.encode(entry))
    assert re.fullmatch("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", sent["name"])
    assert len(sent["attributes"]) + len(sent.get("capacity", ())) <= 32
    for name, value in sent["attributes"].items():
        *domain, word = name.split("/")
        assert re.fullmatch("[A-Za-z_][A-Za-z0-9_]{0,31}", word)
        assert domain in ([], ["resource.kubernetes.io"])
        assert len(value) == 1
        assert len(value.get("string", "").encode()) <= 64
