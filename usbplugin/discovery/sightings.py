"""Tracks the tty behind each name: what sysfs says about it, and whether udevd has finished.

Names, device numbers and even sysfs paths are reused, by another device or by the same one plugged
in again. The inode of the tty's sysfs directory is not, so it tells one life of a name from the
next. Everything here runs in the source's thread. It waits for what it reads, but not for long.
"""

from __future__ import annotations

import logging
import math
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from usbplugin.discovery.database import udevd_has_written
from usbplugin.discovery.glance import Glance
from usbplugin.discovery.hanging import PATIENCE, Hanging
from usbplugin.discovery.port import Port, Readiness
from usbplugin.errors import DiscoveryError
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from usbplugin.discovery.libudev import DatabaseEntry, Libudev
    from usbplugin.discovery.sysfs import Tty
    from usbplugin.foundation.reads import Reads

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
    port: Port | None = None
    """As a look last found it."""


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

    def __init__(self, udev: Libudev, patience: float, reads: Reads[Glance]) -> None:
        """Start with none.

        Args:
            udev: Reads udevd's database.
            patience: Seconds to wait for udevd before going by sysfs alone.
            reads: Make the glances. What was read for an earlier object is not used.
        """
        self._udev = udev
        self._patience = patience
        self._reads = reads
        self._reads.start_afresh()
        self._hanging = Hanging("/dev")
        self._sightings: dict[str, _Sighting] = {}
        self._last_usec: dict[str, int] = {}
        self._silent = False
        self._heard_at = -math.inf
        self.told = False
        """Whether ``heard`` is called for everything udevd writes."""

    @property
    def next_look(self) -> float:
        """When ``due`` will next name a port; infinite if that takes an event, or an answer."""
        settling = (s.next_look for name, s in self._sightings.items() if name not in self._hanging)
        return min((self._hanging.next_look, *settling))

    def due(self, now: float) -> set[str]:
        """The names due for a look, those that can be read at last among them."""
        settling = {
            name
            for name, s in self._sightings.items()
            if s.next_look <= now and name not in self._hanging
        }
        return settling | self._hanging.due(now) | self._reads.late()

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

    def look(self, names: Collection[str], patience: float = PATIENCE) -> list[Look]:
        """Look at these names; nothing is said of those that were never seen and cannot be read.

        Args:
            names: Where to look.
            patience: How long one that hangs may hold up the others, in seconds.

        Raises:
            DiscoveryError: sysfs cannot be read.
        """
        now = time.monotonic()
        done = self._reads.read({name: self._glance(name, now) for name in names}, patience)
        looks = (
            self._found(name, done[name]) if name in done else self._meanwhile(name)
            for name in names
        )
        return [look for look in looks if look is not None]

    def look_at_all(self, wanted: Callable[[str], bool], patience: float = PATIENCE) -> list[Look]:
        """Look at every tty with a wanted name, as ``look`` does.

        Raises:
            DiscoveryError: sysfs cannot be read.
        """
        try:
            names = set(filter(wanted, os.listdir(CLASS)))  # noqa: PTH208 -- names, not paths
        except OSError as error:
            raise DiscoveryError(f"cannot list {CLASS}: {error.strerror}") from error
        for name in {*self._sightings, *self._hanging} - names:
            self._forget(name)
        return self.look(sorted(names), patience)

    def _glance(self, name: str, now: float) -> Glance:
        sighting = self._sightings.get(name)
        known = sighting.tty if sighting is not None else None
        return Glance(f"{CLASS}/{name}", f"/dev/{name}", self._udev, known, now)

    def _found(self, name: str, glance: Glance) -> Look:
        """What a glance says."""
        self._hanging.over(name)
        now = glance.began
        if glance.tty is None or glance.entry is None:
            self._sightings.pop(name, None)
            return Look(name, None, now, replaced=False)
        before = self._sightings.get(name)
        sighting = self._sight(name, glance.tty, now)
        noticed = now if sighting.settled or sighting.gave_up else sighting.noticed
        port = sighting.port = self._port(name, sighting, glance.entry, glance.fault, now)
        return Look(name, port, noticed, replaced=before not in (None, sighting))

    def _meanwhile(self, name: str) -> Look | None:
        """What there is to say of a name that is not read yet; None if nothing is known of it."""
        now = time.monotonic()
        # Like the listing, this asks no driver, so it does not hang.
        if not os.path.lexists(f"{CLASS}/{name}"):
            self._forget(name)
            return Look(name, None, now, replaced=False)
        sighting, glance = self._sightings.get(name), self._reads.left_behind(name)
        is_over = sighting and glance and glance.inode not in {None, sighting.tty.inode}
        if is_over:
            self._sightings.pop(name)
            sighting = None
        began = glance.began if glance else None
        port = self._hanging.meanwhile(name, sighting.port if sighting else None, began, now)
        if sighting:
            sighting.port = port
        return Look(name, port, now, replaced=False) if port or is_over else None

    def _forget(self, name: str) -> None:
        """It is gone, whatever reading it will come to."""
        self._sightings.pop(name, None)
        self._hanging.over(name)
        self._reads.abandon(name)

    def _sight(self, name: str, tty: Tty, now: float) -> _Sighting:
        sighting = self._sightings.get(name)
        if sighting is not None and sighting.tty is tty:
            return sighting
        pace = self._pace
        stale = self._last_usec.get(name, 0)
        sighting = self._sightings[name] = _Sighting(tty, now, stale, now + pace.first, pace.first)
        return sighting

    def _port(
        self, name: str, sighting: _Sighting, entry: DatabaseEntry, fault: str, now: float
    ) -> Port:
        tty = sighting.tty
        settled = entry.initialized and not self._may_be_stale(entry, sighting, now)
        if settled:
            readiness = Readiness.READY
            self._last_usec[name] = entry.initialized_usec
            sighting.settled, sighting.next_look = True, math.inf
        else:
            readiness = self._readiness(name, sighting, now)
        return Port(
            name=name,
            node=f"/dev/{name}",
            number=tty.number,
            usb=tty.usb,
            sysfs_path=tty.path,
            driver=tty.driver,
            numa_node=tty.numa_node,
            links=entry.links if settled else (),
            readiness=readiness,
            fault=fault,
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
