"""The rules of promtool's linter and of Prometheus's naming page, and what the docs say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from usbplugin.telemetry.catalogue import METRICS
from usbplugin.telemetry.document import document
from usbplugin.telemetry.instruments import Counter, Histogram, Kind, Metric
from usbplugin.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[2]
# By https://prometheus.io/docs/practices/naming: base units, and what is no unit at all.
WRONG_UNITS = r"_(milli|micro|nano)?(ms|minutes|hours|kilobytes|megabytes|percent)(_|\Z)"


def by_name(metric: Metric) -> str:
    return metric.name


@pytest.mark.parametrize("metric", METRICS, ids=by_name)
def test_names_help_and_units_are_as_prometheus_wants_them(metric: Metric) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", metric.name)
    assert metric.name.startswith(("usbplugin_", "process_"))
    assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
    assert not metric.name.endswith(("_count", "_sum", "_bucket"))
    assert not re.search(WRONG_UNITS, metric.name)
    assert not re.search(r"_(gauge|counter|histogram)(_|\Z)", metric.name)
    assert re.fullmatch(r"[A-Z].*[.]", metric.help)
    assert "\n" not in metric.help
    assert (metric.kind is Kind.HISTOGRAM) == bool(metric.buckets)
    if metric.kind is Kind.HISTOGRAM:
        assert metric.name.endswith("_seconds")
        assert list(metric.buckets) == sorted(set(metric.buckets))


@pytest.mark.parametrize("metric", METRICS, ids=by_name)
def test_labels_are_few_plain_and_not_reserved(metric: Metric) -> None:
    assert len(set(metric.labels)) == len(metric.labels)
    for label in metric.labels:
        assert re.fullmatch(r"[a-z][a-z_]*", label)
        # job and instance are Prometheus's own, le is a histogram's.
        assert label not in {"job", "instance", "le", "quantile", "__name__"}
    # Only what tells of single devices has a series for each.
    assert ("device" in metric.labels) == metric.name.startswith("usbplugin_device_") or (
        metric.name.startswith("usbplugin_device_") and metric.kind is Kind.COUNTER
    )


def test_names_are_unique() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)


def test_everything_that_is_counted_is_in_the_catalogue() -> None:
    counted = [
        value.metric
        for value in vars(Metrics(["ready"])).values()
        if isinstance(value, Counter | Histogram)
    ]
    assert counted
    assert set(counted) <= set(METRICS)


def test_the_page_about_metrics_is_current() -> None:
    assert (ROOT / "docs/metrics.md").read_text() == document(), "run: make docs"
