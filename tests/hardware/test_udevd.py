"""With udevd stopped, crashed, started again, at work, or absent: late perhaps, never wrong."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.node import SERIAL
from usbplugin.discovery.udev import UdevTiming

from .pod import without_udev
from .serve import TIMEOUT, acm_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .conftest import GadgetFactory
    from .serve import HardwareNode
    from .udevd import Udevd

pytestmark = pytest.mark.timeout(180)

NOT_IN_TIME = "udevd did not finish in time"
BY_ID = "/dev/serial/by-id"
RESOURCES = f"- {{name: {SERIAL}, byIdLinks: true}}"


async def test_a_udevd_that_is_gone_is_waited_for_once(
    gadget: GadgetFactory, node: HardwareNode, udevd: Udevd
) -> None:
    devices = [gadget(serial=serial) for serial in (b"EARLY", b"FIRST", b"SECOND")]
    early, first, second = devices
    ids = [acm_id(serial) for serial in ("EARLY", "FIRST", "SECOND")]
    early.plug()
    async with node.serve("--log-level", "debug", resources=RESOURCES) as process:
        await node.healthy(ids[0])
        udevd.stop(signal.SIGKILL)
        first.plug(wait=False)
        await node.healthy(*ids[:2])
        assert NOT_IN_TIME in process.log()
        second.plug(wait=False)
        await node.healthy(*ids)
        early.unplug(wait=False)
        await node.healthy(*ids[1:])
        early.plug(wait=False)  # the same number: udevd's entry is that of its last life
        await node.healthy(*ids)
        assert process.log().count(NOT_IN_TIME) == 1

        udevd.start()
        udevd.trigger()
        await process.wait_for_log("udevd is working again", within=TIMEOUT)
        for device_id, serial in zip(ids, ("EARLY", "FIRST", "SECOND"), strict=True):
            await process.wait_for_log(f"device changed device={device_id} ", within=TIMEOUT)
            assert await links(node, device_id) == [f"{BY_ID}/usb-Maker_Serial_Thing_{serial}-if00"]


async def links(node: HardwareNode, device_id: str) -> list[str]:
    """The by-id names under which a container is given the device."""
    container = await node.kubelet.run_container(SERIAL, device_ids=[device_id])
    container.remove()
    return [spec.container_path for spec in container.devices if "by-id" in spec.container_path]


async def test_udevd_restarted_between_plug_and_unplug(
    gadget: GadgetFactory, node: HardwareNode, udevd: Udevd
) -> None:
    """No entry of a device that left unseen is waited for, or taken for the one that comes."""
    device = gadget(serial=b"MINE")
    async with node.serve() as process:
        for how in (signal.SIGTERM, signal.SIGKILL, None):
            complaints = process.log().count(NOT_IN_TIME)
            plugged = time.monotonic()
            device.plug()
            took = time.monotonic() - plugged
            await node.healthy(acm_id("MINE"))
            # On a machine that is busy, udevd itself may need longer than it is waited for.
            if took < UdevTiming().settle_deadline:
                assert process.log().count(NOT_IN_TIME) == complaints
            if how is not None:
                udevd.stop(how)
                device.unplug()
                await node.healthy()
                udevd.start()


async def test_udevd_starts_while_the_plugin_runs(
    gadget: GadgetFactory, node: HardwareNode, udevd: Udevd
) -> None:
    device = gadget(serial=b"MINE")
    udevd.stop()
    os.rename("/run/udev", "/run/udev.away")
    try:
        async with node.serve("--log-level", "debug", resources=RESOURCES) as process:
            assert "no udevd found" in process.log()
            device.plug(wait=False)
            await node.healthy(acm_id("MINE"))
            os.rename("/run/udev.away", "/run/udev")
            udevd.start()
            udevd.trigger()
            await process.wait_for_log("device changed", within=TIMEOUT)
            assert await links(node, acm_id("MINE")) == [
                f"{BY_ID}/usb-Maker_Serial_Thing_MINE-if00"
            ]
    finally:
        if os.path.exists("/run/udev.away"):
            os.rename("/run/udev.away", "/run/udev")


async def test_where_its_database_is_not_mounted(gadget: GadgetFactory, node: HardwareNode) -> None:
    device = gadget(serial=b"MINE")
    async with node.serve(wrap=without_udev) as process:
        for _ in range(2):
            device.plug(wait=False)
            await node.healthy(acm_id("MINE"))
            device.unplug(wait=False)
            await node.healthy()
        assert 'udevd="not seen"' in process.log()
        assert process.log().count("WARNING no udevd found") == 1
        assert "mount its /run/udev/data" in process.log()


@contextmanager
def rule(text: str, udevd: Udevd) -> Iterator[None]:
    path = Path("/run/udev/rules.d/90-test.rules")
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    udevd.reload()
    try:
        yield
    finally:
        path.unlink()
        udevd.reload()


async def test_what_udevd_changes_later_is_seen_at_once(
    gadget: GadgetFactory, node: HardwareNode, udevd: Udevd
) -> None:
    device = gadget(serial=b"MINE")
    device.plug()
    async with node.serve("--log-level", "debug", resources=RESOURCES) as process:
        await node.healthy(acm_id("MINE"))
        with rule('SUBSYSTEM=="tty", SYMLINK+="serial/by-id/usb-mine"\n', udevd):
            udevd.trigger("change")
            await process.wait_for_log("device changed", within=TIMEOUT)
            assert f"{BY_ID}/usb-mine" in await links(node, acm_id("MINE"))
        udevd.trigger("change")
        udevd.settle()


async def test_a_slow_rule_holds_a_port_back_until_it_is_done(
    gadget: GadgetFactory, node: HardwareNode, udevd: Udevd, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    device = gadget(serial=b"MINE")
    text = f'SUBSYSTEM=="tty", ACTION=="add", PROGRAM="/bin/cat {gate}", GROUP="20", MODE="0640"\n'
    with rule(text, udevd):
        async with node.serve():
            device.plug(wait=False)
            # Returns when the rule has begun; it ends when nobody has the gate open.
            opened = await asyncio.to_thread(os.open, gate, os.O_WRONLY)
            assert node.states() == {}
            os.close(opened)
            await node.healthy(acm_id("MINE"))
            assert os.stat(device.nodes[0]).st_mode & 0o777 == 0o640


async def test_without_inotify_it_looks_again_and_again(
    gadget: GadgetFactory, node: HardwareNode
) -> None:
    device = gadget(serial=b"MINE")
    limit = Path("/proc/sys/fs/inotify/max_user_instances")
    before = limit.read_text()
    limit.write_text("0")
    try:
        async with node.serve() as process:
            assert "database=polled" in process.log()
            device.plug(wait=False)
            await node.healthy(acm_id("MINE"))
            assert node.node_of(acm_id("MINE")) == device.nodes[0]
            device.unplug(wait=False)
            await node.healthy()
            assert "raise fs.inotify.max_user_instances" in process.log()
    finally:
        limit.write_text(before)
