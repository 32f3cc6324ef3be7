"""A device that hangs in the kernel: whoever reads its attributes waits, perhaps for good."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.deploy.tools import missing
from tests.node import SERIAL
from usbplugin.virtual import CreateContainerConfigError, UnexpectedAdmissionError

from .serve import acm_id
from .stuck import HeldLock, Queued, problem

if TYPE_CHECKING:
    from .conftest import GadgetFactory
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
        await node.kubelet.run_container(SERIAL)
