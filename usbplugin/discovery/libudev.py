"""The one place that touches pyudev: a typed, narrow view of libudev.

pyudev ships no types, mixes bytes with str, and its observer thread dies silently; nothing else
imports it, and nothing here decides anything.
"""

from __future__ import annotations

import errno
import select
import socket
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyudev

from usbplugin.errors import DiscoveryError

if TYPE_CHECKING:
    from collections.abc import Iterator

_CONTROL_SOCKET = Path("/run/udev/control")


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
    """What udevd has recorded of a device."""

    initialized: bool
    initialized_usec: int
    """CLOCK_MONOTONIC microseconds; 0 if not initialized."""
    links: tuple[str, ...]


def udevd_is_running() -> bool:
    """Whether there is a udevd whose database will tell when it has finished with a device."""
    return _CONTROL_SOCKET.exists()


class Libudev:
    """A libudev context."""

    def __init__(self) -> None:
        """Load libudev.

        Raises:
            DiscoveryError: there is no libudev on this machine.
        """
        try:
            self._context: Any = pyudev.Context()
        except ImportError as error:
            raise DiscoveryError(
                f"libudev cannot be loaded ({error}): install it (libudev1 on Debian), "
                "or run with --no-udev and a --device-dir"
            ) from error

    def tty_names(self) -> Iterator[str]:
        """Kernel names of all ttys there are."""
        for device in self._context.list_devices(subsystem="tty"):
            yield str(device.sys_name)

    def database_entry(self, sysfs_path: str) -> DatabaseEntry:
        """What udevd's database holds of the device at ``sysfs_path``.

        Not initialized is also the answer where the device has vanished meanwhile.
        """
        try:
            device: Any = pyudev.Devices.from_sys_path(self._context, sysfs_path)
        except pyudev.DeviceNotFoundError:
            return DatabaseEntry(initialized=False, initialized_usec=0, links=())
        return DatabaseEntry(
            initialized=bool(device.is_initialized),
            initialized_usec=int(device.properties.get("USEC_INITIALIZED", "0")),
            links=tuple(
                sorted(
                    link
                    for link in map(str, device.device_links)
                    if link.startswith("/dev/serial/")
                )
            ),
        )

    def monitor(self, receive_buffer: int) -> Monitor:
        """Listen to the kernel's own uevents, which reach other network namespaces too.

        Raises:
            DiscoveryError: the netlink socket could not be opened.
        """
        try:
            return Monitor(self._context, receive_buffer)
        except OSError as error:
            raise DiscoveryError(f"cannot listen to kernel uevents: {error}") from error


class Monitor:
    """Uevents of the tty subsystem, as the kernel sends them. Close it by dropping it."""

    def __init__(self, context: Any, receive_buffer: int) -> None:  # noqa: ANN401 -- untyped
        self._monitor: Any = pyudev.Monitor.from_netlink(context, source="kernel")
        self._monitor.filter_by("tty")
        # Not set_receive_buffer_size: going beyond rmem_max takes CAP_NET_ADMIN, and fails without.
        with closing(socket.fromfd(self.fileno(), socket.AF_NETLINK, socket.SOCK_RAW)) as copy:
            copy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._monitor.start()
        self._readable = select.poll()
        self._readable.register(self.fileno(), select.POLLIN)

    def fileno(self) -> int:
        """The netlink socket; readable when there is a uevent of any subsystem, or an overflow."""
        return int(self._monitor.fileno())

    def receive(self) -> Uevent | None:
        """Take one uevent; None if it was of another subsystem, or there was none.

        Raises:
            MonitorOverflowError: uevents were lost.
            OSError: the socket is of no more use.
        """
        for _, event in self._readable.poll(0):
            if event & ~select.POLLIN:
                # pyudev's poll would raise for this without telling why.
                with closing(
                    socket.fromfd(self.fileno(), socket.AF_NETLINK, socket.SOCK_RAW)
                ) as copy:
                    self._raise(copy.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        device: Any = None
        try:
            device = self._monitor.poll(0)
        except OSError as error:
            self._raise(error.errno or errno.EIO)
        if device is None:
            return None
        return Uevent(action=str(device.action), name=str(device.sys_name))

    @staticmethod
    def _raise(code: int) -> None:
        if code == errno.ENOBUFS:
            raise MonitorOverflowError
        if code:
            raise OSError(code, "uevent monitor failed")
