"""The ttys that bear a name now: what sysfs says of each, and whether udevd is done with it.

A name, a device number and even a place in sysfs are reused, by another device or by the same one
plugged in again; the inode of the tty's directory in sysfs is not, so that tells one life of a name
from the next. It looks and remembers, in the source's thread alone, and waits for nothing.
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
    """How often to look at a port that udevd has yet to finish with, in seconds."""

    first: float
    growth: float
    longest: float


# udevd takes some 50 ms for a tty: look often at first, then ever more rarely. Where inotify tells
# of every entry that udevd writes, looking is for what inotify missed.
_UNTOLD = _Pace(0.005, 1.15, 0.5)
_TOLD = _Pace(0.25, 1.5, 2.0)
# A udevd that missed a removal (it did not run) goes on with the old entry, time stamp and all. One
# that is only behind deletes it, and in no more time than this.
_REUSED_ENTRY_GRACE = 1.0


@dataclass(slots=True)
class _Sighting:
    """One life of a name: a tty from when it appeared until it is gone."""

    tty: Tty
    noticed: float
    stale_usec: int
    """USEC_INITIALIZED of the name's last life: udevd may not have deleted that entry yet."""
    next_look: float
    interval: float
    written_at: float | None = None
    """When udevd has written of this tty, or of the last one of its number."""
    settled: bool = False
    gave_up: bool = False


@dataclass(frozen=True, slots=True)
class Look:
    """What was found under a name."""

    name: str
    port: Port | None
    """None if there is no such port, or none any longer."""
    noticed: float
    """When what was found began; ``time.monotonic`` seconds."""
    replaced: bool
    """Whether this is another life of the name than the one seen last, which is over then."""


class Sightings:
    """Looks at ttys, and remembers of each as long as it is there."""

    def __init__(self, udev: Libudev, patience: float) -> None:
        """Begin with none.

        Args:
            udev: Reads udevd's database.
            patience: Seconds that a port may wait for udevd before sysfs alone has to do.
        """
        self._udev = udev
        self._patience = patience
        self._sightings: dict[str, _Sighting] = {}
        self._last_usec: dict[str, int] = {}
        self._silent = False
        self._heard_at = -math.inf
        self.told = False
        """Whether ``heard`` is called for whatever udevd writes."""

    @property
    def next_look(self) -> float:
        """When ``due`` will name a port that udevd is not done with; infinite if there is none."""
        return min((s.next_look for s in self._sightings.values()), default=math.inf)

    def due(self, now: float) -> set[str]:
        """The names to look at now, by the clock."""
        return {name for name, s in self._sightings.items() if s.next_look <= now}

    def heard(self, entries: set[str] | None) -> set[str]:
        """The names to look at now that udevd wrote or deleted these entries; None: any of them."""
        now = self._heard_at = time.monotonic()
        if self._silent:
            self._silent = False
            _log.info("udevd is at work again")
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
        """Look at every tty whose name is wanted.

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
        """Whether the entry may be that of the name's last life."""
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
            # An event, udevd's word or the next rescan looks again.
            sighting.next_look = math.inf
        if sighting.written_at is not None and now < sighting.written_at + _REUSED_ENTRY_GRACE:
            sighting.next_look = min(sighting.next_look, sighting.written_at + _REUSED_ENTRY_GRACE)
        return Readiness.UNCONFIRMED if sighting.gave_up else Readiness.SETTLING

    def _complain(self, name: str, sighting: _Sighting) -> None:
        self._silent = self.told and self._heard_at < sighting.noticed
        _log.warning(
            "udevd did not finish in time; going by sysfs alone, without its links",
            extra=fields(
                node=f"/dev/{name}",
                seconds=self._patience,
                hint="nothing is heard of it: does it run? until then it is not waited for again"
                if self._silent
                else None,
            ),
        )

    @property
    def _pace(self) -> _Pace:
        return _TOLD if self.told else _UNTOLD


def _fault(node: str, tty: Tty) -> str:
    """Why the node is not what sysfs says it should be; empty if it is."""
    try:
        status = os.stat(node)  # noqa: PTH116 -- the numbers of what a link leads to
    except OSError as error:
        return f"{node}: {error.strerror}"
    if not stat.S_ISCHR(status.st_mode):
        return f"{node} is not a character device"
    number = DeviceNumber.of(status.st_rdev)
    if number != tty.number:
        return f"{node} has device number {number}, sysfs says {tty.number}"
    return ""
