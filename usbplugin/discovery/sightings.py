"""Tracks the tty behind each name: what sysfs says about it, and whether udevd has finished.

Names, device numbers and even sysfs paths are reused, by another device or by the same one plugged
in again. The inode of the tty's sysfs directory is not, so it tells one life of a name from the
next. Everything here runs in the source's thread and never waits.
"""

from __future__ import annotations

import logging
import math
import os
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from usbplugin.discovery.database import udevd_has_written
from usbplugin.discovery.port import DeviceNumber, Port, Readiness
from usbplugin.discovery.sysfs import Tty, inode_of, read_tty
from usbplugin.errors import DiscoveryError
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from usbplugin.discovery.libudev import DatabaseEntry, Libudev

_log = logging.getLogger(__name__)

CLASS = "/sys/class/tty"


@dataclass(frozen=True, slots=True)
class _Pace:
    """How often to look at a port that udevd has not finished with, in seconds."""

    first: float
    growth: float
    longest: float


# udevd takes some 50 ms for a tty: look often at first, then less and less. Where inotify reports
# every entry udevd writes, looking only catches what inotify missed.
_UNTOLD = _Pace(0.005, 1.15, 0.5)
_TOLD = _Pace(0.25, 1.5, 2.0)
# A udevd that missed a removal (it was not running) keeps the old entry, time stamp included. One
# that is merely behind deletes it within this time.
_REUSED_ENTRY_GRACE = 1.0


@dataclass(slots=True)
class _Sighting:
    """One life of a name: a tty, from its appearance until it is gone."""

    tty: Tty
    noticed: float
    stale_usec: int
    """USEC_INITIALIZED of the name's previous life: udevd may not have deleted that entry yet."""
    next_look: float
    interval: float
    written_at: float | None = None
    """When udevd wrote about this tty, or the previous one with its number."""
    settled: bool = False
    gave_up: bool = False


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at a name found."""

    name: str
    port: Port | None
    """None if there is no such port, or not any more."""
    noticed: float
    """When this state began; ``time.monotonic`` seconds."""
    replaced: bool
    """Whether the name has begun a new life, so that the one seen last is over."""


class Sightings:
    """Looks at ttys, and remembers each for as long as it is present."""

    def __init__(self, udev: Libudev, patience: float) -> None:
        """Start with none.

        Args:
            udev: Reads udevd's database.
            patience: Seconds to wait for udevd before going by sysfs alone.
        """
        self._udev = udev
        self._patience = patience
        self._sightings: dict[str, _Sighting] = {}
        self._last_usec: dict[str, int] = {}
        self._silent = False
        self._heard_at = -math.inf
        self.told = False
        """Whether ``heard`` is called for everything udevd writes."""

    @property
    def next_look(self) -> float:
        """When ``due`` will next name a port; infinite if udevd has finished with them all."""
        return min((s.next_look for s in self._sightings.values()), default=math.inf)

    def due(self, now: float) -> set[str]:
        """The names due for a look."""
        return {name for name, s in self._sightings.items() if s.next_look <= now}

    def heard(self, entries: set[str] | None) -> set[str]:
        """The names to look at after udevd changed ``entries`` (None: any of them)."""
        now = self._heard_at = time.monotonic()
        if self._silent:
            self._silent = False
            _log.info("udevd is working again")
        names = set()
        for name, sighting in self._sightings.items():
            if entries is None or f"c{sighting.tty.number}" in entries:
                names.add(name)
                sighting.written_at = sighting.written_at or now
        return names

    def look(self, name: str) -> Look:
        """Look at one name.

        Raises:
            DiscoveryError: sysfs cannot be read.
        """
        now = time.monotonic()
        before = self._sightings.get(name)
        sighting = self._sight(name, now)
        replaced = before is not None and sighting is not None and sighting is not before
        if sighting is None:
            return Look(name, None, now, replaced=False)
        noticed = now if sighting.settled or sighting.gave_up else sighting.noticed
        return Look(name, self._port(name, sighting, now), noticed, replaced=replaced)

    def look_at_all(self, wanted: Callable[[str], bool]) -> Iterator[Look]:
        """Look at every tty with a wanted name.

        Raises:
            DiscoveryError: sysfs cannot be read.
        """
        try:
            names = set(filter(wanted, os.listdir(CLASS)))  # noqa: PTH208 -- names, not paths
        except OSError as error:
            raise DiscoveryError(f"cannot list {CLASS}: {error.strerror}") from error
        for name in self._sightings.keys() - names:
            del self._sightings[name]
        return map(self.look, sorted(names))

    def _sight(self, name: str, now: float) -> _Sighting | None:
        path = f"{CLASS}/{name}"
        sighting = self._sightings.get(name)
        if sighting is not None and sighting.tty.inode == inode_of(path):
            return sighting
        try:
            tty = read_tty(path)
        except OSError as error:
            raise DiscoveryError(f"cannot read {path}: {error}") from error
        if tty is None:
            self._sightings.pop(name, None)
            return None
        pace = self._pace
        stale = self._last_usec.get(name, 0)
        sighting = _Sighting(tty, now, stale, now + pace.first, pace.first)
        self._sightings[name] = sighting
        return sighting

    def _port(self, name: str, sighting: _Sighting, now: float) -> Port:
        tty = sighting.tty
        entry = self._udev.database_entry(tty.path)
        settled = entry.initialized and not self._may_be_stale(entry, sighting, now)
        if settled:
            readiness = Readiness.READY
            self._last_usec[name] = entry.initialized_usec
            sighting.settled, sighting.next_look = True, math.inf
        else:
            readiness = self._readiness(name, sighting, now)
        node = f"/dev/{name}"
        return Port(
            name=name,
            node=node,
            number=tty.number,
            usb=tty.usb,
            sysfs_path=tty.path,
            driver=tty.driver,
            numa_node=tty.numa_node,
            links=entry.links if settled else (),
            readiness=readiness,
            fault=_fault(node, tty),
            initialized_usec=entry.initialized_usec if settled else 0,
        )

    @staticmethod
    def _may_be_stale(entry: DatabaseEntry, sighting: _Sighting, now: float) -> bool:
        """Whether the entry may belong to the name's previous life."""
        if entry.initialized_usec != sighting.stale_usec:
            return False
        written_at = sighting.written_at
        return written_at is None or now < written_at + _REUSED_ENTRY_GRACE

    def _readiness(self, name: str, sighting: _Sighting, now: float) -> Readiness:
        sighting.settled = False
        deadline = sighting.noticed + self._patience
        if not sighting.gave_up:
            sighting.gave_up = self._silent or not udevd_has_written()
            if not sighting.gave_up and now >= deadline:
                sighting.gave_up = True
                self._complain(name, sighting)
        if now >= sighting.next_look:
            pace = self._pace
            sighting.interval = min(sighting.interval * pace.growth, pace.longest)
            sighting.next_look = min(now + sighting.interval, deadline)
        if sighting.gave_up:
            # Look again on an event, when udevd writes, or at the next rescan.
            sighting.next_look = math.inf
        if sighting.written_at is not None and now < sighting.written_at + _REUSED_ENTRY_GRACE:
            sighting.next_look = min(sighting.next_look, sighting.written_at + _REUSED_ENTRY_GRACE)
        return Readiness.UNCONFIRMED if sighting.gave_up else Readiness.SETTLING

    def _complain(self, name: str, sighting: _Sighting) -> None:
        self._silent = self.told and self._heard_at < sighting.noticed
        _log.warning(
            "udevd did not finish in time; using the port as sysfs describes it, without links",
            extra=fields(
                node=f"/dev/{name}",
                seconds=self._patience,
                hint="udevd has gone quiet: is it running? not waiting for it until it writes again"
                if self._silent
                else None,
            ),
        )

    @property
    def _pace(self) -> _Pace:
        return _TOLD if self.told else _UNTOLD


def _fault(node: str, tty: Tty) -> str:
    """How the node differs from what sysfs says; empty if it does not."""
    try:
        status = os.stat(node)  # noqa: PTH116 -- a str
    except OSError as error:
        return f"{node}: {error.strerror}"
    if not stat.S_ISCHR(status.st_mode):
        return f"{node} is not a character device"
    number = DeviceNumber.of(status.st_rdev)
    if number != tty.number:
        return f"{node} has device number {number}, sysfs says {tty.number}"
    return ""
