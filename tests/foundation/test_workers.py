"""Calls that may hang: what becomes of them, of those who wait, and of the process."""

from __future__ import annotations

import asyncio
import gc
import queue
import subprocess
import sys
import threading
import weakref
from typing import TYPE_CHECKING

import pytest

from usbplugin.foundation.workers import TooManyCallsError, Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LONG = 30.0


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What calls hang at until it is set."""
    gate = threading.Event()
    yield gate
    gate.set()


async def test_an_answer_and_an_error_are_passed_on() -> None:
    workers = Workers()
    assert await workers.answer(lambda: 6 * 7, LONG) == 42
    with pytest.raises(ZeroDivisionError):
        await workers.answer(lambda: 1 // 0, LONG)


async def test_a_call_that_hangs_holds_up_nobody(gate: threading.Event) -> None:
    workers = Workers()
    hanging = asyncio.ensure_future(workers.answer(gate.wait, LONG))
    assert await workers.answer(lambda: "another", LONG) == "another"
    assert not hanging.done()
    gate.set()
    assert await hanging


async def test_a_call_that_hangs_is_left_behind_when_its_time_is_up(gate: threading.Event) -> None:
    workers = Workers()
    with pytest.raises(TimeoutError) as error:
        await workers.answer(gate.wait, 0.01)
    assert not isinstance(error.value, TooManyCallsError)
    assert await workers.answer(lambda: "the next", LONG) == "the next"


async def test_so_many_may_hang_and_no_more(gate: threading.Event) -> None:
    workers = Workers(most=2)
    hanging = [asyncio.ensure_future(workers.answer(gate.wait, LONG)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(TooManyCallsError, match="2 calls hang already"):
        await workers.answer(lambda: "one too many", LONG)
    gate.set()
    assert await asyncio.gather(*hanging) == [True, True]
    # Both have answered, and their threads are about to notice.
    while True:
        try:
            assert await workers.answer(lambda: "again", LONG) == "again"
            break
        except TooManyCallsError:
            continue


async def test_a_hundred_calls_take_few_threads() -> None:
    workers = Workers()
    threads = {await workers.answer(threading.current_thread, LONG) for _ in range(100)}
    assert len(threads) < 10
    assert all(thread.daemon for thread in threads)


async def test_threads_end_when_nobody_can_call_any_more() -> None:
    workers = Workers()
    thread = await workers.answer(threading.current_thread, LONG)
    assert await workers.answer(lambda: "it is idle again, or another one is", LONG)
    del workers
    gc.collect()
    await asyncio.to_thread(thread.join, LONG)
    assert not thread.is_alive()


async def test_a_thread_ends_when_its_call_is_the_last(gate: threading.Event) -> None:
    workers = Workers()
    threads: queue.Queue[threading.Thread] = queue.Queue()

    def call() -> None:
        threads.put(threading.current_thread())
        gate.wait()

    workers.start(call)
    thread = threads.get(timeout=LONG)
    del workers
    gc.collect()
    gate.set()
    await asyncio.to_thread(thread.join, LONG)
    assert not thread.is_alive()


def test_after_a_crowd_most_threads_end(gate: threading.Event) -> None:
    workers = Workers()
    threads: queue.Queue[threading.Thread] = queue.Queue()

    def call() -> None:
        threads.put(threading.current_thread())
        gate.wait()

    for _ in range(10):
        workers.start(call)
    crowd = {threads.get(timeout=LONG) for _ in range(10)}
    gate.set()
    while sum(thread.is_alive() for thread in crowd) > 2:
        next(iter(crowd)).join(0.01)


async def test_a_call_whose_time_is_up_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers()
    calls: list[Callable[[], None]] = []
    monkeypatch.setattr(workers, "start", calls.append)
    made: list[int] = []
    with pytest.raises(TimeoutError):
        await workers.answer(lambda: made.append(1), 0.0)
    calls[0]()
    assert made == []


async def test_a_call_that_is_over_keeps_nothing() -> None:
    class Burden:
        def use(self) -> None: ...

    workers = Workers()
    burden, gone = Burden(), threading.Event()
    weakref.finalize(burden, gone.set)
    await workers.answer(burden.use, LONG)
    del burden
    assert await asyncio.to_thread(gone.wait, LONG)


def test_a_call_that_hangs_does_not_keep_the_process() -> None:
    script = """
import asyncio, threading
from usbplugin.foundation.workers import Workers

async def main():
    workers = Workers()
    try:
        await workers.answer(threading.Event().wait, 0.01)
    except TimeoutError:
        print("too late")

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], timeout=60, check=True, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("too late\n", "")
