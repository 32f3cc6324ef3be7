"""``usbplugin serve`` as a process: how fast it starts, and recovers from a kubelet's restart."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.commands import scratch
from benchmarks.subject import RESOURCE
from usbplugin.virtual import EmbeddedKubelet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.report import Report

DEVICES = 10


@contextmanager
def process(*command: str) -> Iterator[int]:
    """Run ``python -m COMMAND``, and kill it in the end."""
    with subprocess.Popen([sys.executable, "-m", *command], stderr=subprocess.DEVNULL) as running:
        try:
            yield running.pid
        finally:
            running.kill()


def resident(pid: int) -> float:
    """Resident memory in MiB."""
    return int(_status(Path(f"/proc/{pid}/status"))["VmRSS"].split()[0]) / 1024


@dataclass(frozen=True, slots=True)
class Thread:
    name: str
    wakes: int
    """Voluntary context switches: how often it went to sleep."""
    cpu: float
    """Seconds, with nanosecond resolution."""


def threads(pid: int) -> dict[str, Thread]:
    """The live threads, by ID."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            status = _status(task / "status")
            nanoseconds = int((task / "schedstat").read_text().split()[0])
            wakes = int(status["voluntary_ctxt_switches"])
            found[task.name] = Thread(status["Name"], wakes, nanoseconds / 1e9)
    return found


def cpu(pid: int) -> float:
    """CPU seconds used by all live threads."""
    return sum(thread.cpu for thread in threads(pid).values())


def _status(path: Path) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in path.read_text().splitlines())


@contextmanager
def served(count: int) -> Iterator[tuple[EmbeddedKubelet, list[str]]]:
    """A kubelet, not yet started, and the command that serves ``count`` devices to it.

    The devices are directory entries with their own descriptors, all linked to /dev/null.
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
            *("--state-dir", str(root / "state")),
            *("--pod-resources", str(root / "pod-resources.sock")),
        ]
        yield kubelet, serve


async def measure(report: Report, starts: int, restarts: int) -> None:
    with served(DEVICES) as (kubelet, serve):
        async with kubelet:
            await _measure_starts(report, kubelet, serve, starts)
            await _measure_restarts(report, kubelet, serve, restarts)


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
