"""The campaign: one fault after the other, in an order that a seed decides, and what is held."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

# Imported for what they put into the catalogue.
from tests.faults import file_faults, kubelet_faults, process_faults  # noqa: F401
from tests.faults.catalogue import CATALOGUE, Fault
from tests.faults.rig import Broken
from tests.faults.volume import can_mount

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.faults.proc import Usage
    from tests.faults.rig import Rig

SETTLED_WITHIN = 8.0
"""Seconds for what the end of a container changes: the kubelet is asked every second."""
_FORESEEN = ("SabotageError", "DecodeError", "ExecuteBatchError")
"""Our own doing; and how gRPC words that a stranger's message was none."""
_MOST_THREADS_MORE = 12
_MOST_DESCRIPTORS_MORE = 12
_MOST_MEMORY_MORE = 12.0


@dataclass
class Tally:
    """What came of one kind of fault."""

    fault: Fault
    times: list[float] = field(default_factory=list)
    """Seconds from the end of each until the truth had reached the kubelet."""


@dataclass
class Life:
    """One life of the plugin's process: what it used, each time that all was well again."""

    usages: list[Usage] = field(default_factory=list)


class Campaign:
    """Runs faults against a rig, and keeps the tally."""

    def __init__(self, rig: Rig, seed: int, faults: Sequence[Fault]) -> None:
        self._rig = rig
        self._rng = random.Random(seed)
        self._faults = faults
        self.seed = seed
        self.tallies = {fault.name: Tally(fault) for fault in faults}
        self.lives = [Life()]
        self._read = 0

    @property
    def count(self) -> int:
        return sum(len(tally.times) for tally in self.tallies.values())

    async def run(self, seconds: float) -> None:
        """Every fault once, and then on until the time is over."""
        end = time.monotonic() + seconds
        self._note_usage()
        for position, fault in enumerate(self._order()):
            if position >= len(self._faults) and time.monotonic() > end:
                return
            storm = self._rng.random() < 0.5
            try:
                await self._suffer(fault, storm=storm)
            except (AssertionError, TimeoutError) as error:
                raise Broken(
                    f"fault {position + 1}, {fault.name}{', in a storm' if storm else ''}: {error}"
                ) from error

    def _order(self) -> Iterator[Fault]:
        """A shuffled deck after the other; what ends the process comes last in each."""
        lasting = [fault for fault in self._faults if not fault.kills]
        killing = [fault for fault in self._faults if fault.kills]
        while True:
            for deck in (lasting, killing):
                yield from self._rng.sample(deck, len(deck))

    async def _suffer(self, fault: Fault, *, storm: bool) -> None:
        rig, rng = self._rig, random.Random(self._rng.random())
        async with contextlib.AsyncExitStack() as meanwhile:
            if storm:
                blowing = asyncio.create_task(rig.storm(random.Random(self._rng.random())))
                meanwhile.push_async_callback(_end, blowing)
            await fault.harm(rig, rng)
        self.tallies[fault.name].times.append(await rig.until_true(fault.within))
        await rig.verify(rng, max(fault.within, SETTLED_WITHIN))
        rig.check_alive()
        self._check_log()
        if fault.kills:
            self.lives.append(Life())
        self._note_usage()

    def _check_log(self) -> None:
        """Nothing has gone wrong in a way that was not foreseen."""
        with self._rig.log.open("rb") as log:
            log.seek(self._read)
            text = log.read().decode()
            self._read = log.tell()
        # watchdog's threads have theirs printed by Python, over several lines.
        for record in re.split(r"\n(?=\d{4}-)", text):
            if "Traceback" in record and not any(cause in record for cause in _FORESEEN):
                raise Broken(f"unforeseen: {record}")

    def _note_usage(self) -> None:
        usage = self._rig.usage()
        usages = self.lives[-1].usages
        usages.append(usage)
        first = usages[min(2, len(usages) - 1)]
        for what, more, most in (
            ("threads", usage.threads - first.threads, _MOST_THREADS_MORE),
            ("descriptors", usage.descriptors - first.descriptors, _MOST_DESCRIPTORS_MORE),
            ("MiB", usage.memory - first.memory, _MOST_MEMORY_MORE),
        ):
            if more > most:
                raise Broken(f"{more:g} {what} more than at first: {first}, now {usage}")

    def table(self) -> str:
        """What was done, and what came of it."""
        rows = [("fault", "times", "median", "slowest", "bound")]
        rows += [
            (
                tally.fault.name,
                str(len(tally.times)),
                f"{statistics.median(tally.times):.2f} s",
                f"{max(tally.times):.2f} s",
                f"{tally.fault.within:g} s",
            )
            for tally in self.tallies.values()
            if tally.times
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )

    def write(self, path: Path) -> None:
        longest = max(self.lives, key=lambda life: len(life.usages)).usages
        path.write_text(
            json.dumps(
                {
                    "seed": self.seed,
                    "faults": {
                        tally.fault.name: {
                            "times": len(tally.times),
                            "median": statistics.median(tally.times),
                            "slowest": max(tally.times),
                            "bound": tally.fault.within,
                        }
                        for tally in self.tallies.values()
                        if tally.times
                    },
                    "lives": len(self.lives),
                    "longest_life": [vars(usage) for usage in longest],
                },
                indent=2,
            )
            + "\n"
        )


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled() and (error := task.exception()):
        raise error


def chosen(pattern: str = "") -> tuple[list[Fault], list[str]]:
    """The faults to be run here, and why the others are not."""
    faults, skipped = [], []
    for fault in CATALOGUE:
        if pattern not in fault.name:
            continue
        if fault.mounts and not can_mount():
            skipped.append(f"{fault.name}: needs root, to mount a small file system")
        else:
            faults.append(fault)
    return faults, skipped
