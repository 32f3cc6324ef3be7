"""The text format, read by prometheus_client's parser, which does not know how it was written."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from usbplugin.telemetry.instruments import Counter, Histogram, Kind, Metric, Readings, render

EVENTS = Metric("test_events_total", Kind.COUNTER, "Events.", ("what",))
SECONDS = Metric("test_seconds", Kind.HISTOGRAM, "Time.", ("what",), (0.001, 0.5, 1.0))
LEVEL = Metric("test_level", Kind.GAUGE, "Level.")


def parsed(*instruments: Counter | Histogram | Readings) -> dict[str, float]:
    """Values by ``name{label=value,...}``."""
    text = render(instruments).decode()
    assert text.endswith("\n")
    return {
        f"{sample.name}{sample.labels or ''}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_counter_is_shown_at_zero_and_grows() -> None:
    counter = Counter(EVENTS)
    counter.expect("plug")
    assert parsed(counter) == {"test_events_total{'what': 'plug'}": 0}
    counter.add("plug")
    counter.expect("plug")
    counter.add("pull", amount=3)
    assert parsed(counter) == {
        "test_events_total{'what': 'plug'}": 1,
        "test_events_total{'what': 'pull'}": 3,
    }


def test_a_counter_without_labels_is_there_at_once() -> None:
    assert parsed(Counter(Metric("test_total", Kind.COUNTER, "All."))) == {"test_total": 0}


def test_a_histogram_is_cumulative_and_a_bound_belongs_to_its_bucket() -> None:
    histogram = Histogram(SECONDS)
    for value in (0.0001, 0.001, 0.5, 7.0):
        histogram.observe(value, "x")
    found = parsed(histogram)
    assert [found[f"test_seconds_bucket{{'what': 'x', 'le': '{le}'}}"] for le in LE] == [2, 3, 3, 4]
    assert found["test_seconds_count{'what': 'x'}"] == 4
    assert math.isclose(found["test_seconds_sum{'what': 'x'}"], 7.5011)


LE = ("0.001", "0.5", "1", "+Inf")


def test_an_expected_histogram_is_shown_empty() -> None:
    histogram = Histogram(SECONDS)
    histogram.expect("x")
    assert parsed(histogram)["test_seconds_count{'what': 'x'}"] == 0


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_come_through_exactly(value: float) -> None:
    assert parsed(Readings(LEVEL, {(): value})) == {"test_level": value}


@given(st.text(), st.integers(0, 10**15))
def test_a_sample_stays_on_one_line_whatever_its_labels_contain(text: str, value: int) -> None:
    metric = Metric("test_info", Kind.GAUGE, "Help with a \\ and a \n in it.", ("a", "b"))
    rendered = render([Readings(metric, {(text, "end"): value})]).decode()
    assert len(rendered.rstrip("\n").split("\n")) == 3
    (family,) = text_string_to_metric_families(rendered)
    (sample,) = family.samples
    expected = text.encode("utf-8", "backslashreplace").decode()
    assert (sample.labels, sample.value) == ({"a": expected, "b": "end"}, value)


def test_bytes_that_are_no_unicode_do_not_break_it() -> None:
    assert parsed(Readings(Metric("t", Kind.GAUGE, "T.", ("path",)), {("/dev/\udcff",): 1})) == {
        "t{'path': '/dev/\\\\udcff'}": 1
    }
