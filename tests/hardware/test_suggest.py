"""What ``usbplugin suggest`` prints selects the stick it was made for, by its real descriptors."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from usbplugin.config import parse
from usbplugin.discovery.udev import UdevSource
from usbplugin.inventory import first_match

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator

    from .conftest import GadgetFactory
    from .gadget import UsbGadget

pytestmark = pytest.mark.timeout(300)

# A program starts slowly in an emulated machine, and very slowly beside a busy one.
PATIENCE = 90.0

COMMAND = (sys.executable, "-m", "usbplugin", "suggest")


@asynccontextmanager
async def suggesting(*flags: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(*COMMAND, *flags, stdout=PIPE, stderr=PIPE)
    try:
        async with asyncio.timeout(PATIENCE):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def suggested() -> str:
    async with suggesting() as process:
        out, error = await process.communicate()
    assert process.returncode == 0, error.decode()
    return out.decode()


def taken(text: str) -> dict[str, str]:
    """Which resource of the suggested configuration each node belongs to."""
    rules = parse(text.partition("---\n")[0].encode()).rules()
    found = {}
    for port in UdevSource().scan():
        rule = first_match(rules, port)
        assert rule
        found[port.node] = rule.name
    return found


def nodes_of(*gadgets: UsbGadget) -> list[str]:
    return [node for gadget in gadgets for node in gadget.nodes]


async def test_a_stick_by_its_serial_wherever_it_is(gadget: GadgetFactory) -> None:
    stick = gadget(functions=["ftdi"], serial=b"A5[0]*", product=b"Zigbee \x1b[31mStick", port=3)
    other = gadget(functions=["ftdi"], serial=b"A50xx", port=1)
    stick.plug()
    text = await suggested()
    assert "WARNING" not in text
    other.plug()
    stick.unplug()
    stick.plug(port=5)
    assert taken(text) == {
        stick.nodes[0]: "usbplugin/zigbee-x1b-31mstick",
        other.nodes[0]: "usbplugin/serial",
    }


async def test_sticks_without_a_serial_or_with_one_and_the_same(gadget: GadgetFactory) -> None:
    bare = [gadget(serial=None, product=b"Bare", port=port) for port in (0, 1)]
    twins = [gadget(serial=b"TWIN", product=b"Twin", port=port) for port in (2, 3)]
    for one in (*bare, *twins):
        one.plug()
    text = await suggested()
    assert text.count("WARNING: it has no serial number") == 2
    assert text.count("has the same serial number") == 2
    assert set(taken(text).values()) == {
        "usbplugin/bare", "usbplugin/bare-2", "usbplugin/twin", "usbplugin/twin-2",
    }  # fmt: skip
    before = {nodes_of(one)[0]: taken(text)[nodes_of(one)[0]] for one in (*bare, *twins)}
    by_gadget = [before[one.nodes[0]] for one in (*bare, *twins)]
    for one in (*bare, *twins):
        one.unplug()
    for one in reversed((*bare, *twins)):
        one.plug()
    after = taken(text)
    assert [after[one.nodes[0]] for one in (*bare, *twins)] == by_gadget


async def test_the_next_one_with_all_its_ports(gadget: GadgetFactory) -> None:
    here = gadget(serial=b"HERE")
    here.plug()
    modem = gadget(functions=["acm", "acm"], serial=b"MODEM", product=b"Modem")
    async with suggesting("--watch") as process:
        assert process.stderr
        assert b"waiting" in await process.stderr.readline()
        modem.plug(wait=False)
        out, _ = await process.communicate()
    text = out.decode()
    assert process.returncode == 0
    assert "unit: usb-device" in text
    modem.wait_ready()
    one, two = modem.nodes
    assert taken(text) == {
        here.nodes[0]: "usbplugin/serial",
        one: "usbplugin/modem",
        two: "usbplugin/modem",
    }
