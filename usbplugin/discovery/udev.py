"""The udev source: USB ttys, found by enumeration and followed by the kernel's uevents.

A uevent only says where to look; sysfs says what is there, and udevd's database whether it is
done. So a lost, late, doubled or reordered event costs time, never truth.
"""

from __future__ import annotations

import logging
import math
import os
import select
import stat
import threading
import time
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from usbplugin.discovery.libudev import (
    Libudev,
    Monitor,
    MonitorOverflowError,
    udevd_is_running,
)
from usbplugin.discovery.port import AllPorts, DeviceNumber, Port, PortGone, PortPresent, Readiness
from usbplugin.discovery.source import Waker
from usbplugin.discovery.sysfs import Tty, read_tty
from usbplugin.errors import DiscoveryError
from usbplugin.telemetry.logs import fields
from usbplugin.watch import DirectoryWatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usbplugin.discovery.source import Post

_log = logging.getLogger(__name__)

DEFAULT_NODES = ("/dev/ttyUSB*", "/dev/ttyACM*")

_CLASS = Path("/sys/class/tty")
_DEV = Path("/dev")
_RECEIVE_BUFFER = 1 << 20
_BLIND_RESCAN_INTERVAL = 1.0
# udevd takes some 50 ms for a tty: look often at first, then ever more rarely.
_FIRST_LOOK = 0.005
_LOOK_GROWTH = 1.15
_LONGEST_LOOK = 0.5


@dataclass(slots=True)
class _Settling:
    """A port that udevd has yet to finish with."""

    deadline: float
    next_look: float
    interval: float = _FIRST_LOOK


@dataclass(frozen=True, slots=True)
class UdevTiming:
    """How patient the source is, in seconds."""

    settle_deadline: float = 10.0
    """How long a port may wait for udevd before sysfs alone has to do."""
    rescan_interval: float = 60.0
    """How often everything is looked at, whatever the events said."""


@dataclass(slots=True)
class _State:
    """What one run knows; gone with it, since a new run looks at everything again."""

    settling: dict[str, _Settling] = field(default_factory=dict)
    seen_usec: dict[str, int] = field(default_factory=dict)
    """USEC_INITIALIZED as last seen, per name."""
    stale_usec: dict[str, int] = field(default_factory=dict)
    """That of a device that has gone: udevd may not have deleted its entry yet."""


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
            receive_buffer: The netlink socket's, in bytes; the kernel caps it at rmem_max.

        Raises:
            DiscoveryError: there is no libudev.
        """
        self._udev = Libudev()
        self._nodes = tuple(nodes)
        self._timing = timing
        self._receive_buffer = receive_buffer
        self._waker = Waker()
        self._stopping = threading.Event()
        self._look_again = threading.Event()
        self._state = _State()

    def stop(self) -> None:  # noqa: D102 -- Source.stop
        self._stopping.set()
        self._waker.wake()

    def scan(self) -> tuple[Port, ...]:  # noqa: D102 -- Source.scan
        names = [name for name in self._udev.tty_names() if self._wants(name)]
        ports = (self._read(name) for name in sorted(names))
        return tuple(port for port in ports if port is not None)

    def run(self, post: Post) -> None:  # noqa: D102 -- Source.run
        self._state = _State()
        watch = DirectoryWatch(_DEV, self._rescan_soon) if _uevents_cannot_arrive() else None
        _log.info(
            "udev source running",
            extra=fields(
                uevents="none in this user namespace: watching /dev" if watch else "kernel",
                udevd="yes" if udevd_is_running() else "no (no /run/udev/control)",
                nodes=self._nodes,
            ),
        )
        reason = "start"
        try:
            while not self._stopping.is_set():
                # Before the enumeration, or a device plugged in between is lost.
                monitor = self._udev.monitor(self._receive_buffer)
                self._post_all(post, reason)
                try:
                    self._follow(monitor, post, watch)
                except MonitorOverflowError:
                    reason = "overflow"
                    _log.warning("uevents were lost in a storm; looking at everything again")
        finally:
            if watch is not None:
                watch.stop()

    def _follow(self, monitor: Monitor, post: Post, watch: DirectoryWatch | None) -> None:
        poller = select.poll()
        poller.register(monitor.fileno(), select.POLLIN)
        poller.register(self._waker.fileno(), select.POLLIN)
        interval = self._timing.rescan_interval
        next_rescan = time.monotonic() + interval
        while not self._stopping.is_set():
            if watch is not None and not watch.refresh():
                next_rescan = min(next_rescan, time.monotonic() + _BLIND_RESCAN_INTERVAL)
            looks = (settling.next_look for settling in self._state.settling.values())
            wait = max(0.0, min(next_rescan, *looks, math.inf) - time.monotonic())
            ready = dict(poller.poll(math.ceil(wait * 1000)))
            if self._waker.fileno() in ready:
                self._waker.clear()
            if monitor.fileno() in ready:
                self._receive(monitor, post)
            now = time.monotonic()
            for name, settling in list(self._state.settling.items()):
                if settling.next_look <= now:
                    self._look(name, post)
            if self._look_again.is_set():
                self._look_again.clear()
                self._post_all(post, "change")
            elif next_rescan <= now:
                next_rescan = now + interval
                self._post_all(post, "period")

    def _receive(self, monitor: Monitor, post: Post) -> None:
        try:
            uevent = monitor.receive()
        except OSError as error:
            raise DiscoveryError(f"the uevent monitor failed: {error}") from error
        if uevent is None or not self._wants(uevent.name):
            return
        if uevent.action == "remove":
            self._forget(uevent.name)
        self._look(uevent.name, post)

    def _forget(self, name: str) -> None:
        """The device behind ``name`` has gone, even if another one has taken the name already."""
        self._state.settling.pop(name, None)
        if usec := self._state.seen_usec.pop(name, 0):
            self._state.stale_usec[name] = usec

    def _look(self, name: str, post: Post) -> None:
        port = self._read(name)
        if port is None:
            self._forget(name)
            post(PortGone(self.name, name))
        else:
            post(PortPresent(self.name, port))

    def _post_all(self, post: Post, reason: str) -> None:
        post(AllPorts(self.name, self.scan(), reason))

    def _rescan_soon(self) -> None:
        self._look_again.set()
        self._waker.wake()

    def _wants(self, name: str) -> bool:
        return any(fnmatchcase(f"/dev/{name}", pattern) for pattern in self._nodes)

    def _read(self, name: str) -> Port | None:
        try:
            tty = read_tty(_CLASS / name)
        except OSError as error:
            raise DiscoveryError(f"cannot read {_CLASS / name}: {error}") from error
        if tty is None:
            return None
        entry = self._udev.database_entry(tty.path)
        node = f"/dev/{name}"
        settled = entry.initialized and entry.initialized_usec != self._state.stale_usec.get(name)
        if settled:
            self._state.stale_usec.pop(name, None)
            self._state.seen_usec[name] = entry.initialized_usec
        return Port(
            name=name,
            node=node,
            number=tty.number,
            usb=tty.usb,
            sysfs_path=tty.path,
            driver=tty.driver,
            numa_node=tty.numa_node,
            links=entry.links if settled else (),
            readiness=self._readiness(name, settled=settled),
            fault=_fault(node, tty),
            initialized_usec=entry.initialized_usec if settled else 0,
        )

    def _readiness(self, name: str, *, settled: bool) -> Readiness:
        if settled:
            self._state.settling.pop(name, None)
            return Readiness.READY
        if not udevd_is_running():
            self._state.settling.pop(name, None)
            return Readiness.UNCONFIRMED
        now = time.monotonic()
        settling = self._state.settling.get(name)
        if settling is None:
            settling = _Settling(now + self._timing.settle_deadline, now + _FIRST_LOOK)
            self._state.settling[name] = settling
        elif now >= settling.deadline:
            # Kept out of the timer's way; a change event or the next rescan looks again.
            settling.next_look = math.inf
            return Readiness.UNCONFIRMED
        elif now >= settling.next_look:
            settling.interval = min(settling.interval * _LOOK_GROWTH, _LONGEST_LOOK)
            settling.next_look = min(now + settling.interval, settling.deadline)
        return Readiness.SETTLING


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


def _uevents_cannot_arrive() -> bool:
    """Whether this is a user namespace: the kernel sends it no uevents (lib/kobject_uevent.c)."""
    try:
        first = Path("/proc/self/uid_map").read_text().split()
    except OSError:
        return False
    return first[:3] != ["0", "0", "4294967295"]
