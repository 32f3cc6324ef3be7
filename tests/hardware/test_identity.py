"""One ID, one physical thing: without serials, with equal ones, with several ports or new ones."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.node import SERIAL

from .line import Line
from .serve import acm_id
from .sysfs import bind, unbind

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from .conftest import GadgetFactory
    from .gadget import UsbGadget
    from .serve import HardwareNode

pytestmark = pytest.mark.timeout(180)


async def test_without_a_serial_the_place_is_the_name(
    gadget: GadgetFactory, node: HardwareNode
) -> None:
    device = gadget(serial=None, port=3)
    here = "usb-2341:0043-at-dummy_hcd.3-1-if00"
    there = "usb-2341:0043-at-dummy_hcd.5-1-if00"
    async with node.serve():
        device.plug(wait=False)
        await node.healthy(here)
        device.unplug(wait=False)
        await node.healthy()
        device.plug(port=5, wait=False)
        await node.healthy(there)
        device.unplug(wait=False)
        await node.healthy()
        device.plug(port=3, wait=False)
        await node.healthy(here)
        assert node.states() == {here: True, there: False}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["0 first", "1 first"])
async def test_equal_serials_never_swap(
    gadget: GadgetFactory, node: HardwareNode, order: tuple[int, int]
) -> None:
    twins = [gadget(serial=b"TWIN", port=port) for port in (0, 1)]
    first, second = (twins[number] for number in order)
    async with node.serve():
        first.plug(wait=False)
        await node.healthy(acm_id("TWIN"))
        second.plug(wait=False)
        ids = await node.some_healthy(2)
        who = {device_id: node.usb_device(device_id) for device_id in ids}
        assert set(who.values()) == {twin.device for twin in twins}
        assert by_id_link() == second.nodes[0], "udev's link leads to the last added"
        for pulled in twins:
            (id_pulled,) = [name for name in ids if who[name] == pulled.device]
            pulled.unplug(wait=False)
            await node.healthy(*ids - {id_pulled})
            pulled.plug(wait=False)
            await node.healthy(*ids)
            assert places(node, ids) == who
            assert by_id_link() == pulled.nodes[0], "udev's link has moved"
    first.unplug()
    async with node.serve():
        await node.some_healthy(1)
        first.plug(wait=False)
        await node.healthy(*ids)
        assert places(node, ids) == who
        first.unplug(wait=False)
        second.unplug(wait=False)
        await node.healthy()
    for twin in (second, first):
        twin.plug()
    async with node.serve():
        await node.healthy(*ids)
        assert places(node, ids) == who


def by_id_link() -> str:
    return os.path.realpath("/dev/serial/by-id/usb-Maker_Serial_Thing_TWIN-if00")


def places(node: HardwareNode, ids: Collection[str]) -> dict[str, Path]:
    return {device_id: node.usb_device(device_id) for device_id in ids}


async def test_equal_serials_with_nothing_remembered(
    gadget: GadgetFactory, node: HardwareNode
) -> None:
    """Then udevd's time stamps say who came first."""
    twins = [gadget(serial=b"TWIN", port=port) for port in (4, 2)]
    for twin in twins:
        twin.plug()
    elsewhere = (
        "--link-dir",
        str(node.root / "first"),
        "--state-dir",
        str(node.root / "forgotten"),
    )
    async with node.serve(*elsewhere):
        ids = await node.some_healthy(2)
    async with node.serve():
        await node.healthy(*ids)
        assert node.usb_device(acm_id("TWIN")) == twins[0].device


async def test_the_ports_of_one_device_are_devices_of_their_own(
    gadget: GadgetFactory, node: HardwareNode
) -> None:
    device = gadget(functions=["acm", "acm"], serial=b"MODEM")
    one, two = acm_id("MODEM", 0), acm_id("MODEM", 2)
    async with node.serve():
        device.plug(wait=False)
        await node.healthy(one, two)
        container = await node.kubelet.run_container(SERIAL, device_ids=[two])
        (spec,) = container.devices
        with Line(spec.host_path) as application, device.line(1) as firmware:
            firmware.write(b"the second")
            assert application.read(10) == b"the second"
        device.unplug(wait=False)
        await node.healthy()


async def test_the_ports_of_one_device_are_one_device(
    gadget: GadgetFactory, node: HardwareNode
) -> None:
    device = gadget(functions=["acm", "acm"], serial=b"MODEM")
    resources = f"- {{name: {SERIAL}, unit: usb-device, containerPath: '/dev/modem{{port}}'}}"
    async with node.serve(resources=resources) as process:
        device.plug(wait=False)
        await node.healthy("usb-2341:0043-MODEM")
        container = await node.kubelet.run_container(SERIAL)
        assert [spec.container_path for spec in container.devices] == [
            "/dev/modem0",
            "/dev/modem1",
        ]
        assert [os.path.realpath(spec.host_path) for spec in container.devices] == device.nodes
        interface = device.ttys[1].interface
        driver = unbind(interface)
        await node.healthy()
        await process.wait_for_log("device incomplete")
        bind(interface, driver)
        await node.healthy("usb-2341:0043-MODEM")
        device.unplug(wait=False)
        await node.healthy()
        device.plug(wait=False)
        await node.healthy("usb-2341:0043-MODEM")


async def test_a_device_that_comes_back_with_other_descriptors(
    gadget: GadgetFactory, node: HardwareNode
) -> None:
    """As a board does that goes into its boot loader, and comes out of it."""
    board = gadget(serial=b"BOARD", port=0)
    loader = gadget(serial=b"BOARD", product_id=0x0036, port=0)
    as_board, as_loader = acm_id("BOARD"), "usb-2341:0036-BOARD-if00"

    def change(before: UsbGadget, after: UsbGadget) -> None:
        before.unplug(wait=False)
        after.plug(wait=False)

    board.plug()
    async with node.serve():
        await node.healthy(as_board)
        for _ in range(2):
            change(board, loader)
            await node.healthy(as_loader)
            change(loader, board)
            await node.healthy(as_board)
        assert node.states() == {as_board: True, as_loader: False}
