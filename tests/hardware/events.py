"""Device events, the kernel's and udevd's: what the fixtures wait on, so that nothing sleeps."""

from __future__ import annotations

import functools
import select
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pyudev

if TYPE_CHECKING:
    from collections.abc import Callable

Source = Literal["kernel", "udev"]

# Ample: an emulated machine on a busy host takes 0.5 s to enumerate a device, rarely 5 s.
TIMEOUT = 20.0


@dataclass(frozen=True, slots=True)
class Event:
    """One uevent of a tty."""

    action: str
    name: str
    """Kernel name, e.g. ``ttyACM0``."""
    node: str
    path: str
    """Below /sys: unlike the name, it tells which port of which bus it is about."""
    properties: dict[str, str]
    links: tuple[str, ...]
    received: float
    """time.monotonic()."""


class Monitor:
    """Events of USB ttys from one source, since it was made.

    ``wait`` takes out the first event that fits and leaves the others for later, so that tests
    need not know in which order different devices report.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._monitor = pyudev.Monitor.from_netlink(_context(), source=source)
        self._monitor.filter_by("tty")
        self._monitor.start()
        self._pending: list[Event] = []

    def fileno(self) -> int:
        descriptor: int = self._monitor.fileno()
        return descriptor

    def receive(self) -> list[Event]:
        """Take whatever has arrived, without waiting."""
        events, self._pending = self._pending, []
        while select.select([self], [], [], 0)[0]:
            # None stands for an event that the filter held back.
            if (device := self._monitor.poll(timeout=0)) is not None:
                event = _event(device)
                if event.name.startswith(("ttyACM", "ttyUSB")):
                    events.append(event)
        return events

    def wait(
        self,
        action: str,
        *,
        name: str | None = None,
        path: str | None = None,
        timeout: float = TIMEOUT,
    ) -> Event:
        """Return the first event that fits, past or to come."""
        deadline = time.monotonic() + timeout
        while True:
            self._pending = self.receive()
            for event in self._pending:
                if (
                    event.action == action
                    and name in {None, event.name}
                    and path in {None, event.path}
                ):
                    self._pending.remove(event)
                    return event
            if not select.select([self], [], [], max(0.0, deadline - time.monotonic()))[0]:
                others = [f"{event.action} {event.name}" for event in self._pending]
                raise AssertionError(
                    f"no {self.source} event {action} of {name or path or 'any tty'} "
                    f"within {timeout:g} s; there were: {others}"
                )

    def wait_all(self, action: str, count: int, *, timeout: float = TIMEOUT) -> list[Event]:
        """Return the first ``count`` events that fit."""
        deadline = time.monotonic() + timeout
        return [
            self.wait(action, timeout=max(0.0, deadline - time.monotonic())) for _ in range(count)
        ]


@functools.cache
def _context() -> pyudev.Context:
    # Making one takes 50 ms there: it runs ldconfig to find libudev.
    return pyudev.Context()


def wait_until(condition: Callable[[], bool], what: str, *, timeout: float = TIMEOUT) -> None:
    """Wait for a condition that tty events bring about; look again after each."""
    # Listen first, then look: what happens in between is not lost.
    monitors = [Monitor("kernel"), Monitor("udev")]
    deadline = time.monotonic() + timeout
    while not condition():
        if not select.select(monitors, [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        for monitor in monitors:
            monitor.receive()


def _event(device: Any) -> Event:  # noqa: ANN401 -- pyudev has no types
    return Event(
        action=device.action,
        name=device.sys_name,
        node=device.device_node or "",
        path=f"/sys{device.device_path}",
        properties=dict(device.properties),
        links=tuple(device.device_links),
        received=time.monotonic(),
    )
