"""From the cable to the kubelet's stream: ports are offered, handed over, missed and recognised."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.node import SERIAL
from usbplugin.virtual import CreateContainerConfigError

from .line import Line
from .serve import acm_id
from .sysfs import bind, unbind

if TYPE_CHECKING:
    from .conftest import GadgetFactory, QemuSerialFactory
    from .serve import HardwareNode

pytestmark = pytest.mark.timeout(120)


KINDS = [
    ("acm", acm_id("SENSOR7"), "ttyACM", b""),
    ("simple", "usb-0fcf:1008-SENSOR7-if00", "ttyUSB", b""),
    # Two bytes of status come before each packet of an FT232.
    ("ftdi", "usb-0403:6001-SENSOR7-if00", "ttyUSB", b"\x01\x60"),
]


async def test_ports_are_offered_used_and_missed(gadget: GadgetFactory, node: HardwareNode) -> None:
    async with node.serve():
        for function, device_id, name, status in KINDS:
            device = gadget(functions=[function], serial=b"SENSOR7")
            device.plug(wait=False)
            await node.healthy(device_id)
            (path,) = device.nodes
            assert path.startswith(f"/dev/{name}")
            container = await node.kubelet.run_container(SERIAL, pod=function)
            (spec,) = container.devices
            assert (spec.container_path, spec.permissions) == (path, "rw")
            assert container.envs["USBPLUGIN_SERIAL_DEVICES"] == path
            assert os.path.realpath(spec.host_path) == path
            with Line(spec.host_path) as application, device.line() as firmware:
                application.write(b"AT\r\n")
                assert firmware.read(4) == b"AT\r\n"
                firmware.write(status + b"OK\r\n")
                assert application.read(4) == b"OK\r\n"
            device.unplug(wait=False)
            await node.healthy()
            assert not node.states()[device_id]
            with pytest.raises(CreateContainerConfigError, match="is gone"):
                await container.restart()
            device.plug(wait=False)
            await node.healthy(device_id)
            await container.start()
            device.unplug(wait=False)
            await node.healthy()
            container.remove()  # or else the next device could not have its number
        assert node.states() == {device_id: False for _, device_id, *_ in KINDS}


async def test_one_behind_a_hub_of_a_pci_controller(
    qemu_serial: QemuSerialFactory, node: HardwareNode
) -> None:
    direct, behind = qemu_serial(0, serial="DIRECT"), qemu_serial(15, serial=None)
    assert behind.is_behind_hub
    async with node.serve(resources=f"- {{name: {SERIAL}, identity: location}}"):
        direct.plug(wait=False)
        behind.plug(wait=False)
        found = await node.some_healthy(2)
        for device in (direct, behind):
            (device_id,) = [name for name in found if node.usb_device(name) == device.device]
            controller = device.device.parents[2 if device.is_behind_hub else 1].name
            chain = device.device.name.partition("-")[2]
            assert device_id == f"usb-0403:6001-at-{controller}-{chain}-if00"


async def test_a_replugged_device_is_the_same_wherever_it_is(
    gadget: GadgetFactory, node: HardwareNode
) -> None:
    device = gadget(serial=b"MINE", port=0)
    (first,) = device.plug()
    async with node.serve():
        await node.healthy(acm_id("MINE"))
        for port in (0, 3):
            device.unplug(wait=False)
            await node.healthy()
            device.plug(port=port, wait=False)
            await node.healthy(acm_id("MINE"))
            assert node.node_of(acm_id("MINE")) == device.nodes[0] == first
            assert node.usb_device(acm_id("MINE")) == device.device
        with Line(first):  # whoever has it open keeps its number from the next
            device.unplug(wait=False)
            await node.healthy()
            device.plug(wait=False)
            await node.healthy(acm_id("MINE"))
            assert node.node_of(acm_id("MINE")) == device.nodes[0] != first
        assert node.states() == {acm_id("MINE"): True}


async def test_another_device_that_takes_the_number_is_not_taken_for_the_first(
    gadget: GadgetFactory, node: HardwareNode
) -> None:
    device, other = gadget(serial=b"MINE", port=0), gadget(serial=b"OTHER", port=1)
    (first,) = device.plug()
    async with node.serve():
        await node.healthy(acm_id("MINE"))
        container = await node.kubelet.run_container(SERIAL)
        device.unplug(wait=False)
        await node.healthy()
        assert other.plug() == [first]
        await node.until_health(acm_id("OTHER"), "contested")
        with pytest.raises(CreateContainerConfigError, match="is gone"):
            await container.restart()
        await node.healthy(acm_id("OTHER"))
        assert not os.path.lexists(container.devices[0].host_path)
        (second,) = device.plug()
        await node.healthy(acm_id("MINE"), acm_id("OTHER"))
        await container.restart()
        assert os.path.realpath(container.devices[0].host_path) == second


async def test_renumbered_while_the_plugin_was_away(
    gadget: GadgetFactory, node: HardwareNode
) -> None:
    device, other = gadget(serial=b"MINE"), gadget(serial=b"OTHER")
    (first,) = device.plug()
    async with node.serve():
        await node.healthy(acm_id("MINE"))
    assert node.node_of(acm_id("MINE")) == first
    device.unplug()
    other.plug()
    (second,) = device.plug()
    assert second != first
    async with node.serve():
        await node.healthy(acm_id("MINE"), acm_id("OTHER"))
        assert node.node_of(acm_id("MINE")) == second
        container = await node.kubelet.run_container(SERIAL, device_ids=[acm_id("MINE")])
        (spec,) = container.devices
        assert spec.container_path == second
        with Line(spec.host_path) as application, device.line() as firmware:
            firmware.write(b"mine")
            assert application.read(4) == b"mine"


async def test_what_is_there_before_the_start_is_in_the_first_message(
    gadget: GadgetFactory, node: HardwareNode
) -> None:
    devices = [gadget(serial=serial) for serial in (b"ONE", b"TWO")]
    for device in devices:
        device.plug()
    async with node.serve():
        first = node.kubelet.log.messages[0].devices
        assert {device.id for device in first} == {acm_id("ONE"), acm_id("TWO")}
        assert all(device.healthy for device in first)


async def test_a_driver_taken_off_and_put_back(gadget: GadgetFactory, node: HardwareNode) -> None:
    device = gadget(serial=b"BOUND")
    device.plug()
    async with node.serve():
        await node.healthy(acm_id("BOUND"))
        (interface,) = {tty.interface for tty in device.ttys}
        driver = unbind(interface)
        await node.healthy()
        assert device.device.exists()
        bind(interface, driver)
        await node.healthy(acm_id("BOUND"))


async def test_a_port_that_cannot_be_opened_does_not_trouble_the_plugin(
    gadget: GadgetFactory, node: HardwareNode
) -> None:
    """It never opens a port, and so cannot know; the container finds out."""
    device, good = gadget(functions=["broken"], serial=b"BROKEN"), gadget(serial=b"GOOD")
    broken_id = "usb-10c4:ea60-BROKEN-if00"
    async with node.serve() as process:
        device.plug(wait=False)
        good.plug(wait=False)
        await node.healthy(broken_id, acm_id("GOOD"))
        container = await node.kubelet.run_container(SERIAL, device_ids=[broken_id])
        with pytest.raises(OSError, match="Input/output error"):
            Line(container.devices[0].host_path)
        device.unplug(wait=False)
        await node.healthy(acm_id("GOOD"))
        assert "ERROR" not in process.log()
