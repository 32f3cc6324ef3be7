"""In the hardware VM: from the kernel's uevent to the kubelet's stream, with udevd's share apart.

All times are on the guest's CLOCK_MONOTONIC: when the uevent is read from the netlink socket, when
udevd recorded that it had finished (USEC_INITIALIZED), and when the embedded kubelet has the
message.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import select
import socket
import sys
import threading
import time
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from benchmarks.latency import bare_node
from benchmarks.report import Report
from tests.hardware.gadget import UsbGadget
from tests.hardware.qmp import MAX_SERIALS, QemuSerial, Qmp
from tests.hardware.serve import HardwareNode, acm_id

if TYPE_CHECKING:
    from tests.node import Process

_KOBJECT_UEVENT = 15  # NETLINK_KOBJECT_UEVENT in linux/netlink.h
_KERNEL_GROUP = 1
_DATABASE = Path("/run/udev/data")
_TICKS = os.sysconf("SC_CLK_TCK")


class UeventClock:
    """Notes when tty uevents arrive, in a thread of its own."""

    def __init__(self) -> None:
        self._times: dict[tuple[str, str], float] = {}
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _KOBJECT_UEVENT)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.bind((0, _KERNEL_GROUP))
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._stopped)
        self._thread.join()
        os.close(self._stop)
        self._socket.close()

    def _run(self) -> None:
        files = [self._socket.fileno(), self._stop]
        while self._stop not in select.select(files, [], [])[0]:
            now = time.monotonic()
            head, _, rest = self._socket.recv(8192).partition(b"\0")
            if b"\0SUBSYSTEM=tty\0" in rest:
                action, _, path = head.decode().partition("@")
                self._times[action, path.rpartition("/")[2]] = now

    def last(self, action: str, name: str) -> float:
        return self._times[action, name]


def initialized(number: str) -> float:
    """When udevd finished with a tty."""
    for line in (_DATABASE / f"c{number}").read_text().splitlines():
        if line.startswith("I:"):
            return int(line[2:]) / 1e6
    raise AssertionError(f"udevd has not finished with {number}")


def cpu_seconds(process: Process) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def first_message(node: HardwareNode, device_id: str, *, healthy: bool) -> float:
    """When the kubelet first received that health for the device, since its log was cleared."""
    return next(
        message.time
        for message in node.kubelet.log.messages
        for device in message.devices
        if device.id == device_id and device.healthy is healthy
    )


async def one_by_one(report: Report, node: HardwareNode, process: Process, rounds: int) -> None:
    udevd, ours, plugs, unplugs, least = [], [], [], [], []
    device_id = acm_id("BENCH")
    async with AsyncExitStack() as stack:
        bare = await stack.enter_async_context(bare_node(1))
        clock = stack.enter_context(UeventClock())
        gadget = UsbGadget.create("bench", serial=b"BENCH")
        stack.callback(gadget.remove)
        before = cpu_seconds(process)
        for _ in range(rounds):
            node.kubelet.log.clear()
            gadget.plug(wait=False)
            await node.healthy(device_id)
            (tty,) = gadget.ttys
            heard = clock.last("add", tty.name)
            done = initialized(tty.number)
            told = first_message(node, device_id, healthy=True)
            udevd.append(done - heard)
            ours.append(told - done)
            plugs.append(told - heard)
            node.kubelet.log.clear()
            gadget.unplug(wait=False)
            await node.healthy()
            told = first_message(node, device_id, healthy=False)
            unplugs.append(told - clock.last("remove", tty.name))
            least.append(await bare.time("plug", 0))
        spent = cpu_seconds(process) - before
    report.times("plug: kernel's uevent -> kubelet", plugs)
    report.times("  udevd's share", udevd)
    report.times("  ours", ours)
    report.times("unplug: kernel's uevent -> kubelet", unplugs)
    report.times("a bare gRPC message, plugin -> kubelet", least)
    report.add("the plugin's CPU for a plug and an unplug", 1000 * spent / rounds, "ms")


def plug(serials: list[QemuSerial]) -> None:
    for serial in serials:
        serial.plug(wait=False)


def unplug(serials: list[QemuSerial]) -> None:
    for serial in serials:
        if serial.is_plugged:
            serial.unplug(wait=False)


async def all_at_once(report: Report, node: HardwareNode, process: Process, rounds: int) -> None:
    udevd, ours, plugs, unplugs, messages = [], [], [], [], 0
    with ExitStack() as stack:
        qmp = stack.enter_context(Qmp())
        clock = stack.enter_context(UeventClock())
        serials = [QemuSerial(qmp, index) for index in range(MAX_SERIALS)]
        stack.callback(unplug, serials)
        ids = {serial.serial: f"usb-0403:6001-{serial.serial}-if00" for serial in serials}
        before = cpu_seconds(process)
        for _ in range(rounds):
            node.kubelet.log.clear()
            await asyncio.to_thread(plug, serials)
            await node.healthy(*ids.values())
            names = {}
            for serial in serials:
                (tty,) = serial.ttys
                names[serial.serial] = tty.name
                heard = clock.last("add", tty.name)
                done = initialized(tty.number)
                told = first_message(node, ids[serial.serial], healthy=True)
                udevd.append(done - heard)
                ours.append(told - done)
                plugs.append(told - heard)
            messages += len(node.kubelet.log.messages)
            node.kubelet.log.clear()
            await asyncio.to_thread(unplug, serials)
            await node.healthy()
            for serial in serials:
                told = first_message(node, ids[serial.serial], healthy=False)
                unplugs.append(told - clock.last("remove", names[serial.serial]))
            messages += len(node.kubelet.log.messages)
        spent = cpu_seconds(process) - before
    report.times(f"{MAX_SERIALS} at once, plug: kernel's uevent -> kubelet", plugs)
    report.times("  udevd's share", udevd)
    report.times("  ours", ours)
    report.times(f"{MAX_SERIALS} at once, unplug: kernel's uevent -> kubelet", unplugs)
    report.add("  stream messages for a plug and an unplug of all", messages / rounds, "")
    report.add("  the plugin's CPU for that", 1000 * spent / rounds, "ms")


async def measure(report: Report, rounds: int, storms: int) -> None:
    async with HardwareNode() as node, node.serve() as process:
        await one_by_one(report, node, process, rounds)
        await all_at_once(report, node, process, storms)


def main() -> int:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    parser = argparse.ArgumentParser(
        prog="make hardware-bench", description="Measure usbplugin on a real USB stack."
    )
    parser.add_argument("--rounds", type=int, default=200, help="with one device (default 200)")
    parser.add_argument("--storms", type=int, default=5, help="with all devices (default 5)")
    parser.add_argument("--output", type=Path, default=Path("results/hardware/bench.json"))
    options = parser.parse_args()
    report = Report()
    asyncio.run(measure(report, options.rounds, options.storms))
    report.write(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
