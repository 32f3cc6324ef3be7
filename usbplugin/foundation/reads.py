"""Reads that may hang, for a thread that must not: each has a name, and one at a time is under way.

Many are asked for at once. A single thread makes them one after the other, until one takes long;
then there are two threads, then four, and so on: it takes a few steps until everything that can be
read has been, however many hang.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from usbplugin.foundation.workers import TooManyCallsError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from usbplugin.foundation.workers import Workers

_STEP = 0.002
"""Seconds without an answer until more threads help."""


class Read(Protocol):
    """Something to read, which keeps what was found."""

    def run(self) -> None:
        """Read it. Runs in any thread, and may hang."""


_R = TypeVar("_R", bound=Read)


class Reads(Generic[_R]):
    """The reads of one thread, which alone calls these methods."""

    def __init__(self, workers: Workers, on_late: Callable[[], None]) -> None:
        """Start with none.

        Args:
            workers: Make the reads.
            on_late: Called in another thread when a read is done that was left behind: ``late``
                names it now, and to ask again gives a result.
        """
        self._workers = workers
        self._on_late = on_late
        self._left_behind: dict[str, _Reading[_R]] = {}

    def read(self, reads: Mapping[str, _R], patience: float) -> dict[str, _R]:
        """Make these reads, each under its name, and return those that are done.

        The others are left behind. Until such a read is done, no other one of its name is made.
        After that it is returned itself, or, if its name was asked for while it was under way, it
        may be out of date and another one is made.

        Args:
            reads: What to read.
            patience: How long to wait for another one to be done, in seconds.

        Raises:
            Exception: whatever one of them raised.
        """
        done: list[_Reading[_R]] = []
        new: list[_Reading[_R]] = []
        for name, read in reads.items():
            earlier = self._left_behind.get(name)
            if earlier is not None and not earlier.is_done:
                earlier.is_overtaken = True
                continue
            self._left_behind.pop(name, None)
            if earlier is not None and not earlier.is_overtaken:
                done.append(earlier)
            else:
                new.append(_Reading(name, read))
        if new:
            batch = _Batch(new, self._workers, self._on_late)
            batch.wait(patience)
            finished, left_behind = batch.leave()
            done += finished
            self._left_behind.update((reading.name, reading) for reading in left_behind)
        return {reading.name: reading.result() for reading in done}

    def left_behind(self, name: str) -> _R | None:
        """The read that hangs, or did until just now; None if there is none of that name.

        If there is none after ``read`` has not returned one either, then it was not begun, for too
        many others hang.
        """
        reading = self._left_behind.get(name)
        return None if reading is None else reading.read

    def late(self) -> set[str]:
        """The names whose reads were left behind and are done."""
        return {name for name, reading in self._left_behind.items() if reading.is_done}

    def abandon(self, name: str) -> None:
        """Whatever comes of the read that was left behind, do not return it, nor wait for it."""
        self._left_behind.pop(name, None)

    def start_afresh(self) -> None:
        """Return nothing any more that was begun before now."""
        for reading in self._left_behind.values():
            reading.is_overtaken = True


@dataclass(slots=True, eq=False)
class _Reading(Generic[_R]):
    """A read, and what has become of it."""

    name: str
    read: _R
    is_done: bool = False
    error: BaseException | None = None
    is_overtaken: bool = False
    """Whether it was asked for again after it had begun."""

    def run(self) -> None:
        try:
            self.read.run()
        except BaseException as error:  # noqa: BLE001 -- raised where it was asked for
            self.error = error

    def result(self) -> _R:
        if self.error is not None:
            raise self.error
        return self.read


class _Batch(Generic[_R]):
    """Reads that were asked for together."""

    def __init__(
        self, readings: Collection[_Reading[_R]], workers: Workers, on_late: Callable[[], None]
    ) -> None:
        self._readings = readings
        self._workers = workers
        self._on_late = on_late
        self._not_begun = deque(readings)
        self._left = len(readings)
        self._coming = 0
        """Threads that were started, and have not begun a read yet."""
        self._lock = Lock()
        self._nobody_waits = False
        self._all_done = Lock()
        self._all_done.acquire()

    def wait(self, patience: float) -> None:
        """Make the reads; return when all are done, or none was for so many seconds."""
        with self._lock:
            threads = self._start(1)
        left, quiet_since = self._left, time.monotonic()
        while threads and not self._all_done.acquire(timeout=min(_STEP, patience)):
            now = time.monotonic()
            if self._left != left:
                left, quiet_since = self._left, now
            elif now >= quiet_since + patience:
                return
            elif self._not_begun:
                with self._lock:
                    threads += self._start(threads)

    def leave(self) -> tuple[list[_Reading[_R]], list[_Reading[_R]]]:
        """Wait no longer: the readings that are done, and those that go on or will yet begin.

        The others will not, for too many hang.
        """
        with self._lock:
            self._nobody_waits = True
            self._start(len(self._not_begun) - self._coming)
            given_up = set()
            while len(self._not_begun) > self._coming:
                given_up.add(self._not_begun.pop())
            done = [reading for reading in self._readings if reading.is_done]
            others = [r for r in self._readings if not r.is_done and r not in given_up]
        return done, others

    def _start(self, threads: int) -> int:
        """Let so many more threads help; return how many do. The lock is held."""
        for started in range(threads):
            try:
                self._workers.start(self._work)
            except TooManyCallsError:
                return started
            self._coming += 1
        return threads

    def _work(self) -> None:
        """Make the reads that have not begun, one after the other."""
        with self._lock:
            self._coming -= 1
            reading = self._not_begun.popleft() if self._not_begun else None
        while reading is not None:
            reading.run()
            with self._lock:
                reading.is_done = True
                self._left -= 1
                is_late = self._nobody_waits
                if not self._left:
                    self._all_done.release()
                reading = self._not_begun.popleft() if self._not_begun else None
            if is_late:
                self._on_late()
