"""Virtual ttys: USB serial devices made of ptys, plugged into and unplugged from a directory.

This module owns a bus's devices and what each consists of. It never discovers ports and knows
nothing of Kubernetes: to the rest, a virtual tty is a directory entry like any other.
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
# A string descriptor's length is one byte and includes a two-byte header: 126 UTF-16 units at most
# (USB 2.0, 9.6.7).
UsbString = Annotated[str, msgspec.Meta(max_length=126)]


class Descriptors(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A virtual device's descriptors: the keys of its side file, without the empty ones.

    Strings are arbitrary Unicode, including control characters. JSON cannot hold bytes that are not
    UTF-8, so a lone surrogate (how Python represents such bytes) is refused when plugging.
    """

    vendor_id: HexId = ""
    """Four lower-case hexadecimal digits; set it together with ``product_id`` or not at all."""
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
"""A device without descriptors."""


class Peer(StrEnum):
    """What is at the far end of a virtual tty."""

    PAIR = "pair"
    """A second tty, ``DIR/peer-<name>``. Each side waits while the other is full."""
    ECHO = "echo"
    """Sends back what the application writes. An application that never reads blocks eventually."""
    LINES = "lines"
    r"""Sends ``{"device": "<serial or name>", "count": 1}\n`` at once, then a line per interval.

    Discards what is written to it. When 2 kB are unread, they are dropped for the newest line.
    """


class VirtualPort(msgspec.Struct, frozen=True, kw_only=True):
    """A device on the bus: plugged in, or unplugged and remembered."""

    name: str
    """The port's name, e.g. ``ttyUSB0``; for an unplugged device, its last name."""
    descriptors: Descriptors = NO_DESCRIPTORS
    peer: Peer = Peer.PAIR
    interval: float = 1.0
    """Seconds between two lines; only for ``Peer.LINES``."""
    path: str = ""
    """``DIR/ttyUSB0``, a symlink to ``node``; empty while unplugged."""
    node: str = ""
    """The pty that applications open, e.g. ``/dev/pts/7``; empty while unplugged."""
    peer_path: str = ""
    """``DIR/peer-ttyUSB0`` for a plugged ``Peer.PAIR``, otherwise empty."""

    @property
    def plugged(self) -> bool:
        """Whether it is on the bus now."""
        return bool(self.path)


class VirtualBus:
    """A directory as a USB bus, claimed by one process at a time. Close it, ideally with ``with``.

    ``plug`` creates, in this order, the pty or ptys, the side file ``DIR/.<name>.json``,
    ``DIR/peer-<name>`` if there is one, and the symlink ``DIR/<name>``. ``unplug`` removes all that
    in reverse order and hangs up on applications: a pending read fails with EIO, a later one
    returns ``b''``, and a write fails with EIO. All methods may be called from any thread. A killed
    process's leftovers are removed at construction; entries not created by a bus are left alone.
    """

    def __init__(self, directory: Path) -> None:
        """Claim the directory, creating it if it is missing.

        Raises:
            VirtualTtyError: another process serves this directory, or it is not writable.
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
            VirtualTtyError: a value is invalid, the name is taken, ptys or file descriptors have
                run out, the directory is not writable, or the bus is closed or has failed.
        """
        _check_name(name)
        _check_descriptors(name, descriptors)
        if not _MIN_INTERVAL <= interval < math.inf:
            raise VirtualTtyError(
                f"{name}: invalid interval {interval} s; it must be at least {_MIN_INTERVAL} s"
            )
        device = VirtualPort(name=name, descriptors=descriptors, peer=peer, interval=interval)
        return self.pump.call(lambda: self._plug(device))

    def unplug(self, name: str) -> VirtualPort:
        """Unplug the device that is plugged in as ``name``, and remember it for ``replug``.

        Raises:
            VirtualTtyError: no such device is plugged in, a directory entry cannot be removed, or
                the bus is closed or has failed.
        """
        return self.pump.call(lambda: self._unplug(name))

    def replug(self, name: str, rename: str = "") -> VirtualPort:
        """Plug the device last unplugged as ``name`` back in, as ``rename`` if given, on a new pty.

        Raises:
            VirtualTtyError: there is no such unplugged device, or ``plug`` raised this.
        """
        return self.pump.call(lambda: self._replug(name, rename or name))

    def ports(self) -> tuple[VirtualPort, ...]:
        """List the plugged devices in the order in which they were plugged in.

        Raises:
            VirtualTtyError: the bus is closed or has failed.
        """
        return self.pump.call(lambda: tuple(port for port, _ in self._plugged.values()))

    def unplugged(self) -> tuple[VirtualPort, ...]:
        """List the devices ``replug`` can bring back, the last one unplugged at the end.

        Raises:
            VirtualTtyError: the bus is closed or has failed.
        """
        return self.pump.call(lambda: tuple(self._unplugged))

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the bus is closed; False if that takes longer than ``timeout`` seconds.

        Raises:
            VirtualTtyError: the thread that moves the bytes has failed.
        """
        return self.pump.wait(timeout)

    def close(self) -> None:
        """Unplug everything, remove all entries and end the thread. Closing twice does nothing.

        Raises:
            VirtualTtyError: the thread that moves the bytes had failed, or an entry could not be
                removed; everything else is cleaned up all the same.
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
                "unplug or remove that, or choose another name (--as)"
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
        """Assemble a device; on failure or unplug, ``undo`` takes it apart in reverse order."""
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
        # Equal devices are interchangeable, so remember only one: the list stays bounded.
        if device in self._unplugged:
            self._unplugged.remove(device)
        self._unplugged.append(device)
        try:
            undo.close()
        except OSError as error:
            raise VirtualTtyError(
                f"{name} is unplugged, but cannot remove its entry in {self.directory}: {error}"
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
            f"it has {', '.join(known) or 'no devices'}"
        )


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise VirtualTtyError(
            f"{name!r} is not a valid virtual tty name; use ttyUSB or ttyACM and a number: ttyUSB0"
        )


def _check_descriptors(name: str, descriptors: Descriptors) -> None:
    """Hold descriptors created in Python to the same rules as their JSON form."""
    try:
        msgspec.json.decode(msgspec.json.encode(descriptors), type=Descriptors)
    except UnicodeEncodeError as error:
        raise VirtualTtyError(
            f"the descriptors of {name} contain {error.object!r}, which is not valid Unicode and "
            "cannot be written as JSON; leave such bytes out"
        ) from error
    except msgspec.ValidationError as error:
        raise VirtualTtyError(f"the descriptors of {name} are invalid: {error}") from error
    if bool(descriptors.vendor_id) != bool(descriptors.product_id):
        raise VirtualTtyError(
            f"the descriptors of {name} have only one of vendor_id and product_id; set both"
        )
