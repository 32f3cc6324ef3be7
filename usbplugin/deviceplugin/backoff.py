"""How long to wait before the next attempt to register. Pure but for its jitter."""

from __future__ import annotations

import math
import random

_FIRST_DELAY = 0.02
_MOST_DOUBLINGS = 16
_FIRST_PART = 32


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
