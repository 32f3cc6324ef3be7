"""What a session saw, with times: a table for people, beside pytest's own JUnit file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(eq=False)
class Report:
    """Gathers results; whoever has one may add to it."""

    ground: dict[str, str] = field(default_factory=dict)
    """What the tests ran on: Kubernetes, container runtime, kernel..."""
    results: list[tuple[str, str, float]] = field(default_factory=list)
    """Scenario, outcome, seconds."""
    times: list[tuple[str, float]] = field(default_factory=list)
    """What was measured, seconds."""

    def lines(self) -> list[str]:
        """The report in Markdown."""
        lines = [f"- {name}: {value}" for name, value in self.ground.items()]
        lines += ["", "| measured | |", "| --- | --: |"]
        lines += [f"| {what} | {_duration(seconds)} |" for what, seconds in self.times]
        lines += ["", "| scenario | result | |", "| --- | --- | --: |"]
        lines += [
            f"| {name} | {outcome} | {seconds:.1f} s |"
            for name, outcome, seconds in sorted(self.results)
        ]
        return lines


@dataclass(eq=False)
class Times:
    """One test's measurements, which go into the table and into the JUnit file."""

    report: Report
    record: Callable[[str, object], None]

    def note(self, what: str, seconds: float) -> None:
        self.report.times.append((what, seconds))
        self.record(what, f"{seconds:.3f}")


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
