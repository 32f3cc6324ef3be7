"""What is said of a port while reading it hangs, and when.

A dying device's lock may be held in the kernel for seconds, or for good, and whoever reads the
device's attributes waits for it. Moments of that are usual: a driver that is being bound to the
device holds the same lock. So a port stays as it was at first, and is faulty after a while.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import msgspec

from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Iterator

    from usbplugin.discovery.port import Port

_log = logging.getLogger(__name__)

PATIENCE = 0.015
"""Seconds for which facts about one port may be held up because reading another one hangs."""
FIRST_PATIENCE = 0.5
"""The same for a source's first listing. Until that, nothing is known of a port that is not in it,
and the kubelet is told nothing before."""
LIMIT = 1.5
"""Seconds after which a port whose reading still hangs is faulty."""
_RETRY = 0.25
"""Seconds until a reading that did not begin, because so many others hang, is tried again."""


class Hanging:
    """The names whose reading hangs. Pure, but for what it logs."""

    def __init__(self, directory: str) -> None:
        """Start with none; ``directory`` is where the names are, for the log."""
        self._directory = directory
        self._next: dict[str, float] = {}
        self._not_begun: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._next

    def __iter__(self) -> Iterator[str]:
        return iter(self._next)

    @property
    def next_look(self) -> float:
        """When ``due`` will next name one; infinite if there is nothing to do but wait."""
        return min(self._next.values(), default=math.inf)

    def due(self, now: float) -> set[str]:
        """The names of which something new can be said, or that can be tried again."""
        return {name for name, moment in self._next.items() if moment <= now}

    def over(self, name: str) -> None:
        """It has been read, or is gone."""
        self._next.pop(name, None)
        self._not_begun.discard(name)

    def meanwhile(
        self, name: str, port: Port | None, began: float | None, now: float
    ) -> Port | None:
        """What to list until it is read; None for nothing.

        Args:
            name: The port's name.
            port: As it was listed last; None if it never was, in this life of its name.
            began: When the reading began, ``time.monotonic`` seconds; None if it has not, for too
                many others hang.
            now: The time.
        """
        if began is None:
            self._put_off(name, now)
            return port
        self._not_begun.discard(name)
        if now < began + LIMIT:
            self._next[name] = began + LIMIT
            return port
        is_news = self._next.get(name) != math.inf
        self._next[name] = math.inf
        if port is not None:
            return msgspec.structs.replace(port, fault=_fault(port.node))
        if is_news:
            _log.warning(
                "a port is not listed, for it does not answer: reading its attributes hangs",
                extra=fields(
                    port=f"{self._directory}/{name}",
                    seconds=LIMIT,
                    hint="dmesg may say more; unplug the device",
                ),
            )
        return None

    def _put_off(self, name: str, now: float) -> None:
        if not self._not_begun:
            _log.error(
                "a port is not looked at, for reading too many others hangs; trying again",
                extra=fields(port=f"{self._directory}/{name}", seconds=_RETRY),
            )
        self._not_begun.add(name)
        self._next[name] = now + _RETRY


def _fault(node: str) -> str:
    # The same words at each look: a change would be news.
    return f"{node} does not answer: reading its attributes has taken {LIMIT:g} s and goes on"
