"""What ``usbplugin serve`` does while nothing happens, compared with the floor at the same time.

Runs several processes of each, because how often gRPC's threads wake up is partly luck, and varies
by a third between processes. So there are two questions: what do our own threads do, and do gRPC's
have more to do than the floor's, by more than chance explains?
"""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import floor
from benchmarks.commands import scratch, subject
from benchmarks.process import DEVICES, process, served, threads
from benchmarks.subject import RESOURCE
from usbplugin.virtual import EmbeddedKubelet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from benchmarks.report import Report

PROCESSES = 6
"""How many of each."""
_SETTLE_SECONDS = 15
"""How long gRPC's threads keep polling, less and less often, after their last work."""
_GRPC = ("event_engine", "lifeguard", "grpc_")
_LIKELY = 2.0
"""How many standard errors are put down to chance."""


@dataclass(frozen=True, slots=True)
class Idleness:
    """Wake-ups per second and CPU in percent, of all threads and of all but gRPC's."""

    wakes: float
    busy: float
    own_wakes: float
    own_busy: float


class _Watch:
    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._began = time.monotonic()
        self._before = threads(pid)

    def stop(self) -> Idleness:
        seconds = time.monotonic() - self._began
        now = threads(self._pid)
        # What threads that have ended did is not known.
        pairs = [(self._before[each], now[each]) for each in self._before.keys() & now.keys()]
        own = [pair for pair in pairs if not pair[0].name.startswith(_GRPC)]
        rates = []
        for some in (pairs, own):
            rates.append(sum(after.wakes - before.wakes for before, after in some) / seconds)
            rates.append(100 * sum(after.cpu - before.cpu for before, after in some) / seconds)
        return Idleness(*rates)


async def measure(report: Report, seconds: float) -> None:
    async with AsyncExitStack() as running:
        pids = [
            (
                await running.enter_async_context(_plugin()),
                await running.enter_async_context(_floor()),
            )
            for _ in range(PROCESSES)
        ]
        await asyncio.sleep(_SETTLE_SECONDS)
        watches = [(_Watch(plugin), _Watch(bare)) for plugin, bare in pids]
        await asyncio.sleep(seconds)
        found = [(plugin.stop(), bare.stop()) for plugin, bare in watches]
    ours, least = ([pair[index] for pair in found] for index in (0, 1))
    wakes, floor_wakes = [one.wakes for one in ours], [one.wakes for one in least]
    chance = _LIKELY * math.hypot(_standard_error(wakes), _standard_error(floor_wakes))
    bar = statistics.fmean(floor_wakes) + 1 + chance
    report.add("idle wake-ups", statistics.fmean(wakes), "1/s", bar, f"chance: {chance:.1f}")
    report.add("  of our own threads", statistics.fmean(one.own_wakes for one in ours), "1/s", 1)
    report.add("  the floor's", statistics.fmean(floor_wakes), "1/s")
    floor_busy = statistics.fmean(one.busy for one in least)
    # On a slow machine, the floor alone may exceed the absolute bar.
    bar = max(0.05, floor_busy + 0.02)
    report.add("idle CPU", statistics.fmean(one.busy for one in ours), "%", bar)
    report.add("  of our own threads", statistics.fmean(one.own_busy for one in ours), "%", 0.02)
    report.add("  the floor's", floor_busy, "%")


def _standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))


@asynccontextmanager
async def _plugin() -> AsyncIterator[int]:
    with served(DEVICES) as (kubelet, serve):
        async with kubelet:
            with process(*serve) as pid:
                await kubelet.wait_for(lambda: len(kubelet.resource(RESOURCE).healthy) == DEVICES)
                yield pid


@asynccontextmanager
async def _floor() -> AsyncIterator[int]:
    with scratch() as path:
        async with (
            EmbeddedKubelet(Path(path) / "kubelet") as kubelet,
            subject("benchmarks.floor", path, str(DEVICES)) as bare,
        ):
            await kubelet.wait_for(lambda: kubelet.resource(floor.RESOURCE).connected)
            yield bare.pid
