"""Many devices at once, and more events than fit: few messages, and the last one is the truth."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import TYPE_CHECKING

import pytest

from tests.node import SERIAL
from usbplugin.config import Config, Flapping
from usbplugin.discovery.udev import UdevSource

from .gadget import MAX_FUNCTIONS
from .qmp import MAX_SERIALS
from .serve import TIMEOUT, acm_id
from .sysfs import bind, unbind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .conftest import GadgetFactory, QemuSerialFactory
    from .events import Monitor
    from .gadget import UsbGadget
    from .qmp import QemuSerial
    from .serve import HardwareNode
    from .udevd import Udevd

pytestmark = pytest.mark.timeout(240)

_ROUNDS = 5


def plug(devices: Sequence[UsbGadget | QemuSerial]) -> None:
    for device in devices:
        device.plug(wait=False)


def unplug(devices: Sequence[UsbGadget | QemuSerial]) -> None:
    for device in devices:
        device.unplug(wait=False)


def rebind(devices: Sequence[UsbGadget | QemuSerial]) -> None:
    """Take all drivers off and put them back: that goes faster than any cable."""
    interfaces = [tty.interface for device in devices for tty in device.ttys]
    drivers = [unbind(interface) for interface in interfaces]
    for interface, driver in zip(interfaces, drivers, strict=True):
        bind(interface, driver)


async def test_all_that_fit_plugged_and_pulled_as_fast_as_the_kernel_goes(
    gadget: GadgetFactory,
    qemu_serial: QemuSerialFactory,
    node: HardwareNode,
    kernel_monitor: Monitor,
) -> None:
    gadgets = [gadget(serial=f"G-{number}".encode()) for number in range(MAX_FUNCTIONS)]
    serials = [qemu_serial(number) for number in range(MAX_SERIALS)]
    devices: list[UsbGadget | QemuSerial] = [*gadgets, *serials]
    ids = [
        *(acm_id(f"G-{number}") for number in range(MAX_FUNCTIONS)),
        *(f"usb-0403:6001-{serial.serial}-if00" for serial in serials),
    ]

    async def events(*actions: str) -> None:
        # In a thread, as all that blocks, for the kubelet goes on meanwhile.
        for action in actions:
            await asyncio.to_thread(kernel_monitor.wait_all, action, len(devices), timeout=60)

    async with node.serve():
        before = len(node.kubelet.log.messages)
        for _ in range(2):
            await asyncio.to_thread(plug, devices)
            await events("add")
            await asyncio.to_thread(unplug, devices)
            await events("remove")
        await asyncio.to_thread(plug, devices)
        await events("add")
        await node.kubelet.wait_healthy(SERIAL, ids, within=90)
        cables = len(node.kubelet.log.messages) - before
        for _ in range(_ROUNDS):
            await asyncio.to_thread(rebind, devices)
            await events("remove", "add")
        await node.kubelet.wait_healthy(SERIAL, ids, within=90)
        drivers = len(node.kubelet.log.messages) - before - cables
        # udevd gets done with one after the other, and so are they told of; the rest at once.
        assert cables < 5 * len(devices) * 2 / 3
        assert drivers < 2 * _ROUNDS * len(devices) / 3
        for device, device_id in zip(devices, ids, strict=True):
            assert [node.node_of(device_id)] == [tty.node for tty in device.ttys]
        pulled, left = devices[::2], ids[1::2]
        await asyncio.to_thread(unplug, pulled)
        await node.healthy(*left)
        assert set(node.states()) == set(ids)


def change(times: int) -> None:
    """Uevents that nobody cares for."""
    uevent = Path("/sys/class/mem/null/uevent")
    for _ in range(times):
        uevent.write_text("change")


async def test_more_events_than_the_socket_holds(
    gadget: GadgetFactory, node: HardwareNode, udevd: Udevd
) -> None:
    gone, stays, comes = (gadget(serial=serial) for serial in (b"GONE", b"STAYS", b"COMES"))
    gone.plug()
    stays.plug()
    async with node.serve() as process:
        await node.healthy(acm_id("GONE"), acm_id("STAYS"))
        process.signal(SIGSTOP)
        gone.unplug()
        comes.plug()
        udevd.stop()  # it would go on with the changes for a long time
        await asyncio.to_thread(change, 2_000)
        process.signal(SIGCONT)
        await process.wait_for_log("uevents were lost in a storm", within=TIMEOUT)
        await node.healthy(acm_id("STAYS"), acm_id("COMES"))
        rescans = {
            sample.labels["reason"]: sample.value
            for sample in await node.metrics()
            if sample.name == "usbplugin_rescans_total"
        }
        assert rescans["overflow"] >= 1
        # The new monitor hears what the old one would have.
        stays.unplug(wait=False)
        await node.healthy(acm_id("COMES"))


async def test_a_replug_among_lost_events_is_seen(
    gadget: GadgetFactory, node: HardwareNode, udevd: Udevd
) -> None:
    """Same device, same place, same number: only its life in sysfs is another."""
    device = gadget(serial=b"AGAIN")
    device.plug()
    async with node.serve() as process:
        await node.healthy(acm_id("AGAIN"))
        messages = len(node.kubelet.log.messages)
        process.signal(SIGSTOP)
        device.unplug()
        udevd.stop()
        await asyncio.to_thread(change, 2_000)
        device.plug(wait=False)
        device.wait_ready()
        process.signal(SIGCONT)
        await process.wait_for_log("uevents were lost in a storm", within=TIMEOUT)
        # udevd has yet to do its part: until then its node may not be handed out.
        await node.healthy()
        udevd.start()
        udevd.trigger()
        await node.healthy(acm_id("AGAIN"))
        assert len(node.kubelet.log.messages) == messages + 2


async def test_a_socket_that_holds_next_to_nothing(
    gadget: GadgetFactory, node: HardwareNode, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    devices = [gadget(serial=f"S-{number}".encode()) for number in range(4)]
    ids = [acm_id(f"S-{number}") for number in range(4)]
    config = Config(flapping=Flapping(times=60, window="1s"))
    async with node.run_agent([UdevSource(receive_buffer=1)], config):
        await node.kubelet.wait_for(lambda: bool(node.kubelet.log.messages))
        await asyncio.to_thread(plug, devices)
        await node.healthy(*ids)
        await asyncio.to_thread(unplug, devices)
        await node.healthy()
        plug(devices[:2])
        await node.healthy(*ids[:2])
    assert any("uevents were lost" in record.getMessage() for record in caplog.records)


async def test_events_that_change_nothing_are_no_message(
    gadget: GadgetFactory, node: HardwareNode, udevd: Udevd
) -> None:
    device, last = gadget(serial=b"CALM"), gadget(serial=b"LAST")
    device.plug()
    async with node.serve():
        await node.healthy(acm_id("CALM"))
        messages = len(node.kubelet.log.messages)
        for action in ("change", "add", "bind", "move", "online", "offline"):
            udevd.trigger(action)
            udevd.settle()
        last.plug(wait=False)
        await node.healthy(acm_id("CALM"), acm_id("LAST"))
        assert len(node.kubelet.log.messages) == messages + 1
