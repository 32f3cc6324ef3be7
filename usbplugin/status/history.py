"""Recent device changes, to look back at or to follow."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from usbplugin.foundation.pulse import Pulse
from usbplugin.status.rows import moment

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from usbplugin.inventory import Change

MOST_EVENTS = 256


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One change to one device, or something that the DRA front did."""

    sequence: int
    """Numbers the events since the program started; a gap means that some were missed."""
    time: str
    event: str
    """The device's new state of health, or ``forgotten``, ``held``, ``released``, or ``changed``
    for anything else. Of the DRA front: ``prepared``, ``refused``, ``unprepared``, ``tainted``,
    ``untainted``, ``published`` or ``recreated``."""
    device: str
    resource: str
    before: str | None
    """The previous state of health; null for a new device."""
    after: str | None
    """The new one; null for a forgotten device."""
    reason: str
    nodes: tuple[str, ...]
    holders: tuple[str, ...]


class History:
    """A ring of events. For use in the event loop only."""

    def __init__(self, most: int = MOST_EVENTS) -> None:
        """Remember up to ``most`` events."""
        self._events: deque[Event] = deque(maxlen=most)
        self._last = 0
        self._holders: dict[str, tuple[str, ...]] = {}
        self._more = Pulse()

    @property
    def events(self) -> tuple[Event, ...]:
        """The remembered events, oldest first."""
        return tuple(self._events)

    def record(self, changes: Iterable[Change]) -> None:
        """Record changes that have just happened."""
        now = moment(time.time())
        for change in changes:
            device = change.device
            held_by = self._holders.get(device.id, ())
            if change.after is None:
                name = "forgotten"
                self._holders.pop(device.id, None)
            else:
                self._holders[device.id] = device.holders
                name = change.after.value
                if change.before is change.after:
                    name = _what_else(held_by, device.holders)
            self._last += 1
            self._events.append(
                Event(
                    sequence=self._last,
                    time=now,
                    event=name,
                    device=device.id,
                    resource=device.resource,
                    before=change.before.value if change.before else None,
                    after=change.after.value if change.after else None,
                    reason=change.reason,
                    nodes=device.nodes,
                    holders=device.holders,
                )
            )
        self._more.beat()

    def note(self, event: str, *, device: str = "", resource: str = "", reason: str = "") -> None:
        """Record what has happened, other than a change of a device.

        Args:
            event: What it is called.
            device: The ID of the device it is about, if any.
            resource: That device's, if known.
            reason: Why, or with whom.
        """
        self._last += 1
        self._events.append(
            Event(
                sequence=self._last,
                time=moment(time.time()),
                event=event,
                device=device,
                resource=resource,
                before=None,
                after=None,
                reason=reason,
                nodes=(),
                holders=self._holders.get(device, ()),
            )
        )
        self._more.beat()

    def since(self, sequence: int) -> list[Event]:
        """The remembered events after that one."""
        return [event for event in self._events if event.sequence > sequence]

    async def follow(self, sequence: int, patience: float) -> AsyncGenerator[list[Event], None]:
        """Yield the events after that one as they happen; an empty list whenever patience runs out.

        A slow reader misses the oldest.
        """
        while True:
            if events := self.since(sequence):
                sequence = events[-1].sequence
                yield events
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self._more.wait()
                    continue
            yield []


def _what_else(before: tuple[str, ...], after: tuple[str, ...]) -> str:
    if len(after) > len(before):
        return "held"
    return "released" if len(after) < len(before) else "changed"
