"""``usbplugin serve`` as a process: start, memory, idleness, a kubelet's restart."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import floor
from usbplugin.virtual import Descriptors, EmbeddedKubelet, VirtualBus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.report import Report

RESOURCE = "usbplugin/serial"
DEVICES = 10
_SETTLE_SECONDS = 5


@asynccontextmanager
async def process(*command: str) -> AsyncIterator[int]:
    with subprocess.Popen([sys.executable, "-m", *command], stderr=subprocess.DEVNULL) as running:
        try:
            yield running.pid
        finally:
            running.kill()


def memory(pid: int) -> float:
    """Resident memory, MiB."""
    return _status(Path(f"/proc/{pid}/status"), "VmRSS") / 1024


def switches(pid: int) -> int:
    """Voluntary context switches of all threads: how often something woke up."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(_status(task / "status", "voluntary_ctxt_switches") for task in tasks)


def cpu(pid: int) -> float:
    """Seconds of CPU used, by proc(5)'s utime and stime, whose ticks are 1/100 s."""
    values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(values[11]) + int(values[12])) / 100


def _status(path: Path, key: str) -> int:
    line = next(line for line in path.read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1])


async def idle(pid: int, seconds: float) -> tuple[float, float]:
    """Wake-ups per second, and CPU in percent."""
    await asyncio.sleep(_SETTLE_SECONDS)
    woken, used = switches(pid), cpu(pid)
    await asyncio.sleep(seconds)
    return (switches(pid) - woken) / seconds, 100 * (cpu(pid) - used) / seconds


async def measure(report: Report, idle_seconds: float, starts: int, restarts: int) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="up-") as scratch,
        VirtualBus(Path(scratch) / "dev") as bus,
    ):
        root = Path(scratch)
        for number in range(DEVICES):
            bus.plug(
                f"ttyUSB{number}",
                Descriptors(vendor_id="0403", product_id="6001", serial=f"SN-{number:04}"),
            )
        serve = (
            *("usbplugin", "serve", "--no-udev", "--device-dir", str(bus.directory)),
            *("--kubelet-dir", str(root / "kubelet"), "--link-dir", str(root / "links")),
        )
        async with EmbeddedKubelet(root / "kubelet") as kubelet:
            times = []
            for count in range(1, starts + 1):
                began = time.monotonic()
                async with process(*serve):
                    await kubelet.wait_for(lambda n=count: len(kubelet.log.registrations) >= n)  # type: ignore[misc]
                    times.append(kubelet.log.registrations[-1].time - began)
            report.times("process start -> registered", times, 500)

            async with process(*serve) as pid:
                await kubelet.wait_for(lambda: len(kubelet.resource(RESOURCE).healthy) == DEVICES)
                times = []
                for _ in range(restarts):
                    await kubelet.stop()
                    seen = len(kubelet.log.messages)
                    await kubelet.start()
                    began = time.monotonic()
                    await kubelet.wait_for(lambda seen=seen: len(kubelet.log.messages) > seen)  # type: ignore[misc]
                    times.append(kubelet.log.messages[-1].time - began)
                report.times("kubelet's socket is there -> streaming", times, 50)
                report.add(f"resident, {DEVICES} devices", memory(pid), "MiB", 48)
                wakes, used = await idle(pid, idle_seconds)
        async with (
            EmbeddedKubelet(root / "floor") as kubelet,
            process("benchmarks.floor", str(root / "floor")) as pid,
        ):
            await kubelet.wait_for(lambda: kubelet.resource(floor.RESOURCE).connected)
            report.add("  the floor's resident", memory(pid), "MiB")
            floor_wakes, floor_used = await idle(pid, idle_seconds)
        report.add("idle wake-ups", wakes, "1/s", floor_wakes + 5, f"floor {floor_wakes:.1f}")
        report.add("idle CPU", used, "%", 0.5, f"floor {floor_used:.3f}")
