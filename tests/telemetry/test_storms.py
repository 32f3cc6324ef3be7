"""Storms of similar log records: what is shown, what is suppressed, and that nothing gets lost."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from usbplugin.telemetry import storms
from usbplugin.telemetry.logs import fields
from usbplugin.telemetry.storms import MOST_ALIKE, MOST_OF_A_KIND, Counts, StormHandler

if TYPE_CHECKING:
    from collections.abc import Iterator

FOREVER = 3600.0


class Stream(io.StringIO):
    """Tells when a line with some text has been written."""

    def __init__(self) -> None:
        super().__init__()
        self.told = threading.Event()

    def write(self, text: str) -> int:
        length = super().write(text)
        if "lines suppressed" in text:
            self.told.set()
        return length


class Storm:
    def __init__(self, seconds: float) -> None:
        self.stream = Stream()
        self.counts = Counts()
        self.handler = StormHandler(self.stream, self.counts, seconds)
        self.handler.setFormatter(logging.Formatter("%(levelname)s %(message)s %(fields)s"))

    def log(self, text: str, level: int = logging.INFO, **values: object) -> None:
        self.handler.handle(
            logging.makeLogRecord(
                {"msg": text, "levelno": level, "levelname": logging.getLevelName(level)}
                | fields(**values)
            )
        )

    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()


@pytest.fixture
def storm() -> Iterator[Storm]:
    storm = Storm(FOREVER)
    yield storm
    storm.handler.close()


def test_a_few_are_all_shown(storm: Storm) -> None:
    for _ in range(MOST_ALIKE):
        storm.log("device ready", device="d1")
    assert len(storm.lines()) == MOST_ALIKE


def test_the_number_of_suppressed_records_is_logged_at_the_end(storm: Storm) -> None:
    for _ in range(MOST_ALIKE + 90):
        storm.log("device unplugged", logging.WARNING, device="d1")
    assert len(storm.lines()) == MOST_ALIKE
    assert storm.counts.suppressed()["warning",] == 90
    storm.handler.close()
    assert storm.lines()[-1] == (
        "WARNING similar log lines suppressed"
        " {'alike': 'device unplugged', 'about': 'd1', 'count': 90}"
    )
    assert storm.counts.logged()["warning",] == MOST_ALIKE + 1


def test_one_noisy_device_does_not_silence_another(storm: Storm) -> None:
    for _ in range(100):
        storm.log("device unplugged", device="noisy")
    storm.log("device unplugged", device="quiet")
    storm.log("device ready", device="noisy")
    assert len(storm.lines()) == MOST_ALIKE + 2


def test_a_device_that_is_a_new_one_each_time_is_held_back_too(storm: Storm) -> None:
    for number in range(MOST_OF_A_KIND * 20):
        storm.log("device ready", device=f"invented-{number}")
    assert len(storm.lines()) == MOST_OF_A_KIND
    assert storm.counts.suppressed()["info",] == MOST_OF_A_KIND * 19
    storm.log("device forgotten", device="invented-1")
    assert "device forgotten" in storm.lines()[-1]


def test_the_worst_level_is_kept(storm: Storm) -> None:
    for number in range(MOST_ALIKE + 3):
        level = logging.ERROR if number == MOST_ALIKE else logging.INFO
        storm.log("x", level, device="d1")
    storm.handler.close()
    assert storm.lines()[-1].startswith("ERROR similar log lines suppressed")


def test_memory_is_bounded_however_many_texts_there_are(storm: Storm) -> None:
    for number in range(5 * storms._MOST_WINDOWS):
        storm.log(f"text {number}", device=f"d{number}")
    assert len(storm.handler._windows) <= storms._MOST_WINDOWS + 1
    logged, suppressed = storm.counts.logged(), storm.counts.suppressed()
    assert logged["info",] + suppressed["info",] == 5 * storms._MOST_WINDOWS


def test_the_summary_is_logged_when_the_window_ends_even_if_nothing_else_is() -> None:
    storm = Storm(0.05)
    # On a busy machine a window may be over before it is full.
    while not storm.counts.suppressed().get(("info",)):
        storm.log("device unplugged", device="d1")
    assert storm.stream.told.wait(10)
    assert "'count': " in storm.lines()[-1]


def test_the_summary_is_logged_at_exit_and_an_uncaught_error_takes_one_line() -> None:
    code = """
import logging
from usbplugin.telemetry import logs
logs.configure("info", logs.LogFormat.JSON)
logs.catch_the_uncaught()
for _ in range(15):
    logging.getLogger("usbplugin").warning("again", extra=logs.fields(device="d"))
import threading, warnings
warnings.warn("odd\\nthing")
def fail():
    raise ValueError("a\\nb")
thread = threading.Thread(target=fail)
thread.start()
thread.join()
raise KeyError("end")
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    records = [json.loads(line) for line in result.stderr.splitlines()]
    assert [record["event"] for record in records[:10]] == ["again"] * 10
    assert "odd" in records[10]["event"]
    assert [record["exception"] for record in records[11:13]] == [
        "ValueError: a\nb",
        "KeyError: 'end'",
    ]
    assert records[13]["alike"] == "again"
    assert (records[13]["about"], records[13]["count"]) == ("d", 5)
    assert len(records) == 14
