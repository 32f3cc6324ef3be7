from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import usb_port
from usbplugin.discovery import IdentityMode, Port, Unit
from usbplugin.discovery.identity import (
    ID_FORM,
    ID_LENGTH,
    candidate_ids,
    descriptors,
    fingerprint,
    is_by_serial,
    is_device_id,
    is_usable_serial,
)
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


@pytest.mark.parametrize(
    ("port", "device_id"),
    [
        (usb_port(), "usb-0403:6001-A5069RR4-if00"),
        (usb_port(serial="A/B"), "usb-0403:6001-A_B-26f5ad95-if00"),
        (usb_port(serial="X" * 100), "usb-0403:6001-XXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX-8bd8469d-if00"),
        (usb_port(serial="at-1"), "usb-0403:6001-at_1-97c57f09-if00"),
        (
            usb_port(serial="", location="0000:00:14.0-1.2"),
            "usb-0403:6001-at-0000:00:14.0-1.2-if00",
        ),
        (usb_port(usb=None, origin="/dev/virtual"), "dir-ttyUSB0-795c60a1"),
    ],
)
def test_kubelets_have_checkpointed_these_ids(port: Port, device_id: str) -> None:
    """Another release must give the same, or a pod loses its device with the upgrade."""
    assert candidate_ids(port, AUTO)[0] == device_id


def test_a_serial_that_just_fits_is_not_cut() -> None:
    room = ID_LENGTH - len("usb-0403:6001-") - len("-if00")
    fits, too_long = "X" * room, "X" * (room + 1)
    assert first(serial=fits) == f"usb-0403:6001-{fits}-if00"
    assert too_long not in first(serial=too_long)
    assert len(first(serial=too_long)) == ID_LENGTH


@pytest.mark.parametrize(
    ("text", "is_ours"),
    [
        ("usb-0403:6001-A-if00", True),
        ("dir-" + "A" * (ID_LENGTH - 4), True),
        ("dir-" + "A" * (ID_LENGTH - 3), False),
        ("dir-A", True),
        ("usb-0403:600-A-if00", False),
        ("gpu-A", False),
        ("", False),
        ("0403", False),
        ("usb/../x", False),
        ("usb-\n", False),
    ],
)
def test_an_id_that_could_be_ours(text: str, is_ours: bool) -> None:  # noqa: FBT001 -- parametrized
    assert is_device_id(text) is is_ours


@pytest.mark.parametrize("length", range(1, 17))
def test_counting_digits_are_no_serial_from_five_on(length: int) -> None:
    assert is_usable_serial("123456789ABCDEF"[:length]) is (1 < length < 5)
    assert is_usable_serial("0123456789abcdef"[:length]) is (2 < length < 5)


ONE, OTHER = usb_port(interface=0), usb_port(interface=2)


def test_ports_of_one_device_claim_to_be_one_where_the_device_is_handed_out_whole() -> None:
    assert descriptors(ONE) != descriptors(OTHER)
    assert descriptors(ONE, Unit.USB_DEVICE) == descriptors(OTHER, Unit.USB_DEVICE)
    second = usb_port(usb=ONE.usb and msgspec.structs.replace(ONE.usb, port_number=1))
    assert descriptors(ONE) != descriptors(second)


def test_a_device_that_moved_says_the_same_and_is_elsewhere() -> None:
    moved = usb_port("ttyUSB7", location="0000:00:14.0-9")
    for unit in Unit:
        assert descriptors(ONE, unit) == descriptors(moved, unit)
        assert fingerprint(ONE, unit) != fingerprint(moved, unit)
        assert fingerprint(ONE, unit) == fingerprint(usb_port("ttyUSB7"), unit)


def test_a_bare_entry_is_known_by_its_place_whatever_it_leads_to() -> None:
    entry = usb_port(usb=None, origin="/a")
    relinked = usb_port(usb=None, origin="/a", node="/dev/pts/9", driver="")
    elsewhere = usb_port(usb=None, origin="/b")
    named = usb_port("ttyUSB1", usb=None, origin="/a")
    assert descriptors(entry) == descriptors(relinked)
    assert fingerprint(entry) == fingerprint(relinked)
    assert len({descriptors(entry), descriptors(elsewhere), descriptors(named)}) == 3
    assert len({candidate_ids(p, AUTO)[0] for p in (entry, elsewhere, named)}) == 3


def test_a_modem_is_named_without_its_interfaces_and_by_its_place_next() -> None:
    by_serial, by_place, last = candidate_ids(OTHER, AUTO, Unit.USB_DEVICE)
    assert by_serial == "usb-0403:6001-A5069RR4"
    assert by_place == "usb-0403:6001-at-0000:00:14.0-1"
    assert last.startswith("usb-0403:6001-at-0000:00:14.0-1-")


@pytest.mark.parametrize("serial", ["GPS\x07", "X" * 126, "at-1", "once-1"])
def test_no_serial_spells_the_id_that_another_serial_has_got_by_its_digest(serial: str) -> None:
    spelled = first(serial=serial).removeprefix("usb-0403:6001-").removesuffix("-if00")
    assert first(serial=spelled) != first(serial=serial)


def test_what_has_neither_serial_nor_place_is_named_for_this_plugging_in_alone() -> None:
    port, described = usb_port(serial=""), usb_port(serial="").usb
    assert described is not None

    def plugged_in(arrival: str, interface: int = 0) -> tuple[str, ...]:
        usb = msgspec.structs.replace(described, location="", arrival=arrival, interface=interface)
        return candidate_ids(msgspec.structs.replace(port, usb=usb), AUTO)

    assert plugged_in("aa11")[0] == "usb-0403:6001-once-aa11-if00"
    assert plugged_in("aa11", 2)[0] == "usb-0403:6001-once-aa11-if02"
    assert set(plugged_in("aa11")).isdisjoint(plugged_in("bb22"))


def test_a_serial_without_a_place_is_worth_as_much_as_with_one() -> None:
    port = usb_port(serial="A5069RR4")
    assert port.usb is not None
    usb = msgspec.structs.replace(port.usb, location="", arrival="aa11")
    virtual = msgspec.structs.replace(port, usb=usb)
    assert candidate_ids(virtual, AUTO)[0] == candidate_ids(port, AUTO)[0]


@pytest.mark.parametrize(
    ("port", "is_serial"),
    [
        (usb_port(serial="A5069RR4"), True),
        (usb_port(serial="at-1"), True),
        (usb_port(serial=""), False),
        (msgspec.structs.replace(usb_port(), usb=None, origin="/dev"), False),
    ],
)
def test_an_id_tells_whether_it_is_based_on_a_serial(port: Port, is_serial: bool) -> None:  # noqa: FBT001 -- parametrized
    assert is_by_serial(candidate_ids(port, AUTO)[0]) is is_serial
