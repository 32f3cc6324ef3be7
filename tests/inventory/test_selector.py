from __future__ import annotations

import msgspec
import pytest

from tests.support import usb_port
from usbplugin.inventory import ResourceRule, Selector, first_match

PORT = usb_port()


@pytest.mark.parametrize(
    "selector",
    [
        Selector(),
        Selector(vendor="0403"),
        Selector(vendor="0403", product="6*"),
        Selector(serial="A50*"),
        Selector(manufacturer="FTDI"),
        Selector(product_name="*UART"),
        Selector(driver="ftdi_sio"),
        Selector(interface=0),
        Selector(location="0000:00:14.0-*"),
        Selector(node="/dev/ttyUSB[0-3]"),
    ],
)
def test_matches(selector: Selector) -> None:
    assert selector.matches(PORT)


@pytest.mark.parametrize(
    "selector",
    [
        Selector(vendor="10c4"),
        Selector(vendor="0403", product="6015"),
        Selector(serial="a50*"),
        Selector(interface=2),
        Selector(node="/dev/ttyACM*"),
        Selector(location="0000:00:14.0-1.*"),
    ],
)
def test_does_not_match(selector: Selector) -> None:
    assert not selector.matches(PORT)


@pytest.mark.parametrize("key", Selector.__struct_encode_fields__)
def test_every_key_decides(key: str) -> None:
    value = 255 if key == "interface" else "no such value"
    assert not msgspec.convert({key: value}, Selector).matches(PORT)


def test_hexadecimal_ids_match_in_either_case() -> None:
    port = usb_port(vendor_id="10c4", product_id="ea60")
    assert Selector(vendor="10C4", product="EA60").matches(port)


def test_a_value_with_glob_characters_matches_itself() -> None:
    assert Selector(serial="[x]").matches(usb_port(serial="[x]"))


def test_a_port_without_descriptors_matches_no_selector_that_asks_for_one() -> None:
    bare = msgspec.structs.replace(PORT, usb=None)
    assert Selector(node="/dev/ttyUSB*").matches(bare)
    assert not Selector(vendor="0403").matches(bare)
    assert not Selector(interface=0).matches(bare)


def test_selectors_of_a_resource_are_alternatives_and_the_first_resource_wins() -> None:
    first = ResourceRule("a/first", (Selector(vendor="dead"), Selector(vendor="0403")))
    second = ResourceRule("a/second")
    assert first_match([first, second], PORT) is first
    assert first_match([first, second], usb_port(vendor_id="10c4")) is second
    assert first_match([first], usb_port(vendor_id="10c4")) is None


def test_a_selector_without_a_key_is_empty() -> None:
    assert Selector().is_empty is True
    assert Selector(node="/dev/ttyUSB*").is_empty is False
