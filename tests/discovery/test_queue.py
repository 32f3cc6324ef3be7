"""Facts on their way from any thread into the event loop."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from usbplugin.discovery import Fact, FactQueue, PortGone

pytestmark = pytest.mark.timeout(30)


def fact(number: int) -> Fact:
    return PortGone("test", f"ttyUSB{number}")


async def test_posted_facts_are_taken_once_and_in_order() -> None:
    taken: list[Fact] = []
    everything = asyncio.Event()

    def take(batch: list[Fact]) -> None:
        taken.extend(batch)
        if len(taken) == 4000:
            everything.set()

    queue = FactQueue(take)

    def post(thread: int) -> None:
        for number in range(1000):
            queue.post(fact(10_000 * thread + number))

    threads = [threading.Thread(target=post, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    await asyncio.wait_for(everything.wait(), 10)
    for thread in threads:
        thread.join()
    for number in range(4):
        own = [fact(10_000 * number + each) for each in range(1000)]
        assert [each for each in taken if each in set(own)] == own


async def test_the_timer_fires_without_facts_and_the_last_setting_counts() -> None:
    calls: list[tuple[list[Fact], float]] = []
    called = asyncio.Event()

    def take(batch: list[Fact]) -> None:
        calls.append((batch, time.monotonic()))
        called.set()

    queue = FactQueue(take)
    queue.wake_at(0.0)  # long ago, and then not at all
    queue.wake_at(None)
    moment = time.monotonic() + 0.05
    queue.wake_at(moment)
    await asyncio.wait_for(called.wait(), 10)
    ((batch, at),) = calls
    assert batch == []
    assert at > moment - 0.01  # the loop's clock is coarse


async def test_an_error_while_taking_ends_it() -> None:
    taken: list[Fact] = []

    def take(batch: list[Fact]) -> None:
        taken.extend(batch)
        raise ZeroDivisionError

    queue = FactQueue(take)
    queue.post(fact(0))
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(queue.run(), 10)
    queue.post(fact(1))
    await asyncio.sleep(0)
    assert taken == [fact(0)]


async def test_nothing_is_taken_after_it_was_cancelled() -> None:
    taken: list[Fact] = []
    queue = FactQueue(taken.extend)
    running = asyncio.create_task(queue.run())
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait({running})
    queue.post(fact(0))
    await asyncio.sleep(0)
    assert taken == []
