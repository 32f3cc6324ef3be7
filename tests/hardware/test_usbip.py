"""Sticks that come by USB/IP: the port they are given depends on who is attached first."""

from __future__ import annotations

import os
import re
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.deploy.tools import missing
from tests.node import SERIAL
from usbplugin.virtual import CreateContainerConfigError

from . import usbip
from .sysfs import Tty

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from usbplugin.virtual import Container

    from .conftest import GadgetFactory
    from .gadget import UsbGadget
    from .serve import HardwareNode

    Export = Callable[[UsbGadget], usbip.Exported]

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def export() -> Iterator[Export]:
    """Export gadgets that are plugged in; they are back after the test."""
    if problem := usbip.load():
        missing(problem)
    with ExitStack() as stack:

        def make(gadget: UsbGadget) -> usbip.Exported:
            exported = usbip.Exported(gadget.device)
            stack.callback(exported.stop)
            return exported

        yield make


def stick(container: Container) -> str:
    """What is written on the stick that a container would open."""
    (spec,) = container.devices
    tty = Tty.named(os.path.basename(os.path.realpath(spec.host_path)))
    return (tty.device / "product").read_text().strip()


async def test_the_order_in_which_sticks_are_attached_gives_no_container_anothers(
    gadget: GadgetFactory, export: Export, node: HardwareNode
) -> None:
    names = ["Stick A", "Stick B"]
    sticks = []
    for name in names:
        device = gadget(serial=None, product=name.encode(), vendor_id=0x1A86, product_id=0x7523)
        device.plug()
        sticks.append(export(device))
    async with node.serve() as process:
        containers: list[Container] = []
        seen: set[str] = set()
        for name, exported in zip(names, sticks, strict=True):
            exported.attach()
            known = await node.some_healthy(len(containers) + 1)
            (device_id,) = known - seen
            seen.add(device_id)
            assert re.fullmatch(r"usb-1a86:7523-once-[0-9a-f]{16}-if00", device_id)
            container = await node.kubelet.run_container(SERIAL, device_ids=[device_id], pod=name)
            assert stick(container) == name
            containers.append(container)
        before = [exported.ttys[0].path.parts[6:8] for exported in sticks]
        for exported in sticks:
            exported.detach()
        await node.healthy()

        for exported in reversed(sticks):
            exported.attach()
        assert [e.ttys[0].path.parts[6:8] for e in sticks] == before[::-1], "the other's place"
        # New ones: nothing tells them from others. Of those that are held, none is taken for one.
        # Their numbers are those of the others' containers, until these ask to be started.
        for container in containers:
            with pytest.raises(CreateContainerConfigError, match="is gone"):
                await container.restart()
        new = await node.some_healthy(2)
        assert not new & seen
        assert {device_id: node.states()[device_id] for device_id in seen} == dict.fromkeys(
            seen, False
        )
        for container in containers:
            with pytest.raises(CreateContainerConfigError, match="is gone"):
                await container.start()
            container.remove()
        # Pods that take their place get one each, and it is the one that the path leads to.
        ours = {
            device_id: await node.kubelet.run_container(SERIAL, device_ids=[device_id], pod=f"{n}")
            for n, device_id in enumerate(sorted(new))
        }
        assert {stick(container) for container in ours.values()} == set(names)
        assert "ERROR" not in process.log()
