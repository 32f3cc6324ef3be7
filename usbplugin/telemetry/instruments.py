"""Counters, histograms and readings, and the text format in which Prometheus reads them.

Only what this program needs from a metrics library: prometheus_client would account for 2.6 of the
plugin's 44 MiB and a tenth of its start-up time, for HTTP servers that go unused. The tests parse
this module's output with prometheus_client.
"""

from __future__ import annotations

from bisect import bisect_left
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = tuple[str, ...]
"""Values, in the order of the metric's label names."""


class Kind(Enum):
    """What a metric's value means."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Metric(msgspec.Struct, frozen=True):
    """A metric's description; its values are elsewhere."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets, ascending, without infinity."""


class Sample(NamedTuple):
    """One line of a metric."""

    suffix: str
    """What follows the metric's name: ``_bucket``, ``_sum``, ``_count`` or nothing."""
    labels: tuple[tuple[str, str], ...]
    value: float


class Readings:
    """A metric whose values are read when somebody asks."""

    def __init__(self, metric: Metric, values: Mapping[Labels, float]) -> None:
        """Show these values."""
        self.metric = metric
        self._values = values

    def samples(self) -> Iterator[Sample]:
        """All its lines."""
        return _plain_samples(self.metric, self._values)


class Counter:
    """A value that only grows. Not thread-safe."""

    def __init__(self, metric: Metric) -> None:
        """Start at zero; a metric with labels has no values yet."""
        self.metric = metric
        self._values: dict[Labels, float] = {} if metric.labels else {(): 0}

    def expect(self, *labels: str) -> None:
        """Show these labels from now on, at zero, so that the first event already yields a rate."""
        self._values.setdefault(labels, 0)

    def add(self, *labels: str, amount: float = 1) -> None:
        """Add ``amount``."""
        self._values[labels] = self._values.get(labels, 0) + amount

    def value(self, *labels: str) -> float:
        """How many so far."""
        return self._values.get(labels, 0)

    def samples(self) -> Iterator[Sample]:
        """All its lines."""
        return _plain_samples(self.metric, self._values)


class Histogram:
    """Sorts values into buckets. Not thread-safe."""

    def __init__(self, metric: Metric) -> None:
        """Start empty."""
        self.metric = metric
        self._counts: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}

    def expect(self, *labels: str) -> None:
        """Show these labels from now on, with nothing in the buckets."""
        if labels not in self._counts:
            self._counts[labels] = [0] * (len(self.metric.buckets) + 1)
            self._sums[labels] = 0.0

    def observe(self, value: float, *labels: str) -> None:
        """Count a value; a bucket includes its upper bound."""
        self.expect(*labels)
        self._counts[labels][bisect_left(self.metric.buckets, value)] += 1
        self._sums[labels] += value

    def count(self, *labels: str) -> int:
        """How many values so far."""
        return sum(self._counts.get(labels, ()))

    def samples(self) -> Iterator[Sample]:
        """All its lines."""
        bounds = [*map(_number, self.metric.buckets), "+Inf"]
        for labels, counts in self._counts.items():
            pairs = tuple(zip(self.metric.labels, labels, strict=True))
            total = 0
            for bound, count in zip(bounds, counts, strict=True):
                total += count
                yield Sample("_bucket", (*pairs, ("le", bound)), total)
            yield Sample("_sum", pairs, self._sums[labels])
            yield Sample("_count", pairs, total)


def render(instruments: Iterable[Counter | Histogram | Readings]) -> bytes:
    """Render in the text exposition format, version 0.0.4; labels may contain anything."""
    lines = []
    for instrument in instruments:
        metric = instrument.metric
        lines.append(f"# HELP {metric.name} {_escape(metric.help)}")
        lines.append(f"# TYPE {metric.name} {metric.kind.value}")
        for sample in instrument.samples():
            labels = ",".join(f'{name}="{_quoted(value)}"' for name, value in sample.labels)
            braces = f"{{{labels}}}" if labels else ""
            lines.append(f"{metric.name}{sample.suffix}{braces} {_number(sample.value)}")
    # A path may contain bytes that are not valid Unicode (PEP 383).
    return "\n".join([*lines, ""]).encode("utf-8", "backslashreplace")


def _plain_samples(metric: Metric, values: Mapping[Labels, float]) -> Iterator[Sample]:
    for labels, value in values.items():
        yield Sample("", tuple(zip(metric.labels, labels, strict=True)), value)


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _quoted(text: str) -> str:
    return _escape(text).replace('"', '\\"')


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
