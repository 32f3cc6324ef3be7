"""Whatever a device says of itself: an ID, a path, a variable, a line of the log, and no harm."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.discovery.test_sysfs import FakeSysfs
from tests.fuzz.support import (
    SERIAL,
    Context,
    Keeper,
    Trusting,
    answer,
    check_device,
    directory,
    log_lines,
    within_loop,
)
from tests.support import all_ports
from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.custody import Offer
from usbplugin.discovery import DeviceNumber, DirectorySource, IdentityMode, Port, PortPresent, Unit
from usbplugin.discovery.identity import ID_FORM, ID_LENGTH, candidate_ids
from usbplugin.discovery.port import printable
from usbplugin.discovery.sysfs import read_tty
from usbplugin.inventory import Health
from usbplugin.status.nodefeatures import features

if TYPE_CHECKING:
    from tests.fuzz.support import AbortedError

NULL = DeviceNumber.of(os.stat("/dev/null").st_rdev)
HANDOVER = Offer(SERIAL, by_id_links=True)

# What the kernel makes of a string descriptor: UTF-8 of any UTF-16, perhaps with half a pair.
descriptors = st.binary(max_size=126) | st.text(max_size=126).map(
    lambda text: text.encode("utf-8", "surrogatepass")
)
names = st.from_regex(r"\Atty(USB|ACM)[0-9A-Za-z_.-]{0,20}\Z")


@given(one=st.binary(max_size=20), other=st.binary(max_size=20))
@example(one=b"\\x00", other=b"\x00")
@example(one=b"\\", other=b"\\\\")
@example(one="\udc80".encode("utf-8", "surrogatepass"), other=b"\x80")
def test_different_bytes_stay_different_and_print(one: bytes, other: bytes) -> None:
    assert printable(one).isprintable()
    printable(one).encode()
    assert (printable(one) == printable(other)) is (one == other)


@settings(max_examples=settings().max_examples // 2)
@given(serial=descriptors, manufacturer=descriptors, product=descriptors, modem=st.booleans())
@example(serial=b"../../../etc/passwd", manufacturer=b"\n", product=b"\x1b[2J", modem=False)
@example(serial=b"at-0000:00:14.0-1", manufacturer=b"%s{name}", product=b"", modem=False)
@example(serial=b"\xff" * 126, manufacturer=b"\0", product=b'",="', modem=True)
@example(serial="\N{RIGHT-TO-LEFT OVERRIDE}".encode(), manufacturer=b"", product=b"", modem=True)
def test_from_sysfs_to_the_container(
    *, serial: bytes, manufacturer: bytes, product: bytes, modem: bool
) -> None:
    with directory() as root, log_lines():
        sysfs = FakeSysfs(root / "sys")
        device = sysfs.device(serial=serial, manufacturer=manufacturer, product=product)
        tty = read_tty(
            sysfs.cdc_acm(device, "ttyACM0") if modem else sysfs.usb_serial(device, "ttyUSB0")
        )
        assert tty is not None
        port = Port(
            "ttyACM0" if modem else "ttyUSB0", "/dev/null", NULL, tty.usb, tty.path, tty.driver
        )
        check_port(port)
        grant(Keeper(root / "node", HANDOVER, Trusting()), port)


def check_port(port: Port) -> None:
    for mode in IdentityMode:
        for unit in Unit:
            candidates = candidate_ids(port, mode, unit)
            assert all(ID_FORM.fullmatch(one) and len(one) <= ID_LENGTH for one in candidates)


def grant(keeper: Keeper, port: Port) -> None:
    """Plug it in, and give it to a container."""
    within_loop(lambda: keeper.custody.apply([PortPresent("udev", port)]))
    (device,) = keeper.custody.devices
    check_device(device)
    assert device.health is Health.READY
    folder = f"links/{device.id}"
    states = {"states", f"states/{device.id}.json"}
    assert keeper.written() == {"links", folder, f"{folder}/{port.slot}"} | states
    request = v1beta1.AllocateRequest(
        container_requests=[v1beta1.ContainerAllocateRequest(devices_ids=[device.id])]
    )
    answered: v1beta1.AllocateResponse | AbortedError = answer(
        lambda: keeper.plugin.Allocate(request, Context())  # type: ignore[arg-type]
    )
    assert isinstance(answered, v1beta1.AllocateResponse)
    (container,) = answered.container_responses
    assert all(value.isprintable() for value in container.envs.values())
    (info,) = json.loads(container.envs["USBPLUGIN_SERIAL_INFO"])
    assert info["id"] == device.id
    assert info["serial"] == (port.usb.serial if port.usb else "")
    for line in features([device]).splitlines():
        assert line.isascii()
    again = Keeper(keeper.root, HANDOVER)
    within_loop(lambda: again.custody.apply([all_ports()]))
    (remembered,) = again.custody.devices
    assert remembered.ports == device.ports


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=6,
)
keys = st.sampled_from(
    [
        *("vendor_id", "product_id", "serial", "manufacturer"),
        *("product", "interface", "location", "driver"),
    ]
)
side_files = (
    st.binary(max_size=200)
    | st.dictionaries(keys | st.text(max_size=9), json_values, max_size=8).map(msgspec.json.encode)
    | st.fixed_dictionaries(
        {},
        optional={
            "vendor_id": st.text(max_size=5),
            "product_id": st.from_regex(r"\A[0-9a-fA-F]{4}\Z"),
            "serial": st.text(max_size=130),
            "interface": st.integers(-(2**64), 2**64),
            "location": st.text(max_size=40),
            "driver": st.text(max_size=20),
        },
    ).map(lambda document: json.dumps(document).encode())
)


@given(name=names, content=side_files)
@example(name="ttyUSB0", content=b"[" * 100_000)
@example(name="ttyUSB0", content=b'{"x":' * 50_000)
@example(name="ttyUSB0", content=b'{"serial": "\\ud800"}')
@example(name="ttyUSB0", content=b'{"interface": 1e999}')
@example(name="ttyUSB0", content=b'{"interface": ' + b"9" * 5000 + b"}")
@example(name="ttyUSB0", content=b" " * 100_000)
@example(name="ttyUSB..", content=b"{}")
def test_from_a_side_file_to_the_container(name: str, content: bytes) -> None:
    with directory() as root, log_lines():
        devices = root / "dev"
        devices.mkdir()
        (devices / name).symlink_to("/dev/null")
        (devices / f".{name}.json").write_bytes(content)
        (port,) = DirectorySource(devices).scan()
        check_port(port)
        if port.usb:
            grant(Keeper(root / "node", HANDOVER), port)
