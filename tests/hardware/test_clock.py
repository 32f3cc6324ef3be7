"""The machine's wall clock jumps, as where there is no battery and NTP comes late."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.node import SERIAL

from .serve import acm_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .conftest import GadgetFactory
    from .serve import HardwareNode

pytestmark = pytest.mark.timeout(120)

DAY = 86_400.0


@contextmanager
def jumped(seconds: float) -> Iterator[None]:
    """A wall clock that has jumped by so much, and jumps back in the end."""
    time.clock_settime(time.CLOCK_REALTIME, time.time() + seconds)
    try:
        yield
    finally:
        time.clock_settime(time.CLOCK_REALTIME, time.time() - seconds)


async def test_devices_come_and_go_and_are_remembered_whatever_the_clock_says(
    gadget: GadgetFactory, node: HardwareNode
) -> None:
    device, away = gadget(serial=b"MINE"), gadget(serial=b"AWAY")
    device.plug()
    away.plug()
    mine, other = acm_id("MINE"), acm_id("AWAY")
    async with node.serve() as process:
        await node.healthy(mine, other)
        container = await node.kubelet.run_container(SERIAL, device_ids=[mine])
        away.unplug(wait=False)
        await node.healthy(mine)
        for seconds in (DAY, -2 * DAY, 3650 * DAY):
            with jumped(seconds):
                device.unplug(wait=False)
                await node.healthy()
                # Neither is forgotten: it has not been an hour.
                assert node.states() == {mine: False, other: False}
                device.plug(wait=False)
                await node.healthy(mine)
                await container.restart()
        assert "udevd did not finish in time" not in process.log()
