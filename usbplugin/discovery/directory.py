"""The directory source: ``ttyUSB*`` and ``ttyACM*`` entries of a directory, followed by inotify.

For virtual ttys, and for kernels and containers where no uevents can be had. Every look lists the
whole directory: an event says that something changed, the listing says what is there.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
import threading
import time
from enum import Enum, auto
from pathlib import Path
from select import poll
from typing import TYPE_CHECKING

import msgspec

from usbplugin.discovery.port import AllPorts, DeviceNumber, Port, UsbInterface, printable
from usbplugin.discovery.source import Waker
from usbplugin.discovery.sysfs import read_tty
from usbplugin.errors import DiscoveryError
from usbplugin.telemetry.logs import fields
from usbplugin.watch import DirectoryWatch

if TYPE_CHECKING:
    from usbplugin.discovery.source import Post

_log = logging.getLogger(__name__)

_ENTRY = re.compile(r"tty(USB|ACM)[0-9A-Za-z_.-]*")
_RESCAN_INTERVAL = 10.0
_BLIND_RESCAN_INTERVAL = 1.0
_LARGEST_DESCRIPTOR_FILE = 64 * 1024
_MOST_READINGS = 5


class Descriptors(msgspec.Struct, frozen=True):
    """The file ``.NAME.json`` beside an entry ``NAME``: the descriptors of a virtual device."""

    vendor_id: str = "0000"
    product_id: str = "0000"
    serial: str = ""
    manufacturer: str = ""
    product: str = ""
    interface: int = 0
    location: str = ""
    driver: str = ""


class _Unusable(Enum):
    GONE = auto()
    REFUSED = auto()


class DirectorySource:
    """Discovers the serial ports that are entries of, or linked from, one directory."""

    def __init__(self, directory: Path, rescan_interval: float = _RESCAN_INTERVAL) -> None:
        """Prepare to watch ``directory``, which need not exist yet."""
        self._directory = Path(os.path.abspath(directory))  # noqa: PTH100 -- links stay links
        self.name = f"directory:{self._directory}"
        self._rescan_interval = rescan_interval
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
        reason, noticed = "start", None
        try:
            while not self._stopping.is_set():
                # In this order: what happens from here on wakes us again.
                self._waker.clear()
                live = watch.refresh()
                self._learns_by = "inotify" if live else "polling"
                post(AllPorts(self.name, self.scan(), reason, noticed))
                interval = self._rescan_interval if live else _BLIND_RESCAN_INTERVAL
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
            port = self._read_whole(name)
            if isinstance(port, Port):
                ports.append(port)
            elif port is _Unusable.REFUSED:
                refused.add(name)
        for name in refused - self._refused:
            _log.warning(
                "entry ignored: it leads to no character device, or by a path that does not print",
                extra=fields(entry=self._directory / name),
            )
        self._refused = frozenset(refused)
        return tuple(ports)

    def _read_whole(self, name: str) -> Port | _Unusable:
        """What an entry is, all of it read from one and the same entry."""
        for _ in range(_MOST_READINGS):
            if (before := self._stamp(name)) is None:
                return _Unusable.GONE
            port = self._read(name)
            if self._stamp(name) == before:
                return port or _Unusable.REFUSED
        return _Unusable.GONE  # it comes and goes, and the next look is due

    def _stamp(self, name: str) -> tuple[int, int] | None:
        """The same before and after if all that was read meanwhile is one entry's; None: gone."""
        try:
            status = (self._directory / name).lstat()
        except OSError:
            return None
        return status.st_ino, status.st_ctime_ns

    def _read(self, name: str) -> Port | None:
        entry = self._directory / name
        try:
            node = entry.resolve(strict=True)
            status = node.stat()
        except (OSError, RuntimeError):  # dangling, vanished, or a loop of links
            return None
        # A path that is no Unicode fits in no message to the kubelet.
        if not stat.S_ISCHR(status.st_mode) or not f"{entry}{node}".isprintable():
            return None
        number = DeviceNumber.of(status.st_rdev)
        origin = str(self._directory)
        if not number.is_pty and (tty := read_tty(Path(f"/sys/dev/char/{number}"))):
            return Port(
                name=name,
                node=str(node),
                number=number,
                usb=tty.usb,
                sysfs_path=tty.path,
                driver=tty.driver,
                numa_node=tty.numa_node,
                origin=origin,
            )
        descriptors = self._descriptors(name)
        return Port(
            name=name,
            node=str(node),
            number=number,
            usb=self._virtual_interface(name, descriptors) if descriptors else None,
            driver=printable(descriptors.driver.encode("utf-8", "replace")) if descriptors else "",
            origin=origin,
        )

    def _descriptors(self, name: str) -> Descriptors | None:
        path = self._directory / f".{name}.json"
        try:
            with path.open("rb") as file:
                raw = file.read(_LARGEST_DESCRIPTOR_FILE)
            return msgspec.json.decode(raw, type=Descriptors)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            _log.warning("descriptor file ignored", extra=fields(file=path, error=error))
            return None

    def _virtual_interface(self, name: str, descriptors: Descriptors) -> UsbInterface:
        def clean(text: str) -> str:
            return printable(text.encode("utf-8", "replace"))

        # Without a location, the entry is the place where the device is plugged in.
        place = hashlib.sha256(os.fsencode(self._directory)).hexdigest()[:8]
        return UsbInterface(
            vendor_id=_hex_id(descriptors.vendor_id),
            product_id=_hex_id(descriptors.product_id),
            serial=clean(descriptors.serial),
            manufacturer=clean(descriptors.manufacturer),
            product=clean(descriptors.product),
            interface=descriptors.interface & 0xFF,
            location=clean(descriptors.location) or f"{place}-{name}",
        )


def _hex_id(text: str) -> str:
    """Four lower-case hexadecimal digits, 0000 where the file has something else."""
    return text.lower() if re.fullmatch(r"[0-9A-Fa-f]{4}", text) else "0000"
