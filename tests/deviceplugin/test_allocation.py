from __future__ import annotations

import json

import msgspec
import pytest

from tests.support import usb_port
from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.custody import Offer
from usbplugin.deviceplugin.allocation import allocate
from usbplugin.discovery import DeviceNumber, Port
from usbplugin.errors import AllocationError
from usbplugin.inventory import Device, Health, Snapshot
from usbplugin.inventory.shares import device_of

SERIAL = "usbplugin/serial"


def device(
    device_id: str, port: Port, health: Health = Health.READY, reason: str = "", since: float = 0.0
) -> Device:
    return Device(device_id, SERIAL, health, reason, (port,), since)


SNAPSHOT = Snapshot(
    SERIAL,
    (
        device("a", usb_port("ttyUSB0", links=("/dev/serial/by-id/usb-FTDI_x-if00-port0",))),
        device("b", usb_port("ttyUSB1", serial="B\\x0a")),
        device("away", usb_port("ttyUSB2"), Health.UNPLUGGED, "/dev/ttyUSB2 is gone"),
    ),
)


def locate(device_id: str) -> str | None:
    return "usbplugin/zigbee" if device_id == "z" else None


DEFAULT = Offer(SERIAL)


def link_to(device: Device, port: Port) -> str:
    return f"/run/usbplugin/{device.id}/{port.slot}"


def ask(*containers: list[str], offer: Offer = DEFAULT) -> v1beta1.AllocateResponse:
    request = v1beta1.AllocateRequest(
        container_requests=[v1beta1.ContainerAllocateRequest(devices_ids=ids) for ids in containers]
    )
    return allocate(request, SNAPSHOT, offer, link_to, locate)[0]


def refused(*containers: list[str], offer: Offer = DEFAULT) -> tuple[str, str]:
    with pytest.raises(AllocationError) as caught:
        ask(*containers, offer=offer)
    return caught.value.status.name, str(caught.value)


def test_a_real_tty_is_handed_over_as_a_device() -> None:
    (container,) = ask(["a"]).container_responses
    (spec,) = container.devices
    assert (spec.container_path, spec.host_path, spec.permissions) == (
        "/dev/ttyUSB0",
        "/run/usbplugin/a/if00",
        "rw",
    )
    assert not container.mounts


def test_a_pty_is_handed_over_as_a_mount() -> None:
    pty = msgspec.structs.replace(
        usb_port("ttyUSB7"), node="/dev/pts/4", number=DeviceNumber(136, 4), usb=None
    )
    request = v1beta1.AllocateRequest(
        container_requests=[v1beta1.ContainerAllocateRequest(devices_ids=["v"])]
    )
    snapshot = Snapshot(SERIAL, (device("v", pty),))
    for permissions, read_only in (("rw", False), ("r", True)):
        offer = Offer(SERIAL, permissions)
        response, _ = allocate(request, snapshot, offer, lambda _, port: port.node, locate)
        (mount,) = response.container_responses[0].mounts
        assert (mount.container_path, mount.host_path) == ("/dev/ttyUSB7", "/dev/pts/4")
        assert mount.read_only is read_only
        assert not response.container_responses[0].devices


def test_the_environment_tells_what_was_given() -> None:
    (container,) = ask(["a", "b"]).container_responses
    assert container.envs["USBPLUGIN_SERIAL_DEVICES"] == "/dev/ttyUSB0,/dev/ttyUSB1"
    assert container.envs["USBPLUGIN_SERIAL_IDS"] == "a,b"
    info = json.loads(container.envs["USBPLUGIN_SERIAL_INFO"])
    assert [entry["id"] for entry in info] == ["a", "b"]
    assert info[0]["vendor"] == "0403"
    assert info[1]["serial"] == "B\\x0a"
    assert all(value.isprintable() for value in container.envs.values())


def test_two_containers_get_an_answer_each() -> None:
    first, second = ask(["a"], ["b"]).container_responses
    assert first.devices[0].container_path == "/dev/ttyUSB0"
    assert second.devices[0].container_path == "/dev/ttyUSB1"


def test_by_id_names_where_asked() -> None:
    (container,) = ask(["a"], offer=Offer(SERIAL, by_id_links=True)).container_responses
    assert [(spec.container_path, spec.host_path) for spec in container.devices] == [
        ("/dev/ttyUSB0", "/run/usbplugin/a/if00"),
        ("/dev/serial/by-id/usb-FTDI_x-if00-port0", "/run/usbplugin/a/if00"),
    ]


@pytest.mark.parametrize(
    "link",
    ["/dev/serial/by-id/../../sda", "/dev/serial/by-id/a\nb", "/dev/serial/by-path/x", "/dev/sda"],
)
def test_a_link_that_udev_would_not_make_is_not_handed_over(link: str) -> None:
    snapshot = Snapshot(SERIAL, (device("a", usb_port(links=(link,))),))
    request = v1beta1.AllocateRequest(
        container_requests=[v1beta1.ContainerAllocateRequest(devices_ids=["a"])]
    )
    offer = Offer(SERIAL, by_id_links=True)
    response, _ = allocate(request, snapshot, offer, link_to, locate)
    assert len(response.container_responses[0].devices) == 1


def test_a_by_id_name_that_twins_share_is_neithers() -> None:
    shared, own = "/dev/serial/by-id/usb-Silabs_0001-if00", "/dev/serial/by-id/usb-Silabs_0001-if01"
    ports = [usb_port("ttyUSB0", links=(shared,)), usb_port("ttyUSB1", links=(shared, own))]
    snapshot = Snapshot(SERIAL, tuple(map(device, "ab", ports)))
    request = v1beta1.AllocateRequest(
        container_requests=[v1beta1.ContainerAllocateRequest(devices_ids=["a", "b"])]
    )
    offer = Offer(SERIAL, by_id_links=True)
    response, _ = allocate(request, snapshot, offer, link_to, locate)
    paths = [spec.container_path for spec in response.container_responses[0].devices]
    assert paths == ["/dev/ttyUSB0", "/dev/ttyUSB1", own]


def test_container_path_templates() -> None:
    offer = Offer(SERIAL, container_path="/dev/sensor{device}")
    (container,) = ask(["b", "a"], offer=offer).container_responses
    assert [spec.container_path for spec in container.devices] == ["/dev/sensor0", "/dev/sensor1"]


def test_two_nodes_under_one_container_path_are_refused() -> None:
    status, message = refused(["a", "b"], offer=Offer(SERIAL, container_path="/dev/zigbee"))
    assert status == "INVALID_ARGUMENT"
    assert message.startswith("/dev/ttyUSB0 and /dev/ttyUSB1 would both be /dev/zigbee")
    assert message.endswith("give usbplugin/serial a containerPath with {device} or {name} in it")
    _, message = refused(["a", "b"], offer=Offer(SERIAL, container_path="/dev/x", cdi=True))
    assert message.endswith("give usbplugin/serial a containerPath with {name} in it")


@pytest.mark.parametrize(
    ("containers", "status", "message"),
    [
        ([["nobody"]], "NOT_FOUND", "nobody is unknown to usbplugin/serial"),
        ([["z"]], "INVALID_ARGUMENT", "z belongs to usbplugin/zigbee, not to usbplugin/serial"),
        (
            [["away"]],
            "FAILED_PRECONDITION",
            "away is unplugged: /dev/ttyUSB2 is gone",
        ),
        ([["a", "a"]], "INVALID_ARGUMENT", "a was requested 2 times; it can be allocated once"),
        ([["a"], ["a"]], "INVALID_ARGUMENT", "a was requested 2 times; it can be allocated once"),
        ([], "INVALID_ARGUMENT", "the kubelet requested no device of usbplugin/serial"),
        ([[]], "INVALID_ARGUMENT", "the kubelet requested no device of usbplugin/serial"),
        ([["a"], ["away"]], "FAILED_PRECONDITION", "away is unplugged"),
    ],
)
def test_refusals(containers: list[list[str]], status: str, message: str) -> None:
    found_status, found_message = refused(*containers)
    assert found_status == status
    assert found_message.startswith(message)


def test_the_share_of_a_device_is_written_in_one_way_only() -> None:
    assert device_of("usb-a.0", 3) == "usb-a"
    odd = [
        "usb-a.00",
        "usb-a.3",
        "usb-a.\N{SUPERSCRIPT TWO}",
        f"usb-a.{'1' * 5000}",
        ".1",
        "usb-a.",
    ]
    assert [device_of(share_id, 3) for share_id in odd] == odd


def test_an_id_that_nobody_knows_is_shown_in_short() -> None:
    status, message = refused(["x" * 100_000 + "\n"])
    assert status == "NOT_FOUND"
    assert len(message) < 300


def test_an_id_is_cut_only_where_it_is_longer_than_any_that_is_ours() -> None:
    _, whole = refused(["x" * 80])
    assert whole.startswith("x" * 80 + " is unknown")
    _, cut = refused(["x" * 81])
    assert cut.startswith("x" * 80 + "... is unknown")


def test_with_cdi_a_container_gets_names_and_no_nodes() -> None:
    (container,) = ask(["a", "b"], offer=Offer(SERIAL, cdi=True)).container_responses
    assert [one.name for one in container.cdi_devices] == [f"{SERIAL}=a", f"{SERIAL}=b"]
    assert not container.devices
    assert container.envs["USBPLUGIN_SERIAL_DEVICES"] == "/dev/ttyUSB0,/dev/ttyUSB1"
    (container,) = ask(["a"]).container_responses
    assert not container.cdi_devices


def test_what_is_told_of_a_modem_is_told_of_its_first_port() -> None:
    ports = tuple(usb_port(f"ttyUSB{n}", interface=n) for n in range(2, 5))
    modem = Device("modem", SERIAL, Health.READY, "", ports, 0.0)
    request = v1beta1.AllocateRequest(
        container_requests=[v1beta1.ContainerAllocateRequest(devices_ids=["modem"])]
    )
    response, given = allocate(request, Snapshot(SERIAL, (modem,)), DEFAULT, link_to, locate)
    (container,) = response.container_responses
    assert given == (modem,)
    (info,) = json.loads(container.envs["USBPLUGIN_SERIAL_INFO"])
    assert info == {
        "id": "modem",
        "vendor": "0403",
        "product": "6001",
        "serial": "A5069RR4",
        "manufacturer": "FTDI",
        "productName": "FT232R USB UART",
        "interface": 2,
        "location": "0000:00:14.0-1",
    }
    assert [one.host_path for one in container.devices] == [
        f"/run/usbplugin/modem/if{number:02}" for number in range(2, 5)
    ]


def test_the_ports_and_devices_of_a_container_path_are_counted_from_zero() -> None:
    modems = tuple(
        Device(
            name,
            SERIAL,
            Health.READY,
            "",
            tuple(usb_port(f"ttyUSB{n}", interface=n) for n in range(2)),
            0.0,
        )
        for name in "ab"
    )
    request = v1beta1.AllocateRequest(
        container_requests=[v1beta1.ContainerAllocateRequest(devices_ids=["a", "b"])]
    )
    offer = Offer(SERIAL, container_path="/dev/m{device}.{port}")
    response, _ = allocate(request, Snapshot(SERIAL, modems), offer, link_to, locate)
    paths = [one.container_path for one in response.container_responses[0].devices]
    assert paths == ["/dev/m0.0", "/dev/m0.1", "/dev/m1.0", "/dev/m1.1"]
