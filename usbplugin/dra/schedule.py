"""When to look at our slices again, how often to write, and how long to wait after a refusal. Pure.

Nothing watches the slices: what deletes them is the kubelet, which registers us at the same time,
or an outage of the API server, which we notice. So they are applied again for a while after each.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from usbplugin.dra.cluster import RefusedError, is_passing

if TYPE_CHECKING:
    from usbplugin.errors import ApiServerError

_SOON = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, *(60.0 * minutes for minutes in range(1, 7)))
"""Seconds after the kubelet registered us: its wipe comes within seconds as a rule, and backs off
up to five minutes if the API server is in trouble."""
_PERIOD = 300.0

_CONFLICT = 409


class Looks:
    """The moments at which slices are applied even if they have not changed."""

    def __init__(self, now: float) -> None:
        """Begin at ``now``, in seconds of a clock that never goes back."""
        self.restart(now)

    def restart(self, now: float) -> None:
        """Something may have deleted them, or may be about to."""
        self._start = now
        self._done = 0
        self.next = now

    def take(self, now: float) -> bool:
        """Whether it is time to look; if so, the next moment is another one."""
        if now < self.next:
            return False
        while self.next <= now:
            self._done += 1
            if self._done < len(_SOON):
                self.next = self._start + _SOON[self._done]
            else:
                self.next = max(self.next, now) + _PERIOD
        return True


class Bucket:
    """Allows ten bursts of writes at once, and two a second in the long run."""

    most = 10.0
    a_second = 2.0

    def __init__(self, now: float) -> None:
        """Begin full."""
        self._filled = self.most
        self._at = now

    def ready_at(self, now: float) -> float:
        """When the next burst is allowed: ``now``, or later."""
        self._fill(now)
        return now + max(1.0 - self._filled, 0.0) / self.a_second

    def take(self, now: float) -> None:
        """A burst begins."""
        self._fill(now)
        self._filled = max(self._filled - 1.0, 0.0)

    def _fill(self, now: float) -> None:
        self._filled = min(self._filled + (now - self._at) * self.a_second, self.most)
        self._at = now


class Backoff:
    """How long to wait after one more failure in a row.

    =====================================  ==========================================
    no answer, 5xx, 409                    0.25 s, doubling up to 2 s: what has changed
                                           meanwhile is known soon after the server is
    429, 503 with Retry-After              what it says, up to five minutes
    any other one: 401, 403, 404, 422...   1 s, doubling up to a minute: somebody has to
                                           mend something first
    =====================================  ==========================================
    """

    _longest_that_is_asked_for = 300.0

    def __init__(self) -> None:
        """Begin with no failure."""
        self._failures = 0

    def reset(self) -> None:
        """It works."""
        self._failures = 0

    def delay(self, error: ApiServerError) -> float:
        """Seconds to wait after this failure; part of them is chance, for the nodes are many."""
        passing = is_passing(error) or error.status == _CONFLICT
        first, longest = (0.25, 2.0) if passing else (1.0, 60.0)
        delay = min(first * 2.0 ** min(self._failures, 16), longest)
        self._failures += 1
        delay *= random.uniform(0.7, 1.0)  # noqa: S311 -- spreads load, guards nothing
        asked_for = error.retry_after if isinstance(error, RefusedError) else None
        return max(delay, min(asked_for or 0.0, self._longest_that_is_asked_for))
