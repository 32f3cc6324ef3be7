"""The directory source: ``ttyUSB*`` and ``ttyACM*`` entries of a directory, followed by inotify.

For virtual ttys, and for kernels and containers without uevents. Every look lists the whole
directory: an event says that something changed, the listing says what is there.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from pathlib import Path
from select import poll
from typing import TYPE_CHECKING

from usbplugin.discovery.entry import NoPort, read_entry
from usbplugin.discovery.port import AllPorts, Port
from usbplugin.discovery.source import Waker
from usbplugin.errors import DiscoveryError
from usbplugin.foundation.watch import DirectoryWatch
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
                    post(AllPorts(self.name, self.scan(), reason, noticed))
                interval = _CHECK_INTERVAL if live else _BLIND_RESCAN_INTERVAL
                if poller.poll(interval * 1000):
                    reason, noticed = "change", time.monotonic()
                else:
                    reason, noticed = "period", None
        finally:
            self._learns_by = ""
            watch.stop()

    def scan(self) -> tuple[Port, ...]:  # noqa: D102 -- Source.scan
        try:
            names = sorted(os.listdir(self._directory))  # noqa: PTH208 -- names, not paths
        except (FileNotFoundError, NotADirectoryError):
            names = []
        except OSError as error:
            raise DiscoveryError(f"cannot list {self._directory}: {error.strerror}") from error
        refused: set[str] = set()
        ports = []
        for name in filter(_ENTRY.fullmatch, names):
            port = read_entry(self._directory, name)
            if isinstance(port, Port):
                ports.append(port)
            elif port is NoPort.UNFIT:
                refused.add(name)
        for name in refused - self._refused:
            _log.warning(
                "entry ignored: not a character device, or its path is not printable",
                extra=fields(entry=self._directory / name),
            )
        self._refused = frozenset(refused)
        return tuple(ports)
