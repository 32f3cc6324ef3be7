"""Threads for calls that may hang, such as reads of a dying device's attributes in sysfs.

A call that hangs in the kernel cannot be ended from outside. All that can be done is not to wait
for it: neither for its answer, nor when the process exits, which would wait for the threads of a
``ThreadPoolExecutor``.
"""

from __future__ import annotations

import asyncio
import weakref
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Lock, Thread
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")

_MOST_AT_ONCE = 64
_MOST_IDLE = 2
"""Two, for one that has just answered is not idle yet when the next call is made."""


class TooManyCallsError(TimeoutError):
    """As many calls are under way as are allowed, so they must be hanging; this one is not made.

    Whoever waits for an answer may treat it like one that does not come in time.
    """


class Workers:
    """Runs calls in daemon threads. Thread-safe; the threads end when nobody refers to it any more.

    Some are kept while idle: as long as nothing hangs, a call costs a hand-off and no new thread.
    """

    def __init__(self, most: int = _MOST_AT_ONCE) -> None:
        """Start with no thread; never make more than ``most`` calls at once."""
        self._crew = _Crew(most)
        weakref.finalize(self, self._crew.dismiss).atexit = False

    def start(self, call: Callable[[], None]) -> None:
        """Make a call in another thread, without waiting. It handles its own errors.

        Raises:
            TooManyCallsError: it is not made, for too many are under way.
        """
        self._crew.start(call)

    async def answer(self, function: Callable[[], _T], seconds: float) -> _T:
        """What ``function`` returns, or raises, in another thread. One that hangs is left behind.

        Raises:
            TimeoutError: it has not answered within ``seconds``.
            TooManyCallsError: a TimeoutError that comes at once, for too many calls are under way.
        """
        future: Future[_T] = Future()

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return  # its time was up before it began
            try:
                answer = function()
            except BaseException as error:  # noqa: BLE001 -- raised where the answer is awaited
                future.set_exception(error)
            else:
                future.set_result(answer)

        self.start(call)
        async with asyncio.timeout(seconds):
            return await asyncio.wrap_future(future)


_Calls = SimpleQueue["Callable[[], None] | None"]
"""Calls for one thread; None for it to end."""


class _Crew:
    """The threads, and what they share. Apart from ``Workers``, to which no thread may refer."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = Lock()
        self._busy = 0
        self._idle: list[_Calls] = []
        """What each idle thread gets its next call from."""
        self._dismissed = False

    def start(self, call: Callable[[], None]) -> None:
        with self._lock:
            if self._busy >= self._most:
                raise TooManyCallsError(f"{self._busy} calls hang already: not making another one")
            self._busy += 1
            calls = self._idle.pop() if self._idle else None
        if calls is not None:
            calls.put(call)
            return
        # A thread keeps its arguments as long as it lives, so the call is not one of them.
        calls = _Calls()
        calls.put(call)
        try:
            Thread(target=self._work, args=(calls,), name="worker", daemon=True).start()
        except RuntimeError as error:
            with self._lock:
                self._busy -= 1
            raise TooManyCallsError(f"no thread for another call: {error}") from error

    def dismiss(self) -> None:
        """Let the threads end. Called by the garbage collector, anywhere, so it takes no lock."""
        self._dismissed = True
        for idle in tuple(self._idle):
            idle.put(None)

    def _work(self, calls: _Calls) -> None:
        while (call := calls.get()) is not None:
            try:
                call()
            finally:
                with self._lock:
                    self._busy -= 1
            del call  # nothing that it refers to is kept while idle
            with self._lock:
                if len(self._idle) == _MOST_IDLE:
                    return
                self._idle.append(calls)
            if self._dismissed:  # checked last, as dismiss() looks for idle threads last
                return
