"""From the cable to the kubelet: what is plugged in is offered, handed over, and missed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import GadgetFactory
    from .serve import HardwareNode

async def test_x(gadget: GadgetFactory, node: HardwareNode) -> None:
    import time
    device = gadget(serial=b"A1")
    t=time.monotonic()
    async with node.serve() as process:
        print("served", time.monotonic()-t)
        t=time.monotonic()
        device.plug(wait=False)
        await node.healthy("usb-2341:0043-A1-if00")
        print("plugged", time.monotonic()-t)
        t=time.monotonic()
        device.unplug(wait=False)
        await node.healthy()
        print("unplugged", time.monotonic()-t)
        print(process.log())

@pytest.mark.parametrize("n",range(4))
async def test_y(gadget: GadgetFactory, node: HardwareNode,n) -> None:
    await test_x(gadget,node)
