"""A narrow, typed view of libudev, and the only module that imports pyudev.

pyudev ships no types, mixes bytes with str, and its observer thread dies silently. Nothing here
makes decisions.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pyudev

from usbplugin.errors import DiscoveryError

_MOST_AT_ONCE = 256
"""Uevents read before any is acted on, so that an endless storm cannot hold everything up."""
_LONGEST_NAME = 255
"""NAME_MAX: udevd also records longer links, but cannot create them."""


class MonitorOverflowError(Exception):
    """The netlink socket's buffer overflowed (ENOBUFS): uevents were lost."""


@dataclass(frozen=True, slots=True)
class Uevent:
    """One uevent of the tty subsystem."""

    action: str
    """add, remove, change, bind, unbind, move, online or offline."""
    name: str
    """Kernel name, e.g. ``ttyUSB0``."""


@dataclass(frozen=True, slots=True)
class DatabaseEntry:
    """What udevd has recorded about a device."""

    initialized: bool
    initialized_usec: int
    """CLOCK_MONOTONIC microseconds; 0 if not initialized."""
    links: tuple[str, ...]
    """The printable ones below /dev/serial."""


class Libudev:
    """A libudev context for each thread that uses it: none of libudev's objects may be shared."""

    def __init__(self) -> None:
        """Load libudev.

        Raises:
            DiscoveryError: libudev is not installed.
        """
        try:
            self._first: Any = pyudev.Context()
        except ImportError as error:
            raise DiscoveryError(
                f"cannot load libudev ({error}): install it (libudev1 on Debian), "
                "or run with --no-udev and --device-dir"
            ) from error
        self._contexts = threading.local()

    def database_entry(self, sysfs_path: str) -> DatabaseEntry:
        """Read udevd's database entry for the device at ``sysfs_path``.

        A device that has since vanished counts as not initialized.
        """
        try:
            device: Any = pyudev.Devices.from_sys_path(self._context(), sysfs_path)
        except pyudev.DeviceNotFoundError:
            return DatabaseEntry(initialized=False, initialized_usec=0, links=())
        return DatabaseEntry(
            initialized=bool(device.is_initialized),
            initialized_usec=int(device.properties.get("USEC_INITIALIZED", "0")),
            links=tuple(sorted(filter(is_serial_link, map(str, device.device_links)))),
        )

    def monitor(self, receive_buffer: int) -> Monitor:
        """Listen for the kernel's own uevents, which reach other network namespaces too.

        Raises:
            DiscoveryError: the netlink socket could not be opened.
        """
        try:
            return Monitor(self._context(), receive_buffer)
        except OSError as error:
            raise DiscoveryError(f"cannot listen for kernel uevents: {error}") from error

    def _context(self) -> Any:  # noqa: ANN401 -- untyped
        context: Any = getattr(self._contexts, "own", None)
        if context is None:
            # As pyudev does it, but for loading the library, for which it runs ldconfig.
            context = self._contexts.own = pyudev.Context.__new__(pyudev.Context)
            context._libudev = self._first._libudev  # noqa: SLF001
            context._as_parameter_ = context._libudev.udev_new()  # noqa: SLF001
        return context


class Monitor:
    """Receives the kernel's uevents for the tty subsystem. Drop the object to close it."""

    def __init__(self, context: Any, receive_buffer: int) -> None:  # noqa: ANN401 -- untyped
        self._monitor: Any = pyudev.Monitor.from_netlink(context, source="kernel")
        self._monitor.filter_by("tty")
        # Not set_receive_buffer_size, which exceeds rmem_max and so fails without CAP_NET_ADMIN.
        with closing(socket.fromfd(self.fileno(), socket.AF_NETLINK, socket.SOCK_RAW)) as copy:
            copy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._monitor.start()
        self._readable = select.poll()
        self._readable.register(self.fileno(), select.POLLIN)

    def fileno(self) -> int:
        """The netlink socket; readable on a uevent of any subsystem, or an overflow."""
        return int(self._monitor.fileno())

    def receive(self) -> list[Uevent]:
        """Read the pending uevents.

        Raises:
            MonitorOverflowError: uevents were lost.
            OSError: the socket has failed.
        """
        uevents = []
        for _ in range(_MOST_AT_ONCE):
            ready = self._readable.poll(0)
            if not ready:
                break
            if ready[0][1] & ~select.POLLIN and (code := self._pending_error()):
                # pyudev's poll would raise here without saying why.
                raise _failure(code)
            try:
                device: Any = self._monitor.poll(0)
            except OSError as error:
                raise _failure(error.errno or errno.EIO) from error
            # None is a uevent of another subsystem.
            if device is not None:
                uevents.append(Uevent(action=str(device.action), name=str(device.sys_name)))
        return uevents

    def _pending_error(self) -> int:
        with closing(socket.fromfd(self.fileno(), socket.AF_NETLINK, socket.SOCK_RAW)) as copy:
            return copy.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def _failure(code: int) -> Exception:
    if code == errno.ENOBUFS:
        return MonitorOverflowError()
    return OSError(code, "uevent monitor failed")


def is_serial_link(link: str) -> bool:
    """Whether a udevd link is fit to be stored, shown and passed on."""
    name = os.path.basename(link)  # noqa: PTH119 -- a str, as libudev has it
    return (
        link.startswith("/dev/serial/")
        and len(os.fsencode(name)) <= _LONGEST_NAME
        and link.isprintable()  # udevd ensures that; a custom rule may not
    )
