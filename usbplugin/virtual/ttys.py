"""Virtual ttys: USB serial devices made of ptys, plugged into a directory and pulled out again.

This module owns the devices of a bus: which there are, and what makes up each. It never discovers
ports and knows nothing of Kubernetes: to the rest, a virtual tty is an entry of a directory like
any other.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final, Self

import msgspec

from usbplugin.errors import VirtualTtyError
from usbplugin.virtual.entries import NAME, Claim, Entries, link
from usbplugin.virtual.pump import Flow, Lines, Pty, Pump

if TYPE_CHECKING:
    from pathlib import Path

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
        self._claim = Claim(self.directory)
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
        entries = Entries(self.directory, name)
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
        self, device: VirtualPort, entries: Entries, undo: contextlib.ExitStack
    ) -> VirtualPort:
        """Build up what ``undo`` takes down in reverse order, at a failure or when unplugging."""
        self._claim.note(device.name)
        pty = Pty(undo)
        far = Pty(undo) if device.peer is Peer.PAIR else None
        loop = self.pump.loop
        if device.peer is Peer.LINES:
            label = device.descriptors.serial or device.name
            undo.callback(Lines(loop, pty, label, device.interval).close)
        else:
            undo.callback(Flow(loop, pty.master, (far or pty).master).close)
        if far:
            undo.callback(Flow(loop, far.master, pty.master).close)
        undo.callback(entries.side.unlink, missing_ok=True)
        entries.write_side(msgspec.json.encode(device.descriptors))
        if far:
            link(entries.peer, far.node, undo)
        link(entries.link, pty.node, undo)
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
    if not NAME.fullmatch(name):
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
