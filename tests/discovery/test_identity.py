from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import usb_port
from usbplugin.discovery import IdentityMode
from usbplugin.discovery.identity import ID_FORM, ID_LENGTH, candidate_ids, is_usable_serial
from usbplugin.discovery.port import printable

AUTO = IdentityMode.AUTO


def first(mode: IdentityMode = AUTO, **port: object) -> str:
    return candidate_ids(usb_port(**port), mode)[0]  # type: ignore[arg-type]


def test_a_usable_serial_names_the_device() -> None:
    assert first(serial="A5069RR4") == "usb-0403:6001-A5069RR4-if00"


def test_the_id_does_not_depend_on_node_or_location() -> None:
    assert first(name="ttyUSB0", location="0000:00:14.0-1") == first(
        name="ttyUSB7", location="0000:00:14.0-3.4"
    )


def test_interface_and_port_number_tell_ports_of_one_device_apart() -> None:
    assert first(interface=2).endswith("-if02")
    port = usb_port()
    assert port.usb is not None
    assert candidate_ids(usb_port(), AUTO)[0].endswith("-if00")


@pytest.mark.parametrize(
    "serial",
    ["", "  ", "0", "0000", "0001", "1", "123456", "1234567890", "0123456789ABCDEF", "ffffffff"],
)
def test_serials_shared_by_every_unit_do_not_count(serial: str) -> None:
    assert not is_usable_serial(serial)
    assert first(serial=serial) == "usb-0403:6001-at-0000:00:14.0-1-if00"


@pytest.mark.parametrize("serial", ["A5069RR4", "12", "1234", "55736303831351F0C1B0", "AB0CDE"])
def test_other_serials_are_usable(serial: str) -> None:
    assert is_usable_serial(serial)


def test_the_operator_may_insist_on_either() -> None:
    assert first(IdentityMode.SERIAL, serial="0001") == "usb-0403:6001-0001-if00"
    assert first(IdentityMode.SERIAL, serial="") == "usb-0403:6001-at-0000:00:14.0-1-if00"
    assert first(IdentityMode.LOCATION) == "usb-0403:6001-at-0000:00:14.0-1-if00"


def test_a_serial_cannot_pass_for_a_location() -> None:
    forged = first(serial="at-0000:00:14.0-1")
    assert forged != first(serial="")
    assert not forged.startswith("usb-0403:6001-at-")


def test_replaced_characters_leave_a_digest() -> None:
    one, other = first(serial="A/B"), first(serial="A B")
    assert one != other
    assert one.startswith("usb-0403:6001-A_B-")


def test_long_serials_that_differ_at_the_end_stay_apart() -> None:
    assert first(serial="X" * 125 + "1") != first(serial="X" * 125 + "2")


raw_descriptors = st.binary(max_size=126)


@given(serial=raw_descriptors, location=st.text(max_size=80), mode=st.sampled_from(IdentityMode))
def test_ids_have_the_allowed_form_whatever_the_descriptors_hold(
    serial: bytes, location: str, mode: IdentityMode
) -> None:
    for candidate in candidate_ids(usb_port(serial=printable(serial), location=location), mode):
        assert ID_FORM.fullmatch(candidate)
        assert len(candidate) <= ID_LENGTH


@given(one=raw_descriptors, other=raw_descriptors)
def test_different_serials_give_different_ids(one: bytes, other: bytes) -> None:
    ids = {
        candidate_ids(usb_port(serial=printable(raw)), IdentityMode.SERIAL)[0]
        for raw in (one, other)
        if printable(raw).strip()
    }
    usable = {printable(raw) for raw in (one, other) if printable(raw).strip()}
    assert len(ids) == len(usable)


@given(one=raw_descriptors, other=raw_descriptors)
def test_printable_is_printable_and_keeps_different_bytes_different(
    one: bytes, other: bytes
) -> None:
    assert printable(one).isprintable()
    assert (printable(one) == printable(other)) == (one == other)
