"""``usbplugin suggest``: what it prints can be pasted, and selects what it was made for."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.support import usb_port
from usbplugin.cli import main
from usbplugin.commands.suggestion import by_device, configuration, pod, suggest
from usbplugin.config import Config, parse, warnings
from usbplugin.discovery import Unit
from usbplugin.discovery.port import printable
from usbplugin.inventory import first_match
from usbplugin.virtual import Descriptors, VirtualBus

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from usbplugin.discovery import Port

ZIGBEE = Descriptors(
    vendor_id="10c4", product_id="ea60", serial="00124B0021C0FFEE", product="Zigbee Dongle"
)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("USBPLUGIN_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[VirtualBus]:
    with VirtualBus(tmp_path / "dev") as bus:
        yield bus


def named(product: str, **changes: str) -> Port:
    """A port whose device calls itself that."""
    from msgspec.structs import replace  # noqa: PLC0415

    port = usb_port()
    assert port.usb
    return replace(port, usb=replace(port.usb, product=product, **changes))


def text_for(*ports: Port, wanted: Sequence[Port] = ()) -> str:
    """The configuration for these ports, of all of which some may be wanted."""
    groups = by_device(wanted or ports).values()
    found = suggest(groups, ports, Config().rules())
    return configuration(found, file=None, default="usbplugin/serial")


def taken(text: str, *ports: Port) -> list[str]:
    """Which resource each of the ports belongs to."""
    rules = parse(text.encode()).rules()
    return [rule.name if (rule := first_match(rules, port)) else "" for port in ports]


def test_a_whole_file_and_a_pod_for_what_is_plugged_in(
    bus: VirtualBus, capsys: pytest.CaptureFixture[str]
) -> None:
    bus.plug("ttyUSB0", ZIGBEE)
    assert main(["suggest", "--no-udev", "--device-dir", str(bus.directory)]) == 0
    shown = capsys.readouterr().out
    text, pod_text = shown.split("---\n")
    config = parse(text.encode())
    assert warnings(config) == []
    assert "WARNING" not in text
    assert [resource.name for resource in config.resources] == [
        "usbplugin/zigbee-dongle", "usbplugin/serial",
    ]  # fmt: skip
    assert config.resources[0].container_path == "/dev/usb-zigbee-dongle"
    (container,) = yaml.safe_load(pod_text)["spec"]["containers"]
    assert container["resources"]["limits"] == {"usbplugin/zigbee-dongle": 1}
    assert "/dev/usb-zigbee-dongle" in container["command"][2]
    assert "$USBPLUGIN_ZIGBEE_DONGLE_DEVICES" in pod_text


def test_for_each_of_several_and_with_a_configuration_only_what_is_new(
    bus: VirtualBus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bus.plug("ttyUSB0", ZIGBEE)
    bus.plug("ttyUSB1", Descriptors(vendor_id="10c4", product_id="ea60", serial="OTHER-1"))
    file = tmp_path / "config.yaml"
    file.write_text("resources: [{name: mine/zigbee-dongle}]")
    flags = ["--config", str(file), "--no-udev", "--device-dir", str(bus.directory)]
    assert main(["suggest", *flags]) == 0
    text, *pods = capsys.readouterr().out.split("---\n")
    assert f"# For {file}: add this at the top" in text
    assert "# Now a device of mine/zigbee-dongle." in text
    names = [resource.name for resource in parse(text.encode()).resources]
    assert names == ["usbplugin/zigbee-dongle-2", "usbplugin/serial-10c4-ea60"]
    assert len(pods) == 2


def test_nothing_to_suggest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suggest", "--no-udev", "--device-dir", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "--watch" in shown.err


@pytest.mark.parametrize(
    ("serial", "warning"),
    [("", "it has no serial number"), ("0001", "its serial number '0001' is on many sticks")],
)
def test_without_a_serial_worth_the_name_the_socket_selects(serial: str, warning: str) -> None:
    one, two = (
        usb_port(f"ttyUSB{number}", serial=serial, location=f"0000:00:14.0-{number}")
        for number in (1, 2)
    )
    text = text_for(one, two)
    assert text.count(f"WARNING: {warning}, so this selects the socket") == 2
    assert taken(text, one, two) == ["usbplugin/ft232r-usb-uart", "usbplugin/ft232r-usb-uart-2"]


def test_a_serial_that_two_share_is_told_and_the_socket_selects() -> None:
    one, two = (
        usb_port(f"ttyUSB{number}", serial="TWIN-A", location=f"0000:00:14.0-{number}")
        for number in (1, 2)
    )
    text = text_for(one, two, wanted=[two])
    assert "WARNING: /dev/ttyUSB1 has the same serial number" in text
    assert "identity: location" in text
    assert taken(text, one, two) == ["usbplugin/serial", "usbplugin/ft232r-usb-uart"]


def test_what_nothing_tells_apart_is_said() -> None:
    one, two = (named("Stick", serial="", location="", arrival=arrival) for arrival in "ab")
    text = text_for(one, two, wanted=[one])
    assert "this selects all sticks of its kind" in text


def test_a_device_of_several_ports_is_one_device() -> None:
    ports = [usb_port(f"ttyUSB{number}", interface=number) for number in (2, 0)]
    text = text_for(*ports)
    (resource, _) = parse(text.encode()).resources
    assert (resource.unit, resource.container_path) == (
        Unit.USB_DEVICE,
        "/dev/usb-ft232r-usb-uart-{port}",
    )
    assert "(0 is /dev/ttyUSB0, 2 is /dev/ttyUSB2)" in text
    assert warnings(parse(text.encode())) == []


@given(st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20)), min_size=1, max_size=3))
def test_no_descriptor_breaks_out_of_what_is_pasted(strings: list[tuple[bytes, bytes]]) -> None:
    ports = []
    for number, (product, serial) in enumerate(strings):
        port = named(
            printable(product), serial=printable(serial), location=f"0000:00:14.0-{number}"
        )
        ports.append(port)
    found = suggest(by_device(ports).values(), ports, Config().rules())
    text = configuration(found, file=None, default="usbplugin/serial")
    names = taken(text, *ports)
    assert len(set(names)) == len(ports)
    assert "usbplugin/serial" not in names
    for suggestion in found:
        (container,) = yaml.safe_load(pod(suggestion, 20))["spec"]["containers"]
        assert container["resources"]["limits"] == {suggestion.resource: 1}


def test_a_serial_with_wildcards_selects_itself_alone() -> None:
    odd = usb_port(serial="A[1-9]*?")
    text = text_for(odd)
    assert taken(text, odd, usb_port(serial="A5xx"), usb_port(serial="A[1-9]zz")) == [
        "usbplugin/ft232r-usb-uart", "usbplugin/serial", "usbplugin/serial",
    ]  # fmt: skip


async def test_watch_waits_for_the_next_one(bus: VirtualBus) -> None:
    bus.plug("ttyUSB0", Descriptors(vendor_id="0403", product_id="6001", serial="HERE-1"))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "usbplugin", "suggest", "--watch", "--no-udev"),
        *("--device-dir", str(bus.directory)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr
    async with asyncio.timeout(30):
        assert b"waiting for a device" in await process.stderr.readline()
        bus.plug("ttyUSB1", ZIGBEE)
        out, _ = await process.communicate()
    assert process.returncode == 0
    names = [resource.name for resource in parse(out.split(b"---\n")[0]).resources]
    assert names == ["usbplugin/zigbee-dongle", "usbplugin/serial"]
