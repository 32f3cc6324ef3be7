"""The udev source: finds USB ttys by enumeration, then follows the kernel's uevents.

A uevent only says where to look. sysfs says what is there, and udevd's database whether udevd has
finished. So a lost, late, repeated or reordered event costs time, never truth.
"""

from __future__ import annotations

import logging
import math
import select
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from usbplugin.discovery.database import DIRECTORY, DatabaseWatch, udevd_has_written
from usbplugin.discovery.hanging import FIRST_PATIENCE, LIMIT, PATIENCE
from usbplugin.discovery.libudev import Libudev, Monitor, MonitorOverflowError
from usbplugin.discovery.port import DEFAULT_NODES, AllPorts, PortGone, PortPresent
from usbplugin.discovery.sightings import Look, Sightings
from usbplugin.discovery.source import Waker
from usbplugin.errors import DiscoveryError
from usbplugin.foundation.reads import Reads
from usbplugin.foundation.watch import DirectoryWatch
from usbplugin.foundation.workers import Workers
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from usbplugin.discovery.glance import Glance
    from usbplugin.discovery.port import Port
    from usbplugin.discovery.source import Post

_log = logging.getLogger(__name__)

_DEV = Path("/dev")
_RECEIVE_BUFFER = 1 << 20
_BLIND_RESCAN_INTERVAL = 1.0
_WATCH_CHECK_INTERVAL = 10.0


@dataclass(frozen=True, slots=True)
class UdevTiming:
    """How patient the source is, in seconds."""

    settle_deadline: float = 10.0
    """How long to wait for udevd before going by sysfs alone."""
    rescan_interval: float = 60.0
    """How often to look at everything, whatever the events say."""


@dataclass(frozen=True, slots=True)
class _Watches:
    """What a run learns about changes from; None where it must do without."""

    monitor: Monitor
    devices: DirectoryWatch | None
    database: DatabaseWatch | None


class UdevSource:
    """Discovers USB ttys whose node matches one of ``nodes``."""

    name = "udev"

    def __init__(
        self,
        nodes: Sequence[str] = DEFAULT_NODES,
        timing: UdevTiming = UdevTiming(),
        receive_buffer: int = _RECEIVE_BUFFER,
    ) -> None:
        """Load libudev.

        Args:
            nodes: Globs of device nodes.
            timing: How patient to be.
            receive_buffer: The netlink socket's buffer in bytes; the kernel caps it at rmem_max.

        Raises:
            DiscoveryError: libudev is not installed.
        """
        self._udev = Libudev()
        self._nodes = tuple(nodes)
        self._timing = timing
        self._receive_buffer = receive_buffer
        self._waker = Waker()
        self._reads: Reads[Glance] = Reads(Workers(), self._waker.wake)
        self._stopping = threading.Event()
        self._look_again = threading.Event()
        self._learns_by = ""

    @property
    def learns_by(self) -> str:  # noqa: D102 -- Listener.learns_by
        return self._learns_by

    def stop(self) -> None:  # noqa: D102 -- Source.stop
        self._stopping.set()
        self._waker.wake()

    def scan(self) -> tuple[Port, ...]:  # noqa: D102 -- Source.scan
        looks = self._sightings().look_at_all(self._wants, LIMIT)
        return tuple(look.port for look in looks if look.port is not None)

    def run(self, post: Post) -> None:  # noqa: D102 -- Source.run
        # A new run looks at everything again.
        sightings = self._sightings()
        reason = "start"
        with ExitStack() as exits:
            devices = self._watch_devices(exits)
            database = _watch_database(exits)
            sightings.told = database is not None and database.refresh()
            self._say_how_it_learns(sightings)
            try:
                while not self._stopping.is_set():
                    # Start before enumerating, or a device plugged in between would be missed.
                    monitor = self._udev.monitor(self._receive_buffer)
                    self._is_blind(devices)
                    self._post_all(sightings, post, reason)
                    try:
                        self._follow(_Watches(monitor, devices, database), sightings, post)
                    except MonitorOverflowError:
                        reason = "overflow"
                        _log.warning("uevents were lost in a storm; rescanning")
            finally:
                self._learns_by = ""

    def _sightings(self) -> Sightings:
        return Sightings(self._udev, self._timing.settle_deadline, self._reads)

    def _watch_devices(self, exits: ExitStack) -> DirectoryWatch | None:
        """Watch /dev instead where no uevents arrive."""
        if not uevents_cannot_arrive():
            self._learns_by = "uevents"
            return None
        watch = DirectoryWatch(_DEV, self._rescan_soon)
        exits.callback(watch.stop)
        self._learns_by = "inotify"
        return watch

    def _say_how_it_learns(self, sightings: Sightings) -> None:
        udevd = udevd_has_written()
        uevents = "kernel"
        if self._learns_by != "uevents":
            uevents = "none reach this user namespace; watching /dev instead"
        database = "none"
        if udevd:
            database = "watched" if sightings.told else "polled"
        _log.info(
            "udev source running",
            extra=fields(
                uevents=uevents,
                udevd="seen" if udevd else "not seen",
                database=database,
                nodes=self._nodes,
            ),
        )
        if not udevd:
            _log.warning(
                "no udevd found; using ports as the kernel creates them",
                extra=fields(
                    nothing_in=DIRECTORY,
                    hint="if udevd runs on this node, mount its /run/udev/data read-only; if that"
                    " is newer than this pod, restart the pod",
                ),
            )

    def _follow(self, watches: _Watches, sightings: Sightings, post: Post) -> None:
        poller = select.poll()
        for watch in (watches.monitor, self._waker, watches.database):
            if watch is not None:
                poller.register(watch.fileno(), select.POLLIN)
        interval = self._timing.rescan_interval
        next_rescan = time.monotonic() + interval
        while not self._stopping.is_set():
            if self._is_blind(watches.devices):
                next_rescan = min(next_rescan, time.monotonic() + _BLIND_RESCAN_INTERVAL)
            elif watches.devices is not None and watches.devices.renewed:
                self._rescan_soon()  # changes may have been missed until now
            wait = max(0.0, min(next_rescan, sightings.next_look) - time.monotonic())
            if watches.devices is not None:
                wait = min(wait, _WATCH_CHECK_INTERVAL)  # a watch may die silently
            ready = {file for file, _ in poller.poll(math.ceil(wait * 1000))}
            names = self._told(watches, ready, sightings)
            now = time.monotonic()
            names |= sightings.due(now)
            if names:
                self._post_looks(sightings.look(names), post)
            if self._look_again.is_set():
                self._look_again.clear()
                self._post_all(sightings, post, "change")
            elif next_rescan <= now:
                next_rescan = now + interval
                self._post_all(sightings, post, "period")

    def _is_blind(self, devices: DirectoryWatch | None) -> bool:
        """Start or repair the watch on /dev, if there is one; return whether that failed."""
        if devices is None:
            return False
        live = devices.refresh()
        self._learns_by = "inotify" if live else "polling"
        return not live

    def _told(self, watches: _Watches, ready: set[int], sightings: Sightings) -> set[str]:
        """The names to look at, given the descriptors that are ready."""
        names: set[str] = set()
        if self._waker.fileno() in ready:
            self._waker.clear()
        if watches.monitor.fileno() in ready:
            names |= self._receive(watches.monitor)
        if watches.database is not None:
            if watches.database.fileno() in ready:
                names |= sightings.heard(watches.database.changed())
            # Refresh before the look, so that anything written after it is reported.
            sightings.told = watches.database.refresh()
        return names

    def _receive(self, monitor: Monitor) -> set[str]:
        """The names the uevents are about; a look will show what happened."""
        try:
            uevents = monitor.receive()
        except OSError as error:
            raise DiscoveryError(f"the uevent monitor failed: {error}") from error
        return {uevent.name for uevent in uevents if self._wants(uevent.name)}

    def _post_looks(self, looks: Iterable[Look], post: Post) -> None:
        # The first to arrive keeps a disputed ID, so use the order a restarted plugin would see.
        ordered = sorted(looks, key=_arrival)
        # What has gone first: a device that moved is at two names in one batch of looks.
        for look in ordered:
            if look.replaced or look.port is None:
                post(PortGone(self.name, look.name, look.noticed))
        for look in ordered:
            if look.port is not None:
                post(PortPresent(self.name, look.port, look.noticed))

    def _post_all(self, sightings: Sightings, post: Post, reason: str) -> None:
        noticed = time.monotonic() if reason == "change" else None
        patience = FIRST_PATIENCE if reason == "start" else PATIENCE
        looks = sightings.look_at_all(self._wants, patience)
        for look in looks:
            if look.replaced:
                post(PortGone(self.name, look.name, noticed))
        ports = tuple(look.port for look in looks if look.port is not None)
        post(AllPorts(self.name, ports, reason, noticed))

    def _rescan_soon(self) -> None:
        self._look_again.set()
        self._waker.wake()

    def _wants(self, name: str) -> bool:
        return any(fnmatchcase(f"/dev/{name}", pattern) for pattern in self._nodes)


def _arrival(look: Look) -> tuple[int, str]:
    return (look.port.initialized_usec if look.port else 0, look.name)


def _watch_database(exits: ExitStack) -> DatabaseWatch | None:
    try:
        watch = DatabaseWatch()
    except OSError as error:
        _log.warning(
            "inotify is not available; polling udevd's database instead",
            extra=fields(error=error, hint="raise fs.inotify.max_user_instances"),
        )
        return None
    exits.callback(watch.close)
    return watch


def uevents_cannot_arrive() -> bool:
    """Whether this is a user namespace, which gets no uevents (lib/kobject_uevent.c)."""
    try:
        first = Path("/proc/self/uid_map").read_text().split()
    except OSError:
        return False
    return first[:3] != ["0", "0", "4294967295"]
