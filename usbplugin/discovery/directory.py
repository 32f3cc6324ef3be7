"""The directory source: ``ttyUSB*`` and ``ttyACM*`` entries of a directory, followed by inotify.

For virtual ttys, and for kernels and containers without uevents. Every look lists the whole
directory: an event says that something changed, the listing says what is there. Entries may lead to
real ttys, so reading one may hang.
"""

from __future__ import annotations

import logging
import math
import os
import re
import threading
import time
from pathlib import Path
from select import poll
from typing import TYPE_CHECKING

from usbplugin.discovery.entry import EntryGlance, NoPort, Stamp, stamp_of
from usbplugin.discovery.hanging import FIRST_PATIENCE, LIMIT, PATIENCE, Hanging
from usbplugin.discovery.port import AllPorts, Port
from usbplugin.discovery.source import Waker
from usbplugin.errors import DiscoveryError
from usbplugin.foundation.reads import Reads
from usbplugin.foundation.watch import DirectoryWatch
from usbplugin.foundation.workers import Workers
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from usbplugin.discovery.source import Post

_log = logging.getLogger(__name__)

_ENTRY = re.compile(r"tty(USB|ACM)[0-9A-Za-z_.-]*")
_RESCAN_INTERVAL = 60.0
_CHECK_INTERVAL = 10.0
"""Seconds between checks that the watch is alive and on the right directory."""
_BLIND_RESCAN_INTERVAL = 1.0


class DirectorySource:
    """Discovers the serial ports in, or linked from, one directory."""

    def __init__(self, directory: Path) -> None:
        """Prepare to watch ``directory``, which need not exist yet."""
        self._directory = Path(os.path.abspath(directory))  # noqa: PTH100 -- links stay links
        self.name = f"directory:{self._directory}"
        self._waker = Waker()
        self._stopping = threading.Event()
        self._reads: Reads[EntryGlance] = Reads(Workers(), self._waker.wake)
        self._hanging = Hanging(str(self._directory))
        self._known: dict[str, tuple[Port, Stamp | None]] = {}
        self._refused: frozenset[str] = frozenset()
        self._learns_by = ""

    @property
    def learns_by(self) -> str:  # noqa: D102 -- Listener.learns_by
        return self._learns_by

    def stop(self) -> None:  # noqa: D102 -- Source.stop
        self._stopping.set()
        self._waker.wake()

    def run(self, post: Post) -> None:  # noqa: D102 -- Source.run
        watch = DirectoryWatch(self._directory, self._waker.wake)
        poller = poll()
        poller.register(self._waker.fileno())
        _log.info("directory source running", extra=fields(directory=self._directory))
        if not self._directory.is_dir():
            _log.warning(
                "device directory does not exist yet", extra=fields(directory=self._directory)
            )
        self._reads.start_afresh()
        reason, noticed, next_rescan = "start", None, 0.0
        try:
            while not self._stopping.is_set():
                # Clear first: anything that happens from here on wakes us again.
                self._waker.clear()
                live = watch.refresh()
                self._learns_by = "inotify" if live else "polling"
                now = time.monotonic()
                if reason != "period" or watch.renewed or now >= next_rescan or not live:
                    next_rescan = now + _RESCAN_INTERVAL
                    patience = FIRST_PATIENCE if reason == "start" else PATIENCE
                    post(AllPorts(self.name, self._list(patience), reason, noticed))
                interval = _CHECK_INTERVAL if live else _BLIND_RESCAN_INTERVAL
                interval = max(0.0, min(interval, self._hanging.next_look - time.monotonic()))
                changes = poller.poll(math.ceil(interval * 1000))
                if changes or self._hanging.due(time.monotonic()):
                    reason, noticed = "change", time.monotonic()
                else:
                    reason, noticed = "period", None
        finally:
            self._learns_by = ""
            watch.stop()

    def scan(self) -> tuple[Port, ...]:  # noqa: D102 -- Source.scan
        if not self._directory.is_dir():
            what = "is not a directory" if self._directory.exists() else "does not exist"
            raise DiscoveryError(f"the device directory {self._directory} {what}")
        self._reads.start_afresh()
        return self._list(LIMIT)

    def _list(self, patience: float) -> tuple[Port, ...]:
        try:
            entries = os.listdir(self._directory)  # noqa: PTH208 -- names, not paths
        except (FileNotFoundError, NotADirectoryError):
            entries = []
        except OSError as error:
            raise DiscoveryError(f"cannot list {self._directory}: {error.strerror}") from error
        names = sorted(filter(_ENTRY.fullmatch, entries))
        for name in {*self._known, *self._hanging}.difference(names):
            self._known.pop(name, None)
            self._hanging.over(name)
            self._reads.abandon(name)
        now = time.monotonic()
        done = self._reads.read(
            {name: EntryGlance(self._directory, name, now) for name in names}, patience
        )
        for name in names:
            if (glance := done.get(name)) is None:
                self._wait_for(name)
                continue
            self._hanging.over(name)
            if isinstance(glance.found, Port):
                self._known[name] = glance.found, glance.stamp
            else:
                self._known.pop(name, None)
        self._complain({name for name, glance in done.items() if glance.found is NoPort.UNFIT})
        return tuple(self._known[name][0] for name in names if name in self._known)

    def _wait_for(self, name: str) -> None:
        """Decide what is known of an entry that has not been read yet."""
        port, stamp = self._known.pop(name, (None, None))
        if stamp_of(self._directory / name) != stamp:
            port = None  # the entry is another one
        glance = self._reads.left_behind(name)
        began = glance.began if glance else None
        if port := self._hanging.meanwhile(name, port, began, time.monotonic()):
            self._known[name] = port, stamp

    def _complain(self, unfit: set[str]) -> None:
        for name in unfit - self._refused:
            _log.warning(
                "entry ignored: not a character device, or its path is not printable",
                extra=fields(entry=self._directory / name),
            )
        self._refused = frozenset(unfit)
