"""``usbplugin serve`` as a process: start, a kubelet's restart, idleness; what proc(5) tells."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import floor
from benchmarks.commands import scratch, subject
from benchmarks.subject import RESOURCE
from usbplugin.virtual import EmbeddedKubelet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from benchmarks.report import Report

DEVICES = 10
_SETTLE_SECONDS = 15
"""So long gRPC's threads look around ever more rarely after their last work."""
_IDLE_PROCESSES = 3


@contextmanager
def process(*command: str) -> Iterator[int]:
    """``python -m COMMAND``, killed in the end."""
    with subprocess.Popen([sys.executable, "-m", *command], stderr=subprocess.DEVNULL) as running:
        try:
            yield running.pid
        finally:
            running.kill()


def resident(pid: int) -> float:
    """Resident memory, MiB."""
    return _status(Path(f"/proc/{pid}/status"), "VmRSS") / 1024


def switches(pid: int) -> int:
    """Voluntary context switches of all threads: how often something woke up."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(_status(task / "status", "voluntary_ctxt_switches") for task in tasks)


def cpu(pid: int) -> float:
    """Seconds of CPU used by all threads that live, to the nanosecond."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def _status(path: Path, key: str) -> int:
    line = next(line for line in path.read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1])


class Idleness:
    """What a process does while nothing happens."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._began = time.monotonic()
        self._switches = switches(pid)
        self._cpu = cpu(pid)

    def wakes(self) -> float:
        """Wake-ups per second since the beginning."""
        return (switches(self._pid) - self._switches) / (time.monotonic() - self._began)

    def busy(self) -> float:
        """CPU since the beginning, in percent."""
        return 100 * (cpu(self._pid) - self._cpu) / (time.monotonic() - self._began)


@contextmanager
def served(count: int) -> Iterator[tuple[EmbeddedKubelet, list[str]]]:
    """A kubelet, not started yet, and the command that serves so many devices to it.

    They are entries of a directory, each with descriptors of its own; all lead to /dev/null.
    """
    with scratch() as path:
        root = Path(path)
        devices = root / "dev"
        devices.mkdir()
        for number in range(count):
            (devices / f"ttyUSB{number}").symlink_to("/dev/null")
            (devices / f".ttyUSB{number}.json").write_text(
                json.dumps({"vendor_id": "0403", "product_id": "6001", "serial": f"SN-{number:04}"})
            )
        kubelet = EmbeddedKubelet(root / "kubelet", pod_resources=root / "pod-resources.sock")
        serve = [
            *("usbplugin", "serve", "--no-udev", "--device-dir", str(devices)),
            *("--kubelet-dir", str(root / "kubelet"), "--link-dir", str(root / "links")),
            *("--pod-resources", str(root / "pod-resources.sock")),
        ]
        yield kubelet, serve


async def measure(report: Report, idle_seconds: float, starts: int, restarts: int) -> None:
    with served(DEVICES) as (kubelet, serve):
        async with kubelet:
            await _measure_starts(report, kubelet, serve, starts)
            await _measure_restarts(report, kubelet, serve, restarts)
    await _measure_idleness(report, idle_seconds)


async def _measure_starts(
    report: Report, kubelet: EmbeddedKubelet, serve: list[str], starts: int
) -> None:
    times = []
    for count in range(1, starts + 1):
        began = time.monotonic()
        with process(*serve):
            await kubelet.wait_for(lambda n=count: len(kubelet.log.registrations) >= n)  # type: ignore[misc]
            times.append(kubelet.log.registrations[-1].time - began)
    report.times("process start -> registered", times, 500)


async def _measure_restarts(
    report: Report, kubelet: EmbeddedKubelet, serve: list[str], restarts: int
) -> None:
    with process(*serve):
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


async def _measure_idleness(report: Report, seconds: float) -> None:
    """Several of ours and of the floor, all at the same time, for the machine is the same then.

    Medians, for how often gRPC's idle threads wake up is partly luck, and differs from one process
    to the next.
    """
    async with AsyncExitStack() as running:
        pids = [
            (
                await running.enter_async_context(_idle_plugin()),
                await running.enter_async_context(_idle_floor()),
            )
            for _ in range(_IDLE_PROCESSES)
        ]
        await asyncio.sleep(_SETTLE_SECONDS)
        ours, bare = ([Idleness(pid) for pid in of_one] for of_one in zip(*pids, strict=True))
        await asyncio.sleep(seconds)
        floor_wakes = statistics.median(one.wakes() for one in bare)
        floor_busy = statistics.median(one.busy() for one in bare)
        report.add(
            "idle wake-ups", statistics.median(one.wakes() for one in ours), "1/s", floor_wakes + 1
        )
        report.add("  the floor's", floor_wakes, "1/s")
        report.add("idle CPU", statistics.median(one.busy() for one in ours), "%", 0.05)
        report.add("  the floor's", floor_busy, "%")


@asynccontextmanager
async def _idle_plugin() -> AsyncIterator[int]:
    with served(DEVICES) as (kubelet, serve):
        async with kubelet:
            with process(*serve) as pid:
                await kubelet.wait_for(lambda: len(kubelet.resource(RESOURCE).healthy) == DEVICES)
                yield pid


@asynccontextmanager
async def _idle_floor() -> AsyncIterator[int]:
    with scratch() as path:
        async with (
            EmbeddedKubelet(Path(path) / "kubelet") as kubelet,
            subject("benchmarks.floor", path, str(DEVICES)) as bare,
        ):
            await kubelet.wait_for(lambda: kubelet.resource(floor.RESOURCE).connected)
            yield bare.pid
