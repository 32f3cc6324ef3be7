"""Virtual ttys: USB serial devices made of ptys, plugged into a directory and pulled out again.

This module owns the ptys, the thread that moves bytes between them, and the entries of the
directory that stands for the USB bus. It never discovers ports and knows nothing of Kubernetes: to
the rest, a virtual tty is an entry of a directory like any other.

What a pty does not do: it has no modem lines and no baud rate, and since the bus keeps it open,
what an application set on it (termios, TIOCEXCL) outlives the application's close.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import math
import os
import re
import stat
import struct
import termios
import threading
import tty
from concurrent import futures
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Self, TypeVar

import msgspec

from usbplugin.errors import VirtualTtyError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

CONTROL_SOCKET: Final = ".control.sock"
"""Name, within the bus directory, of the socket that ``usbplugin.virtual.control`` serves."""

_JOURNAL = ".bus"
_NAME = re.compile(r"tty(USB|ACM)[0-9]+")
# Bytes held per direction between two ptys, beside what the kernel holds (some 13 kB each).
_BUFFER = 64 * 1024
# The kernel's line buffer is 4 kB (N_TTY_BUF_SIZE); flushing well before it is full keeps lines
# whole, since a line is then never accepted in part.
_UNREAD_LINES = 2048
_MIN_INTERVAL = 0.001

HexId = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{4})?\Z")]
# A string descriptor's length is one byte, two bytes are header: 126 UTF-16 units (USB 2.0, 9.6.7).
UsbString = Annotated[str, msgspec.Meta(max_length=126)]


class Descriptors(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a virtual device says of itself: the keys of its side file, empty ones left out.

    Strings are arbitrary Unicode, control characters included. Bytes that are not UTF-8 have no
    place in JSON, so a lone surrogate (how Python carries such bytes) is refused when plugging.
    """

    vendor_id: HexId = ""
    """Four lower-case hexadecimal digits; given together with ``product_id`` or not at all."""
    product_id: HexId = ""
    serial: UsbString = ""
    manufacturer: UsbString = ""
    product: UsbString = ""
    interface: Annotated[int, msgspec.Meta(ge=0, le=255)] = 0
    """bInterfaceNumber."""
    location: UsbString = ""
    """Where it is plugged in, e.g. ``virtual-1``."""
    driver: UsbString = ""


NO_DESCRIPTORS: Final = Descriptors()
"""A device that says nothing of itself."""


class Peer(StrEnum):
    """Who is at the far end of a virtual tty."""

    PAIR = "pair"
    """Whoever opens ``DIR/peer-<name>``, a second tty. Each side waits while the other is full."""
    ECHO = "echo"
    """What the application writes comes back. One that never reads is stopped when all is full."""
    LINES = "lines"
    r"""A line ``{"device": "<serial or name>", "count": 1}\n`` at once, then one per interval.

    What is written to it is dropped. When 2 kB lie unread, they are dropped for the newest line.
    """


class VirtualPort(msgspec.Struct, frozen=True, kw_only=True):
    """A device of the bus: plugged in, or remembered since it was unplugged."""

    name: str
    """The port's name, ``ttyUSB0``; of an unplugged device, the one it had last."""
    descriptors: Descriptors = NO_DESCRIPTORS
    peer: Peer = Peer.PAIR
    interval: float = 1.0
    """Seconds between two lines; used by ``Peer.LINES`` alone."""
    path: str = ""
    """``DIR/ttyUSB0``, a symlink to ``node``; empty while unplugged."""
    node: str = ""
    """The pty that applications open, e.g. ``/dev/pts/7``; empty while unplugged."""
    peer_path: str = ""
    """``DIR/peer-ttyUSB0`` of a plugged ``Peer.PAIR``, otherwise empty."""

    @property
    def plugged(self) -> bool:
        """Whether it is on the bus now."""
        return bool(self.path)


class VirtualBus:
    """A directory as a USB bus, held by one process at a time; to be closed, best by ``with``.

    ``plug`` makes, in this order, the pty or ptys, the side file ``DIR/.<name>.json``,
    ``DIR/peer-<name>`` if there is one, and the symlink ``DIR/<name>``; ``unplug`` takes it all
    back in reverse order, and hangs up what applications have open: a read under way gives EIO, a
    later one ``b''``, a write EIO. All methods may be called from any thread. Leftovers of a killed
    process are removed at construction; entries that no bus made are never touched.
    """

    def __init__(self, directory: Path) -> None:
        """Take the directory, which is made if it is missing.

        Raises:
            VirtualTtyError: another process serves this directory, or it cannot be written.
        """
        self.directory: Final = directory.absolute()
        self._plugged: dict[str, tuple[VirtualPort, contextlib.ExitStack]] = {}
        self._unplugged: list[VirtualPort] = []
        self._closed = False
        self._claim = _Claim(self.directory)
        with contextlib.ExitStack() as undo:
            undo.callback(self._claim.release)
            self.pump: Final = Pump(f"the virtual bus {self.directory}")
            undo.pop_all()

    def plug(
        self,
        name: str = "ttyUSB0",
        descriptors: Descriptors = NO_DESCRIPTORS,
        *,
        peer: Peer = Peer.PAIR,
        interval: float = 1.0,
    ) -> VirtualPort:
        """Plug in a new device.

        Raises:
            VirtualTtyError: a value cannot be meant, the name is taken, ptys or file descriptors
                have run out, the directory cannot be written, or the bus is closed or has failed.
        """
        _check_name(name)
        _check_descriptors(name, descriptors)
        if not _MIN_INTERVAL <= interval < math.inf:
            raise VirtualTtyError(
                f"{name}: an interval of {interval} s is not possible; "
                f"give {_MIN_INTERVAL} s or more"
            )
        device = VirtualPort(name=name, descriptors=descriptors, peer=peer, interval=interval)
        return self.pump.call(lambda: self._plug(device))

    def unplug(self, name: str) -> VirtualPort:
        """Pull out the device that is plugged in as ``name``; it is remembered for ``replug``.

        Raises:
            VirtualTtyError: no such device is plugged in, an entry of the directory cannot be
                removed, or the bus is closed or has failed.
        """
        return self.pump.call(lambda: self._unplug(name))

    def replug(self, name: str, rename: str = "") -> VirtualPort:
        """Bring back the device last unplugged as ``name``, as ``rename`` if given, on a new pty.

        Raises:
            VirtualTtyError: no such device is unplugged, and as for ``plug``.
        """
        return self.pump.call(lambda: self._replug(name, rename or name))

    def ports(self) -> tuple[VirtualPort, ...]:
        """List the plugged devices, in the order in which they were plugged in.

        Raises:
            VirtualTtyError: the bus is closed or has failed.
        """
        return self.pump.call(lambda: tuple(port for port, _ in self._plugged.values()))

    def unplugged(self) -> tuple[VirtualPort, ...]:
        """List the devices that ``replug`` can bring back, the one unplugged last at the end.

        Raises:
            VirtualTtyError: the bus is closed or has failed.
        """
        return self.pump.call(lambda: tuple(self._unplugged))

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the bus is closed: True; False if ``timeout`` seconds passed before that.

        Raises:
            VirtualTtyError: the thread that moves the bytes has failed.
        """
        return self.pump.wait(timeout)

    def close(self) -> None:
        """Unplug everything, remove every entry, end the thread. Closing twice does nothing.

        Raises:
            VirtualTtyError: the thread that moves the bytes had failed, or an entry could not be
                removed; all else is cleaned up nonetheless.
        """
        if self._closed:
            return
        self._closed = True
        with contextlib.ExitStack() as steps:
            steps.callback(self._claim.release)
            steps.callback(self.pump.close)
            for _, undo in self._plugged.values():
                steps.callback(undo.close)
            # From here on no other thread touches the ports.
            self.pump.stop()
            try:
                steps.close()
            except OSError as error:
                raise VirtualTtyError(f"cannot clean up {self.directory}: {error}") from error
        self.pump.raise_failure()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _plug(self, device: VirtualPort) -> VirtualPort:
        name = device.name
        entries = _Entries(self.directory, name)
        taken = [str(path) for path in entries.all() if os.path.lexists(path)]
        if name in self._plugged or taken:
            by = "a plugged device" if name in self._plugged else " and ".join(taken)
            raise VirtualTtyError(
                f"the name {name} is taken in {self.directory} by {by}; "
                "unplug or remove that, or give another name (--as)"
            )
        try:
            with contextlib.ExitStack() as undo:
                port = self._assemble(device, entries, undo)
                self._plugged[name] = (port, undo.pop_all())
        except OSError as error:
            scarce = error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOSPC)
            hint = "; unplug some, or raise ulimit -n or kernel.pty.max" if scarce else ""
            raise VirtualTtyError(
                f"cannot plug {name} into {self.directory}: {error}{hint}"
            ) from error
        if device in self._unplugged:
            self._unplugged.remove(device)
        return port

    def _assemble(
        self, device: VirtualPort, entries: _Entries, undo: contextlib.ExitStack
    ) -> VirtualPort:
        """Build up what ``undo`` takes down in reverse order, at a failure or when unplugging."""
        self._claim.note(device.name)
        pty = _Pty(undo)
        far = _Pty(undo) if device.peer is Peer.PAIR else None
        loop = self.pump.loop
        if device.peer is Peer.LINES:
            label = device.descriptors.serial or device.name
            undo.callback(_Lines(loop, pty, label, device.interval).close)
        else:
            undo.callback(_Flow(loop, pty.master, (far or pty).master).close)
        if far:
            undo.callback(_Flow(loop, far.master, pty.master).close)
        undo.callback(entries.side.unlink, missing_ok=True)
        entries.write_side(device.descriptors)
        if far:
            _link(entries.peer, far.node, undo)
        _link(entries.link, pty.node, undo)
        return msgspec.structs.replace(
            device,
            path=str(entries.link),
            node=pty.node,
            peer_path=str(entries.peer) if far else "",
        )

    def _unplug(self, name: str) -> VirtualPort:
        if name not in self._plugged:
            if any(device.name == name for device in self._unplugged):
                raise VirtualTtyError(f"{name} is already unplugged from {self.directory}")
            raise self._unknown(name)
        port, undo = self._plugged.pop(name)
        device = msgspec.structs.replace(port, path="", node="", peer_path="")
        # Equal devices cannot be told apart: remembering one of them keeps the list bounded.
        if device in self._unplugged:
            self._unplugged.remove(device)
        self._unplugged.append(device)
        try:
            undo.close()
        except OSError as error:
            raise VirtualTtyError(
                f"{name} is unplugged, but an entry in {self.directory} remains: {error}"
            ) from error
        return device

    def _replug(self, name: str, target: str) -> VirtualPort:
        _check_name(target)
        device = next((each for each in reversed(self._unplugged) if each.name == name), None)
        if device is None:
            if name in self._plugged:
                raise VirtualTtyError(
                    f"{name} is already plugged into {self.directory}; unplug it first"
                )
            raise self._unknown(name)
        port = self._plug(msgspec.structs.replace(device, name=target))
        if device in self._unplugged:
            self._unplugged.remove(device)
        return port

    def _unknown(self, name: str) -> VirtualTtyError:
        known = [f"{each} (plugged)" for each in self._plugged]
        known += [f"{each.name} (unplugged)" for each in self._unplugged]
        return VirtualTtyError(
            f"no device {name!r} on the virtual bus {self.directory}; "
            f"it has {', '.join(known) or 'none at all'}"
        )


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise VirtualTtyError(
            f"{name!r} is no name for a virtual tty; use ttyUSB or ttyACM and a number: ttyUSB0"
        )


def _check_descriptors(name: str, descriptors: Descriptors) -> None:
    """Hold a value made in Python to the rules that its JSON form is held to."""
    try:
        msgspec.json.decode(msgspec.json.encode(descriptors), type=Descriptors)
    except UnicodeEncodeError as error:
        raise VirtualTtyError(
            f"the descriptors of {name} hold {error.object!r}, which is not valid Unicode and "
            "cannot be written as JSON; leave such bytes out"
        ) from error
    except msgspec.ValidationError as error:
        raise VirtualTtyError(f"the descriptors of {name} cannot be meant: {error}") from error
    if bool(descriptors.vendor_id) != bool(descriptors.product_id):
        raise VirtualTtyError(
            f"the descriptors of {name} have only one of vendor_id and product_id; give both"
        )


class _Entries:
    """The paths of one device within the bus directory."""

    def __init__(self, directory: Path, name: str) -> None:
        self.link = directory / name
        self.peer = directory / f"peer-{name}"
        self.side = directory / f".{name}.json"
        self._draft = directory / f".{name}.json.tmp"

    def all(self) -> tuple[Path, ...]:
        return (self.link, self.peer, self.side, self._draft)

    def write_side(self, descriptors: Descriptors) -> None:
        """Write the side file so that it is never seen half-written."""
        try:
            # Exclusive creation follows no symlink that somebody left there.
            with self._draft.open("xb") as draft:
                draft.write(msgspec.json.encode(descriptors))
            self._draft.replace(self.side)
        finally:
            self._draft.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what a killed bus left, in the order of an unplugging."""
        for link in (self.link, self.peer):
            if link.is_symlink():
                link.unlink()
        self.side.unlink(missing_ok=True)
        self._draft.unlink(missing_ok=True)


def _link(path: Path, node: str, undo: contextlib.ExitStack) -> None:
    # symlink(2) is atomic and, unlike a rename, never replaces what somebody else put there.
    path.symlink_to(node)
    undo.callback(_unlink, path, node)


def _unlink(path: Path, node: str) -> None:
    # What is no longer our link is somebody else's doing, and not ours to remove.
    if path.is_symlink() and path.readlink() == Path(node):
        path.unlink(missing_ok=True)


class _Claim:
    """The bus directory, held by one process: a lock on it, and a journal of what was made there.

    The lock is on the directory itself and goes with the process, however that ends. The journal
    (``DIR/.bus``: process id, then names, one a line) tells the next one which leftovers are a
    bus's own, so that entries made by hand or by other programs are never removed.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / _JOURNAL
        self._noted: set[str] = set()
        try:
            os.fspath(directory).encode()
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        except (OSError, UnicodeEncodeError) as error:
            raise VirtualTtyError(f"cannot use {directory!s:.200} as a bus: {error}") from error
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, self._lock)
            self._take()
            undo.pop_all()

    def _take(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._sweep()
            # Kept open, and made anew: what somebody may have put there is not written to.
            self._journal = self._path.open("x")
            self._write(str(os.getpid()))
        except BlockingIOError as error:
            pid = next(iter(self._read_journal()), "unknown")
            raise VirtualTtyError(
                f"another virtual bus (process {pid}) is serving {self._directory}; stop it, use "
                f"it (usbplugin virtual --dir {self._directory} --status), or take another "
                "directory"
            ) from error
        except OSError as error:
            raise VirtualTtyError(
                f"cannot use {self._directory} as a bus: {error}; take a directory that you may "
                "write to"
            ) from error

    def note(self, name: str) -> None:
        """Enter a name into the journal, before anything is made under it."""
        if name not in self._noted:
            self._write(name)
            self._noted.add(name)

    def release(self) -> None:
        """Remove the journal, then give up the lock."""
        with contextlib.ExitStack() as steps:
            steps.callback(os.close, self._lock)
            steps.callback(self._path.unlink, missing_ok=True)
            steps.callback(self._journal.close)

    def _write(self, line: str) -> None:
        self._journal.write(f"{line}\n")
        self._journal.flush()

    def _read_journal(self) -> list[str]:
        try:
            return self._path.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return []

    def _sweep(self) -> None:
        for name in self._read_journal()[1:]:
            if _NAME.fullmatch(name):
                _Entries(self._directory, name).sweep()
        self._path.unlink(missing_ok=True)
        control = self._directory / CONTROL_SOCKET
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(control.lstat().st_mode):
                control.unlink()


class Pump:
    """One thread with one selector loop, which moves all bytes and owns all state of a bus.

    An exception that nobody foresaw ends it, and shows in every later call, in ``wait`` and in the
    closing of the bus.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._failure: BaseException | None = None
        self._stopped: futures.Future[None] = futures.Future()
        try:
            self.loop = asyncio.SelectorEventLoop()
        except OSError as error:
            raise VirtualTtyError(f"cannot start {what}: {error}") from error
        self._cleanups = contextlib.ExitStack()
        self._cleanups.callback(self.loop.close)
        self.loop.set_exception_handler(self._fail)
        self._thread = threading.Thread(target=self._run, name="virtual-bus", daemon=True)
        self._thread.start()

    def call(self, work: Callable[[], T]) -> T:
        """Run ``work`` in the pump's thread, and give back its result or its foreseen error.

        Raises:
            VirtualTtyError: the pump has stopped, and as ``work`` does.
            OSError: as ``work`` does.
        """
        if threading.current_thread() is self._thread:
            return work()
        answer: futures.Future[T] = futures.Future()
        either: tuple[futures.Future[Any], ...] = (answer, self._stopped)

        def run() -> None:
            try:
                answer.set_result(work())
            except (VirtualTtyError, OSError) as error:
                answer.set_exception(error)

        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(run)
            futures.wait(either, return_when=futures.FIRST_COMPLETED)
        if not answer.done():
            self.raise_failure()
            raise VirtualTtyError(f"{self._what} is closed; make a new one")
        return answer.result()

    def finish(self, work: Callable[[], None]) -> None:
        """Run ``work`` in the pump's thread, or here if that has ended, for releasing things."""
        if self._stopped.done():
            work()
        else:
            self.call(work)

    def at_close(self, cleanup: Callable[[], None]) -> None:
        """Have ``close`` call this once the thread has ended."""
        self._cleanups.callback(cleanup)

    def wait(self, timeout: float | None) -> bool:
        """Wait until the thread has ended; False if that took longer than ``timeout`` seconds."""
        done, _ = futures.wait((self._stopped,), timeout)
        self.raise_failure()
        return bool(done)

    def raise_failure(self) -> None:
        """Raise what ended the thread, if it did not end on demand."""
        if self._failure is not None:
            raise VirtualTtyError(
                f"{self._what} has failed: {self._failure!r}; close it and make a new one"
            ) from self._failure

    def stop(self) -> None:
        """End the thread and wait for it; the loop stays open until ``close``."""
        if not self._stopped.done():
            self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()

    def close(self) -> None:
        """Run the clean-ups, and close the loop. Only after ``stop``."""
        self._cleanups.close()

    def _run(self) -> None:
        try:
            self.loop.run_forever()
        except OSError as error:
            self._failure = error
        finally:
            self._stopped.set_result(None)

    def _fail(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._failure = context.get("exception") or RuntimeError(context["message"])
        loop.stop()


class _Pty:
    """A pty in raw mode, both ends open: while ours of the slave is, the master never sees an end.

    Closing the master hangs up every open slave, ours and the applications'.
    """

    def __init__(self, undo: contextlib.ExitStack) -> None:
        self.master, self.slave = os.openpty()
        undo.callback(os.close, self.slave)
        undo.callback(os.close, self.master)
        os.set_blocking(self.master, False)
        tty.setraw(self.slave)
        self.node = os.ttyname(self.slave)
        # Containers mostly run as another user; where the owner may not do this, it stays as is.
        with contextlib.suppress(PermissionError):
            os.fchmod(self.slave, 0o666)


class _Flow:
    """Copies what one master reads to another, or the same; a full sink stops the reading."""

    def __init__(self, loop: asyncio.AbstractEventLoop, source: int, sink: int) -> None:
        self._loop = loop
        self._source = source
        self._sink = sink
        self._held = bytearray()
        loop.add_reader(source, self._read)

    def close(self) -> None:
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._sink)

    def _read(self) -> None:
        self._held += _read(self._source, _BUFFER - len(self._held))
        self._write()

    def _write(self) -> None:
        with contextlib.suppress(BlockingIOError):
            del self._held[: os.write(self._sink, self._held)]
        if self._held:
            self._loop.add_writer(self._sink, self._write)
        else:
            self._loop.remove_writer(self._sink)
        if len(self._held) < _BUFFER:
            self._loop.add_reader(self._source, self._read)
        else:
            self._loop.remove_reader(self._source)


class _Lines:
    """Writes a numbered line per interval, and drops what it is sent."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, pty: _Pty, label: str, interval: float
    ) -> None:
        self._loop = loop
        self._pty = pty
        self._label = label
        self._interval = interval
        self._count = 0
        self._timer = loop.call_soon(self._send)
        loop.add_reader(pty.master, self._drop)

    def close(self) -> None:
        self._timer.cancel()
        self._loop.remove_reader(self._pty.master)

    def _send(self) -> None:
        self._timer = self._loop.call_later(self._interval, self._send)
        self._count += 1
        line = msgspec.json.encode({"device": self._label, "count": self._count}) + b"\n"
        answer = fcntl.ioctl(self._pty.slave, termios.FIONREAD, struct.pack("i", 0))
        (unread,) = struct.unpack("i", answer)
        if unread + len(line) > _UNREAD_LINES:
            termios.tcflush(self._pty.slave, termios.TCIFLUSH)
        # Full in spite of that: the line is lost, as on a wire that nobody listens to.
        with contextlib.suppress(BlockingIOError):
            os.write(self._pty.master, line)

    def _drop(self) -> None:
        _read(self._pty.master, _BUFFER)


def _read(master: int, size: int) -> bytes:
    try:
        data = os.read(master, size)
    except BlockingIOError:
        return b""
    if not data:
        # Cannot be while we hold the slave open, and would repeat for ever.
        raise OSError(errno.EIO, "a virtual tty was hung up from elsewhere")
    return data
