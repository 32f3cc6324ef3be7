"""Measurements and their bars, as a table and as JSON."""

from __future__ import annotations

import json
import math
import platform
import statistics
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Result:
    name: str
    value: float
    unit: str
    bar: float | None = None
    note: str = ""

    @property
    def holds(self) -> bool:
        return self.bar is None or self.value <= self.bar


@dataclass
class Report:
    results: list[Result] = field(default_factory=list)

    def add(
        self, name: str, value: float, unit: str, bar: float | None = None, note: str = ""
    ) -> None:
        result = Result(name, value, unit, bar, note)
        self.results.append(result)
        print(_line(result), flush=True)

    def times(
        self, name: str, seconds: Sequence[float], bar_ms: float | None = None, note: str = ""
    ) -> float:
        """Add the median and the 99th percentile; return the median in seconds."""
        middle = statistics.median(seconds)
        p99 = sorted(seconds)[math.ceil(0.99 * len(seconds)) - 1]
        self.add(name, 1000 * middle, "ms", bar_ms, f"p99 {1000 * p99:.2f} ms; {note}".rstrip("; "))
        return middle

    def compare(
        self,
        name: str,
        ours: Sequence[float],
        floor: Sequence[float],
        bar_ms: float | None = None,
        ratio_bar: float | None = None,
    ) -> None:
        """Add ours, the floor's, and the ratio of their medians."""
        middle = self.times(name, ours, bar_ms)
        least = self.times("  the floor's", floor)
        self.add("  ratio", middle / least, "x floor", ratio_bar)

    @property
    def holds(self) -> bool:
        return all(result.holds for result in self.results)

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        document = {
            "machine": platform.platform(),
            "python": platform.python_version(),
            "results": [{**asdict(result), "holds": result.holds} for result in self.results],
        }
        path.write_text(json.dumps(document, indent=2) + "\n")


def _line(result: Result) -> str:
    bar = "" if result.bar is None else f"bar {result.bar:.3g}"
    mark = "" if result.bar is None else ("ok" if result.holds else "MISSED")
    return (
        f"{result.name:<52} {result.value:>10.2f} {result.unit:<8} {bar:<10} {mark:<7}{result.note}"
    )
