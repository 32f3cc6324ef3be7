"""How long to wait before the next attempt to register, and how loudly. Pure but for its jitter."""

from __future__ import annotations

import logging
import math
import random

_FIRST_DELAY = 0.02
_MOST_DOUBLINGS = 16
_FIRST_PART = 32
_IN_A_ROW = 60.0
"""Seconds after which a failure has nothing to do with the last one: no attempt takes longer."""
_WORTH_A_WARNING = 10.0
_SAID_AGAIN_AFTER = 300.0


class Backoff:
    """A delay that doubles with each failure in a row."""

    def __init__(self, longest: float) -> None:
        """Wait ``longest`` seconds at most."""
        self._longest = longest
        self._failures = 0

    def reset(self) -> None:
        """Forget all failures."""
        self._failures = 0

    def next_delay(self) -> float:
        """Seconds to wait after one more failure.

        Half of it is chance, so that the resources of a plugin do not register in lockstep.
        """
        delay = min(math.ldexp(_FIRST_DELAY, self._failures), self._longest)
        self._failures = min(self._failures + 1, _MOST_DOUBLINGS)
        return delay * random.uniform(0.5, 1.0)  # noqa: S311 -- spreads load, guards nothing


class Loudness:
    """At which level the failures in a row are logged: most are over before anybody could act.

    The restart of a kubelet takes some seconds, in which nobody answers on its socket.
    """

    def __init__(self) -> None:
        """Start with no failure."""
        self._began = self._last = self._warned = -math.inf

    def next_level(self, now: float) -> int:
        """The level of one more failure at ``now`` seconds: the first is told, and what lasts."""
        before, self._last = self._last, now
        if now > before + _IN_A_ROW:
            self._began, self._warned = now, -math.inf
            return logging.INFO
        if now < self._began + _WORTH_A_WARNING or now < self._warned + _SAID_AGAIN_AFTER:
            return logging.DEBUG
        self._warned = now
        return logging.WARNING


class Patience:
    """How long to wait for the kubelet's stream: longer with each generation that got none.

    A kubelet that hung up on us while it saw an old instance go says nothing. So a missing stream
    is found out soon at first, and only a kubelet that proves slow is waited for.
    """

    def __init__(self, longest: float) -> None:
        """Begin with a small part of ``longest`` seconds."""
        self._longest = longest
        self._streamless = 0

    @property
    def seconds(self) -> float:
        """How long to wait now."""
        return min(math.ldexp(self._longest / _FIRST_PART, self._streamless), self._longest)

    def lose(self) -> None:
        """No stream came in time."""
        self._streamless = min(self._streamless + 1, _MOST_DOUBLINGS)

    def reset(self) -> None:
        """A stream came."""
        self._streamless = 0
