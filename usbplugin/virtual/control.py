"""Plugging and unplugging from another shell: both ends of a virtual bus's control socket.

This module owns ``DIR/.control.sock`` and its protocol: one JSON line as request, one as answer,
then the connection ends. It never touches ptys or other entries of the directory itself; it asks
the bus.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from typing import TYPE_CHECKING, Self

import msgspec

from usbplugin.errors import VirtualTtyError
from usbplugin.virtual.entries import CONTROL_SOCKET
from usbplugin.virtual.ttys import VirtualPort

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from usbplugin.virtual.ttys import VirtualBus

_MAX_REQUEST = 4096
# A connection without an answer by then is cut; a request takes microseconds.
_PATIENCE_S = 5.0
# How long connections stay queued when file descriptors have run out.
_RETRY_S = 0.25


class Plug(msgspec.Struct, frozen=True, tag_field="command", tag="plug"):
    """Plug the device last unplugged as ``name`` back in, as ``rename`` if given."""

    name: str
    rename: str = msgspec.field(name="as", default="")


class Unplug(msgspec.Struct, frozen=True, tag_field="command", tag="unplug"):
    """Unplug the device that is plugged in as ``name``."""

    name: str


class Status(msgspec.Struct, frozen=True, tag_field="command", tag="status"):
    """List all devices, the plugged ones first."""


Command = Plug | Unplug | Status


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The bus's answer: the devices the command was about, or what was wrong with it."""

    ports: tuple[VirtualPort, ...] = ()
    error: str = ""


def control(directory: Path, command: Command) -> tuple[VirtualPort, ...]:
    """Have the bus that serves ``directory`` carry out one command.

    Returns:
        For ``Plug`` and ``Unplug``, the device as it is afterwards; for ``Status``, all devices.

    Raises:
        VirtualTtyError: no bus serves the directory, it does not answer within five seconds, or it
            refuses the command (the text is then the bus's own).
    """
    directory = directory.absolute()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_PATIENCE_S)
        try:
            connection.connect(str(directory / CONTROL_SOCKET))
            connection.sendall(msgspec.json.encode(command) + b"\n")
            line = b"".join(iter(lambda: connection.recv(65536), b""))
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
            raise VirtualTtyError(
                f"no virtual bus is running in {directory}; "
                f"start one with: usbplugin virtual --dir {directory}"
            ) from error
        except OSError as error:
            raise VirtualTtyError(
                f"cannot reach the virtual bus in {directory}: {error}"
            ) from error
        except UnicodeEncodeError as error:
            raise VirtualTtyError(f"{command} is not valid Unicode") from error
    try:
        answer = msgspec.json.decode(line, type=Answer)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise VirtualTtyError(
            f"the virtual bus in {directory} gave an invalid answer ({error}); check its output "
            "and restart it"
        ) from error
    if answer.error:
        raise VirtualTtyError(answer.error)
    return answer.ports


class ControlServer:
    """Answers ``control`` in the bus's own thread, until it or the bus is closed.

    The socket has mode 0600, so only the bus's user and root can plug and unplug.
    """

    def __init__(self, bus: VirtualBus) -> None:
        """Serve ``DIR/.control.sock``.

        Raises:
            VirtualTtyError: the socket cannot be created, or the bus is closed or has failed.
        """
        self._bus = bus
        self._path = bus.directory / CONTROL_SOCKET
        self._connections: set[_Connection] = set()
        with contextlib.ExitStack() as undo:
            self._listener = undo.enter_context(socket.socket(socket.AF_UNIX))
            self._listener.settimeout(0)
            try:
                self._listener.bind(str(self._path))
                undo.callback(self._path.unlink, missing_ok=True)
                # Nobody can connect before listen(), so the socket is never open to others.
                self._path.chmod(0o600)
                self._listener.listen()
                bus.pump.call(self._start)
            except OSError as error:
                # A Unix socket's path may only have some 100 bytes.
                raise VirtualTtyError(
                    f"cannot serve {self._path}: {error}; choose a directory with a shorter path, "
                    "or one you may write to"
                ) from error
            bus.pump.at_close(self._stop)
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Stop answering, and remove the socket. Closing twice, or after the bus, does nothing.

        Raises:
            VirtualTtyError: the socket cannot be removed.
        """
        try:
            self._bus.pump.finish(self._stop)
        except OSError as error:
            raise VirtualTtyError(f"cannot remove {self._path}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        if self._listener.fileno() < 0:
            return
        self._bus.pump.loop.add_reader(self._listener, self._accept)

    def _stop(self) -> None:
        if self._listener.fileno() < 0:
            return
        self._bus.pump.loop.remove_reader(self._listener)
        for connection in tuple(self._connections):
            connection.close()
        self._undo.close()

    def _accept(self) -> None:
        try:
            accepted, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            # The connection stays queued, and would wake us again at once.
            loop = self._bus.pump.loop
            loop.remove_reader(self._listener)
            loop.call_later(_RETRY_S, self._start)
            return
        self._connections.add(_Connection(self._bus, accepted, self._connections.discard))


class _Connection:
    """One request and its answer, in the bus's thread."""

    def __init__(
        self, bus: VirtualBus, accepted: socket.socket, done: Callable[[_Connection], None]
    ) -> None:
        accepted.settimeout(0)
        self._bus = bus
        self._socket = accepted
        self._done = done
        self._loop = bus.pump.loop
        self._request = b""
        self._answer = b""
        self._deadline = self._loop.call_later(_PATIENCE_S, self.close)
        self._loop.add_reader(accepted, self._read)

    def close(self) -> None:
        self._deadline.cancel()
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self._done(self)

    def _read(self) -> None:
        try:
            data = self._socket.recv(_MAX_REQUEST)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        self._request += data
        if not data:
            self.close()
        elif b"\n" in self._request or len(self._request) > _MAX_REQUEST:
            self._loop.remove_reader(self._socket)
            answer = _carry_out(self._bus, self._request.partition(b"\n")[0])
            self._answer = msgspec.json.encode(answer) + b"\n"
            self._write()

    def _write(self) -> None:
        try:
            self._answer = self._answer[self._socket.send(self._answer) :]
        except BlockingIOError:
            pass
        except ConnectionError:
            self._answer = b""
        if self._answer:
            self._loop.add_writer(self._socket, self._write)
        else:
            self.close()


def _carry_out(bus: VirtualBus, request: bytes) -> Answer:
    try:
        command: Command = msgspec.json.decode(request, type=Command)
        match command:
            case Plug(name, rename):
                return Answer(ports=(bus.replug(name, rename),))
            case Unplug(name):
                return Answer(ports=(bus.unplug(name),))
            case Status():
                return Answer(ports=bus.ports() + bus.unplugged())
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Answer(error=f"not a command for a virtual bus: {error}")
    except VirtualTtyError as error:
        return Answer(error=str(error))
