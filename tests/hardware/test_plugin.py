"""The whole chain: cable, kernel, udevd, ``usbplugin serve``, the kubelet's stream, a container."""

from __future__ import annotations

import itertools
import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.node import SERIAL
from usbplugin.virtual import CreateContainerConfigError

from . import sysfs
from .line import Line
from .pod import pod_command
from .serve import TIMEOUT, HardwareNode

if TYPE_CHECKING:
    from .conftest import GadgetFactory, QemuSerialFactory
    from .events import Monitor
    from .gadget import UsbGadget
    from .qmp import QemuSerial
    from .udevd import Udevd

pytestmark = pytest.mark.timeout(180)

ACM = "usb-2341:0043-{}-if00"
FTDI = "usb-0403:6001-{}-if00"


@pytest.mark.parametrize(("function", "form"), [("acm", ACM), ("simple", "usb-0fcf:1008-{}-if00")])
async def test_a_port_is_offered_used_and_missed(
    gadget: GadgetFactory, node: HardwareNode, function: str, form: str
) -> None:
    device = gadget(functions=[function], serial=b"SENSOR7")
    device_id = form.format("SENSOR7")
    async with node.serve():
        (path,) = device.plug()
        await node.healthy(device_id)
        container = await node.kubelet.run_container(SERIAL)
        (spec,) = container.devices
        assert (spec.container_path, spec.permissions) == (path, "rw")
        assert os.path.realpath(spec.host_path) == path
        with Line(spec.host_path) as application, device.line() as firmware:
            application.write(b"AT\r\n")
            assert firmware.read(4) == b"AT\r\n"
            firmware.write(b"OK\r\n")
            assert application.read(4) == b"OK\r\n"
        device.unplug()
        await node.healthy()
        assert node.states() == {device_id: False}
        with pytest.raises(CreateContainerConfigError, match="is gone: unplugged"):
            await container.restart()


async def test_ftdi_as_ttyusb(gadget: GadgetFactory, node: HardwareNode) -> None:
    device = gadget(functions=["ftdi"], serial=b"A5069RR4")
    async with node.serve():
        (path,) = device.plug()
        assert path.startswith("/dev/ttyUSB")
        await node.healthy(FTDI.format("A5069RR4"))


async def test_a_replug_elsewhere_is_the_same_device(
    gadget: GadgetFactory, node: HardwareNode
) -> None:
    device, other = gadget(serial=b"MINE", port=0), gadget(serial=b"OTHER", port=1)
    mine, others = ACM.format("MINE"), ACM.format("OTHER")
    (first,) = device.plug()
    async with node.serve():
        await node.healthy(mine)
        container = await node.kubelet.run_container(SERIAL)
        device.unplug()
        await node.healthy()
        other.plug()  # takes the number
        await node.healthy(others)
        with pytest.raises(CreateContainerConfigError):
            await container.restart()
        (second,) = device.plug(port=2)
        assert second != first
        await node.healthy(mine, others)
        await container.restart()
        assert os.path.realpath(container.devices[0].host_path) == second


async def test_renumbered_while_the_plugin_was_away(
    gadget: GadgetFactory, node: HardwareNode
) -> None:
    device, other = gadget(serial=b"MINE"), gadget(serial=b"OTHER")
    device.plug()
    async with node.serve():
        await node.healthy(ACM.format("MINE"))
    device.unplug()
    other.plug()
    (path,) = device.plug()
    async with node.serve():
        await node.healthy(ACM.format("MINE"), ACM.format("OTHER"))
        container = await node.kubelet.run_container(SERIAL, device_ids=[ACM.format("MINE")])
        assert container.devices[0].container_path == path
        assert os.path.realpath(container.devices[0].host_path) == path


async def test_without_a_serial_the_place_is_the_name(
    gadget: GadgetFactory, node: HardwareNode
) -> None:
    device = gadget(serial=None, port=3)
    async with node.serve():
        device.plug()
        await node.kubelet.wait_for(lambda: bool(node.states()), TIMEOUT)
        (device_id,) = node.states()
        assert device_id.startswith("usb-2341:0043-at-")
        device.unplug()
        await node.healthy()
        device.plug()
        await node.healthy(device_id)
        assert list(node.states()) == [device_id]


@pytest.mark.parametrize("order", list(itertools.permutations((0, 1))))
async def test_equal_serials_never_swap_their_ids(
    gadget: GadgetFactory, node: HardwareNode, order: tuple[int, int]
) -> None:
    twins = [gadget(serial=b"TWIN", port=port) for port in (0, 1)]
    link = Path("/dev/serial/by-id")

    async with node.serve():
        nodes = {0: twins[0].plug()[0]}
        await node.healthy(ACM.format("TWIN"))
        nodes[1] = twins[1].plug()[0]
        await node.kubelet.wait_for(lambda: len(node.states()) == 2, TIMEOUT)
        (by_id,) = [entry for entry in link.iterdir() if "TWIN" in entry.name]
        assert os.path.realpath(by_id) == nodes[1], "udev's own link has moved to the last added"
        before = places(node)
        for number in order:
            twins[number].unplug()
        await node.healthy()
    async with node.serve():
        for number in reversed(order):
            twins[number].plug()
        await node.healthy(*before)
        assert places(node) == before


def places(node: HardwareNode) -> dict[str, str]:
    """Which USB device is behind each ID, by its links."""
    found = {}
    for folder in node.link_dir.iterdir():
        tty = Path(os.path.realpath(folder / "if00")).name
        found[folder.name] = os.path.realpath(f"/sys/class/tty/{tty}/device/..")
    return found


async def test_a_composite_device_is_two_ports_or_one_device(
    gadget: GadgetFactory, node: HardwareNode
) -> None:
    device = gadget(functions=["acm", "acm"], serial=b"MODEM")
    async with node.serve():
        device.plug()
        await node.healthy("usb-2341:0043-MODEM-if00", "usb-2341:0043-MODEM-if02")
        device.unplug()
        await node.healthy()
    resources = f"- {{name: {SERIAL}, unit: usb-device, containerPath: '/dev/modem{{port}}'}}"
    async with node.serve(resources=resources):
        device.plug()
        await node.healthy("usb-2341:0043-MODEM")
        container = await node.kubelet.run_container(SERIAL)
        assert [s.container_path for s in container.devices] == ["/dev/modem0", "/dev/modem1"]
        device.unplug()
        await node.healthy()


async def test_a_driver_unbound_and_bound_again(gadget: GadgetFactory, node: HardwareNode) -> None:
    device = gadget(serial=b"BOUND")
    async with node.serve():
        device.plug()
        await node.healthy(ACM.format("BOUND"))
        (interface,) = {tty.interface for tty in device.ttys}
        driver = sysfs.unbind(interface)
        await node.healthy()
        sysfs.bind(interface, driver)
        await node.healthy(ACM.format("BOUND"))


async def test_a_device_that_comes_back_with_other_descriptors(
    gadget: GadgetFactory, node: HardwareNode
) -> None:
    """As a board does that goes into its boot loader and back."""
    board = gadget(serial=b"BOARD", port=0)
    loader = gadget(serial=b"BOARD", product_id=0x0036, port=0)
    async with node.serve():
        for _ in range(2):
            board.plug()
            await node.healthy(ACM.format("BOARD"))
            board.unplug()
            loader.plug()
            await node.healthy("usb-2341:0036-BOARD-if00")
            loader.unplug()
        await node.healthy()


HOSTILE = [
    b"a\nb\rINFO forged",
    b"../../etc/passwd",
    b"%s%n%d",
    b"'\"; rm -rf / #`id`$(id)",
    b'{"a": [1, {"b": "c"}]}: - !!python/object',
    b"x" * 126,
    "Grüße, 世界 \N{RIGHT-TO-LEFT OVERRIDE}".encode(),
    b"\x1b[31mred\x07",
]


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_hostile_descriptors(
    gadget: GadgetFactory, node: HardwareNode, log_format: str
) -> None:
    outside = {path for path in node.root.rglob("*") if node.link_dir not in path.parents}
    async with node.serve("--log-format", log_format) as process:
        for text in HOSTILE:
            device = gadget(serial=text, manufacturer=text, product=text, port=0)
            device.plug()
            await node.kubelet.wait_for(
                lambda: len(node.kubelet.resource(SERIAL).healthy) == 1, TIMEOUT
            )
            container = await node.kubelet.run_container(SERIAL)
            assert all(value.isprintable() for value in container.envs.values())
            (info,) = json.loads(container.envs["USBPLUGIN_SERIAL_INFO"])
            assert info["serial"]
            container.remove()
            device.remove()
            await node.healthy()
        assert len(node.states()) == len(HOSTILE), "each is a device of its own"
        process.signal(signal.SIGTERM)
        assert await process.wait(within=20) == 0
        lines = process.log().splitlines()
    if log_format == "json":
        assert all(json.loads(line)["event"] for line in lines)
    assert all(line.isprintable() for line in lines)
    assert {path.name for path in node.link_dir.iterdir()} <= set(node.states())
    after = {path for path in node.root.rglob("*") if node.link_dir not in path.parents}
    allowed = {node.link_dir, node.root / "config.yaml"}
    assert {path for path in after - outside if path.suffix != ".sock"} <= allowed
    assert not node.kubelet.log.violations


async def test_a_storm_of_all_that_fits(
    gadget: GadgetFactory, qemu_serial: QemuSerialFactory, node: HardwareNode
) -> None:
    gadgets = [gadget(serial=f"G{number}X".encode(), port=number) for number in range(6)]
    others = [qemu_serial(number, serial=f"Q{number}X") for number in range(12)]
    everything: list[UsbGadget | QemuSerial] = [*gadgets, *others]
    ids = [ACM.format(f"G{number}X") for number in range(6)]
    rounds = 3
    async with node.serve():
        for _ in range(rounds):
            for one in everything:
                one.plug(wait=False)
            for one in everything:
                one.wait_ready()
            for one in everything:
                one.unplug(wait=False)
        for one in gadgets:
            one.plug(wait=False)
        await node.healthy(*ids)
        assert len(node.kubelet.log.messages) < 2 * rounds * len(everything)
        for one in everything:
            if not one.is_plugged:
                one.plug(wait=False)
        await node.healthy(*ids, *(FTDI.format(f"Q{number}X") for number in range(12)))
        for one in everything:
            one.unplug(wait=False)
        await node.healthy()
        assert len(node.states()) == len(everything)


async def test_udevd_stopped_started_and_crashed(
    gadget: GadgetFactory, node: HardwareNode, udevd: Udevd
) -> None:
    device, late = gadget(serial=b"EARLY", port=0), gadget(serial=b"LATE", port=1)
    early_id, late_id = ACM.format("EARLY"), ACM.format("LATE")
    async with node.serve():
        device.plug()
        await node.healthy(early_id)
        udevd.stop()
        device.unplug()
        await node.healthy()
        late.plug()  # nobody will ever say that it is done: after a deadline sysfs has to do
        await node.healthy(late_id)
        udevd.start()
        udevd.trigger("add")
        udevd.settle()
        device.plug()
        await node.healthy(early_id, late_id)
        udevd.stop(signal.SIGKILL)
        late.unplug()
        await node.healthy(early_id)


async def test_in_a_pods_surroundings(gadget: GadgetFactory, node: HardwareNode) -> None:
    """Another network namespace, no capability at all; events arrive all the same."""
    device = gadget(serial=b"POD")
    async with node.serve(wrap=pod_command) as process:
        await process.wait_for_log("udev source running")
        assert "uevents=kernel udevd=yes" in process.log()
        for _ in range(3):
            device.plug()
            await node.healthy(ACM.format("POD"))
            device.unplug()
            await node.healthy()


async def test_two_devices_that_come_back_swapped_are_displaced(
    gadget: GadgetFactory, node: HardwareNode
) -> None:
    devices = [gadget(serial=name, port=port) for port, name in enumerate((b"ONE", b"TWO"))]
    ids = [ACM.format("ONE"), ACM.format("TWO")]
    before = [device.plug()[0] for device in devices]
    async with node.serve():
        await node.healthy(*ids)
        containers = [
            await node.kubelet.run_container(SERIAL, device_ids=[device_id], pod=f"pod{number}")
            for number, device_id in enumerate(ids)
        ]
        for device in devices:
            device.unplug()
        await node.healthy()
    after = [device.plug()[0] for device in reversed(devices)]
    assert after == before, "each has the other one's number now"
    async with node.serve() as process:
        await process.wait_for_log("device displaced")
        await node.healthy()
        await containers[0].restart()
        await node.healthy(ids[0])
        await containers[1].restart()
        await node.healthy(*ids)
        for container, path in zip(containers, reversed(after), strict=True):
            assert os.path.realpath(container.devices[0].host_path) == path


async def test_events_that_were_lost_are_made_up_for(
    gadget: GadgetFactory, node: HardwareNode, kernel_monitor: Monitor
) -> None:
    """The plugin is stopped while its netlink buffer overflows, and finds the truth afterwards."""
    device = gadget(serial=b"LOST", port=0)
    device.plug()
    async with node.serve() as process:
        await node.healthy(ACM.format("LOST"))
        process.signal(signal.SIGSTOP)
        device.unplug()
        uevent = next(Path("/sys/class/tty").glob("tty[0-9]*")) / "uevent"
        for _ in range(20_000):
            uevent.write_text("change")
        process.signal(signal.SIGCONT)
        await process.wait_for_log("uevents were lost", within=60)
        await node.healthy()
