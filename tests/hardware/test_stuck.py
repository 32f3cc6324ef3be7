"""A device that hangs in the kernel: whoever reads its attributes waits, perhaps for good."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import TYPE_CHECKING

import pytest

from tests.deploy.tools import missing
from tests.node import SERIAL
from usbplugin.virtual import CreateContainerConfigError, UnexpectedAdmissionError

from .serve import TIMEOUT, acm_id
from .stuck import HeldLock, Queued, problem, stuck_on_arrival
from .sysfs import ttys_of

if TYPE_CHECKING:
    from .conftest import GadgetFactory
    from .gadget import UsbGadget
    from .serve import HardwareNode

pytestmark = pytest.mark.timeout(120)

MINE, OTHER = acm_id("MINE"), acm_id("OTHER")


@pytest.fixture(autouse=True)
def lock_can_be_held() -> None:
    if reason := problem():
        missing(reason)


def test_it_hangs(gadget: GadgetFactory) -> None:
    """The other tests would pass, were it not so."""
    device = gadget(serial=b"MINE")
    device.plug()
    for attribute in ("serial", "manufacturer", "product"):
        with HeldLock(device.device):
            reading = Queued((device.device / attribute).read_bytes)
            reading.join_for(0.5)
            assert not reading.is_done
            assert (device.device / "idVendor").read_text() == "2341\n"
        reading.join()


async def test_no_container_starts_on_a_device_that_does_not_answer(
    gadget: GadgetFactory, node: HardwareNode
) -> None:
    device, other = gadget(serial=b"MINE"), gadget(serial=b"OTHER")
    device.plug()
    other.plug()
    async with node.serve():
        await node.healthy(MINE, OTHER)
        container = await node.kubelet.run_container(SERIAL, device_ids=[MINE], pod="first")
        with HeldLock(device.device):
            began = time.monotonic()
            with pytest.raises(CreateContainerConfigError, match=f"{MINE} does not answer"):
                await container.restart()
            assert 2 <= time.monotonic() - began < 4
            # Meanwhile others are served as ever.
            began = time.monotonic()
            await node.kubelet.run_container(SERIAL, device_ids=[OTHER], pod="second")
            assert time.monotonic() - began < 1
        await container.start()


async def test_a_device_that_does_not_answer_is_not_granted_where_nobody_asks_before_the_start(
    gadget: GadgetFactory, node: HardwareNode
) -> None:
    device = gadget(serial=b"MINE")
    device.plug()
    async with node.serve(resources=f"- {{name: {SERIAL}, preStart: false}}"):
        await node.healthy(MINE)
        with (
            HeldLock(device.device),
            pytest.raises(UnexpectedAdmissionError, match=f"{MINE} does not answer"),
        ):
            await node.kubelet.run_container(SERIAL)
        # Whoever waited for the kernel notices in its own time that it answers.
        async with asyncio.timeout(TIMEOUT):
            while True:
                try:
                    await node.kubelet.run_container(SERIAL)
                except UnexpectedAdmissionError as error:
                    assert "does not answer" in str(error)
                    await asyncio.sleep(0.05)
                else:
                    break


async def delay(node: HardwareNode, device: UsbGadget, stuck: UsbGadget | None = None) -> float:
    """Seconds from the pulling of a cable to the kubelet, in the median.

    Args:
        node: Where the device is listed.
        device: It is plugged in and pulled.
        stuck: A device that hangs, of which there is news each time.
    """
    seconds = []
    for _ in range(5):
        device.plug(wait=False)
        await node.kubelet.wait_for(lambda: node.states().get(OTHER, False), TIMEOUT)
        for tty in ttys_of(stuck.device) if stuck else ():
            (tty.path / "uevent").write_text("change")
        began = time.monotonic()
        device.unplug(wait=False)
        await node.kubelet.wait_for(lambda: not node.states()[OTHER], TIMEOUT)
        seconds.append(time.monotonic() - began)
    return statistics.median(seconds)


@pytest.mark.parametrize("when", ["known", "arriving"])
async def test_one_that_hangs_delays_no_other(
    gadget: GadgetFactory, node: HardwareNode, when: str
) -> None:
    device, other = gadget(serial=b"MINE"), gadget(serial=b"OTHER")
    async with node.serve():
        if when == "known":
            device.plug(wait=False)
            await node.healthy(MINE)
        usual = await delay(node, other)
        with HeldLock(device.device) if when == "known" else stuck_on_arrival(device):
            assert await delay(node, other, device) < usual + 0.05
        await node.healthy(MINE)


async def test_one_that_hangs_as_it_comes_back_is_unhealthy_and_said_to_hang(
    gadget: GadgetFactory, node: HardwareNode
) -> None:
    device = gadget(serial=b"MINE")
    device.plug()
    async with node.serve() as process:
        await node.healthy(MINE)
        container = await node.kubelet.run_container(SERIAL)
        device.unplug(wait=False)
        await node.healthy()
        with stuck_on_arrival(device):
            await process.wait_for_log("does not answer", within=TIMEOUT)
            assert node.states() == {MINE: False}
            with pytest.raises(CreateContainerConfigError):
                await container.restart()
        await node.healthy(MINE)
        await container.start()


async def test_one_that_hangs_from_the_start_keeps_nobody_waiting(
    gadget: GadgetFactory, node: HardwareNode
) -> None:
    device, other = gadget(serial=b"MINE"), gadget(serial=b"OTHER")
    other.plug()
    with stuck_on_arrival(device):
        async with node.serve() as process:
            await node.healthy(OTHER)
            await process.wait_for_log("does not answer", within=TIMEOUT)
            await node.kubelet.run_container(SERIAL)
    async with node.serve():
        await node.healthy(MINE, OTHER)
