"""USB devices that hang in the kernel: somebody holds a device's lock, and whoever reads waits.

A driver that waits for its hardware does that. Here it is a system call that holds the lock while
the kernel reads its argument, in a page of memory that is not there before we say so: see
usbdev_ioctl in drivers/usb/core/devio.c, and userfaultfd(2).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import select
import struct
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .events import TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    from .gadget import UsbGadget

# x86-64
_SYS_USERFAULTFD = 323
# linux/userfaultfd.h
_UFFD_API = 0xAA
_UFFDIO_API = 0xC018AA3F
_UFFDIO_REGISTER = 0xC020AA00
_REGISTER_MODE_MISSING = 1
# linux/usbdevice_fs.h: which driver an interface has. It changes nothing.
_USBDEVFS_GETDRIVER = 0x41045508

_libc = ctypes.CDLL(None, use_errno=True)


def problem() -> str:
    """Why this kernel lets nobody hold a device's lock; empty if it does."""
    try:
        os.close(_user_faults())
    except OSError as error:
        return f"this kernel has no userfaultfd(2) for us: {error.strerror}"
    return ""


def _user_faults() -> int:
    descriptor = int(_libc.syscall(_SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK))
    if descriptor < 0:
        code = ctypes.get_errno() or errno.EINVAL
        raise OSError(code, os.strerror(code))
    return descriptor


class HeldLock:
    """Holds the kernel's lock of a USB device, from when it can be had until it is released."""

    def __init__(self, device: Path) -> None:
        """Get ready; that needs the lock for a moment.

        Args:
            device: The USB device's directory in sysfs.
        """
        self._device = os.open(f"/dev/bus/usb/{_name_of(device)}", os.O_RDWR | os.O_CLOEXEC)
        self._faults = _user_faults()
        fcntl.ioctl(self._faults, _UFFDIO_API, struct.pack("QQQ", _UFFD_API, 0, 0))
        self._page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._view = ctypes.c_char.from_buffer(self._page)
        self._address = ctypes.addressof(self._view)
        fcntl.ioctl(
            self._faults,
            _UFFDIO_REGISTER,
            struct.pack("QQQQ", self._address, mmap.PAGESIZE, _REGISTER_MODE_MISSING, 0),
        )
        self._queued: Queued | None = None

    def begin(self) -> Queued:
        """Begin to wait for the lock."""
        argument = ctypes.c_void_p(self._address)
        self._queued = Queued(lambda: _libc.ioctl(self._device, _USBDEVFS_GETDRIVER, argument))
        return self._queued

    def wait(self) -> None:
        """Return when it is held."""
        if not select.select([self._faults], [], [], TIMEOUT)[0]:
            raise AssertionError(f"the device's lock was not to be had within {TIMEOUT:g} s")

    def release(self) -> None:
        """Let go of it."""
        if self._faults < 0:
            return
        os.close(self._faults)  # the page is there, and empty
        self._faults = -1
        if self._queued is not None:
            self._queued.join()

    def close(self) -> None:
        """Let go of it; that needs the lock once more."""
        self.release()
        os.close(self._device)

    def __enter__(self) -> Self:
        if self._queued is None:
            self.begin()
        self.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def stuck_on_arrival(gadget: UsbGadget) -> Iterator[None]:
    """Plug in a device that hangs as soon as its ttys are there."""
    device = gadget.device
    root_hub = device.parent
    (root_hub / "authorized_default").write_text("0")
    try:
        gadget.plug(wait=False)
        _until(lambda: Path(f"/dev/bus/usb/{_name_of(device)}").exists(), "the device is there")
        # First in the queue is who configures it, which makes the ttys, and second whoever hangs.
        # All others come after them.
        with closing(HeldLock(device)) as first, closing(HeldLock(device)) as second:
            first.begin()
            first.wait()
            configuring = Queued(lambda: (device / "authorized").write_text("1"))
            configuring.until_waiting()
            second.begin().until_waiting()
            first.release()
            configuring.join()
            second.wait()
            yield
    finally:
        (root_hub / "authorized_default").write_text("1")


class Queued:
    """A call in a thread of its own, which waits for a lock in the kernel."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._call()

    def until_waiting(self) -> None:
        """Return when it waits, and no signal would end that: only locks are waited for so."""
        status = Path(f"/proc/self/task/{self._thread.native_id}/stat")
        _until(
            lambda: status.read_text().rpartition(")")[2].split()[0] == "D", "it waits for a lock"
        )

    def join_for(self, seconds: float) -> None:
        """Give it so much time."""
        self._thread.join(seconds)

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def join(self) -> None:
        self._thread.join(TIMEOUT)
        if self._thread.is_alive():
            raise AssertionError(f"it still waits after {TIMEOUT:g} s")


def _name_of(device: Path) -> str:
    """Where its node is below /dev/bus/usb; a name that nobody has if it is not there."""
    try:
        bus, number = (int((device / name).read_text()) for name in ("busnum", "devnum"))
    except FileNotFoundError:
        return "none"
    return f"{bus:03}/{number:03}"


def _until(condition: Callable[[], bool], what: str) -> None:
    """Wait for what no event tells of."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {TIMEOUT:g} s: {what}")
        os.sched_yield()
