"""Reads that hang, and those that were asked for along with them."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from usbplugin.foundation.reads import Reads
from usbplugin.foundation.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

LONG = 30.0
OPEN = threading.Event()
OPEN.set()


@dataclass(eq=False)
class Reading:
    """Done once its gate is open."""

    name: str
    gate: threading.Event = field(default=OPEN)
    error: Exception | None = None
    begun: int = 0

    def run(self) -> None:
        self.begun += 1
        assert self.gate.wait(LONG)
        if self.error is not None:
            raise self.error


class Desk:
    """Somebody who reads, and waits for what was left behind."""

    def __init__(self, most: int = 64) -> None:
        self.late: queue.Queue[None] = queue.Queue()
        self.reads: Reads[Reading] = Reads(Workers(most), lambda: self.late.put(None))

    def read(self, *readings: Reading, patience: float = LONG) -> list[Reading]:
        done = self.reads.read({reading.name: reading for reading in readings}, patience)
        assert all(reading.name == name for name, reading in done.items())
        return list(done.values())

    def read_until_done(self, readings: Iterable[Reading], besides: Iterable[Reading]) -> None:
        """Read them together with others, which hang; some may be late on a busy machine."""
        left = {reading.name: reading for reading in (*besides, *readings)}
        wanted = {reading.name for reading in readings}
        while True:
            done = self.reads.read(left, 0.05)
            wanted -= done.keys()
            left = {name: reading for name, reading in left.items() if name in wanted}
            if not wanted:
                return
            self.late.get(timeout=LONG)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


def test_what_was_read_is_returned() -> None:
    desk = Desk()
    readings = [Reading(str(number)) for number in range(100)]
    assert desk.read(*readings) == readings
    assert desk.read() == []
    assert desk.reads.late() == set()


@pytest.mark.parametrize("hanging", [1, 5, 40])
def test_the_others_are_read_however_many_hang(hanging: int, gate: threading.Event) -> None:
    desk = Desk()
    stuck = [Reading(f"stuck-{number}", gate) for number in range(hanging)]
    others = [Reading(f"other-{number}") for number in range(10)]
    desk.read_until_done(others, besides=stuck)
    assert [desk.reads.left_behind(reading.name) for reading in stuck] == stuck
    # From now on it costs no time at all.
    more = Reading("more")
    assert desk.read(*stuck, more) == [more]


def test_one_that_hangs_is_not_read_again_and_then_is(gate: threading.Event) -> None:
    desk = Desk()
    first, second, third = (Reading("it", gate) for _ in range(3))
    assert desk.read(first, patience=0) == []
    assert desk.read(second, patience=0) == []
    assert (first, desk.reads.late()) == (desk.reads.left_behind("it"), set())
    gate.set()
    desk.late.get(timeout=LONG)
    assert desk.reads.late() == {"it"}
    (found,) = desk.read(third)
    assert found is third, "what it was like in the meantime is not what it is like"
    assert [reading.begun for reading in (first, second, third)] == [1, 0, 1]
    assert desk.reads.late() == set()


def test_what_nobody_has_asked_for_since_is_returned_late(gate: threading.Event) -> None:
    desk = Desk()
    first, second = Reading("it", gate), Reading("it")
    assert desk.read(first, patience=0) == []
    gate.set()
    desk.late.get(timeout=LONG)
    (found,) = desk.read(second)
    assert found is first
    (found,) = desk.read(second)
    assert found is second


def test_no_more_than_so_many_hang(gate: threading.Event) -> None:
    desk = Desk(most=3)
    readings = [Reading(str(number), gate) for number in range(8)]
    assert desk.read(*readings, patience=0.05) == []
    begun = [r for r in readings if desk.reads.left_behind(r.name) is not None]
    assert len(begun) == 3
    refused = [r for r in readings if r not in begun]
    assert desk.read(*refused) == [], "that is said at once"
    assert sum(reading.begun for reading in refused) == 0
    gate.set()
    for _ in begun:
        desk.late.get(timeout=LONG)
    while len(desk.read(*readings)) < len(readings):
        continue  # the threads are about to be free


def test_an_error_is_raised_where_it_was_asked_for(gate: threading.Event) -> None:
    desk = Desk()
    with pytest.raises(ValueError, match="now"):
        desk.read(Reading("it", error=ValueError("now")))
    assert desk.read(Reading("it", gate, ValueError("late")), patience=0) == []
    gate.set()
    desk.late.get(timeout=LONG)
    with pytest.raises(ValueError, match="late"):
        desk.read(Reading("it"))
    good = Reading("it")
    assert desk.read(good) == [good]


def test_nothing_is_returned_that_was_read_for_somebody_else(gate: threading.Event) -> None:
    desk = Desk()
    assert desk.read(Reading("it", gate), patience=0) == []
    gate.set()
    desk.late.get(timeout=LONG)
    desk.reads.start_afresh()
    fresh = Reading("it")
    (found,) = desk.read(fresh)
    assert found is fresh


def test_one_that_is_given_up_does_not_keep_its_name(gate: threading.Event) -> None:
    desk = Desk()
    assert desk.read(Reading("it", gate), patience=0) == []
    desk.reads.abandon("it")
    fresh = Reading("it")
    assert desk.read(fresh) == [fresh]
    gate.set()
    desk.late.get(timeout=LONG)
    assert desk.reads.late() == set()
