"""The USB bus of the node under test: runs in a pod there, in the plugin's own image.

It plugs and unplugs ports in a directory of the node, and is the far end of each: it reads what a
container wrote, and types into it. ``kubectl exec`` reaches it through a socket in the pod: a JSON
line as request, one as answer. Nothing of it is imported by the tests; they send its text.

Two kinds of port are known. A character device is the number of a virtual terminal (major 4),
which opens like any tty, and which a container gets as a device node, as it would a real port; that
takes a privileged pod, and a kernel with virtual terminals. A pty is what ``usbplugin virtual``
makes, and a container gets it as a mount.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import struct
import sys
import termios
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SOCKET = "/tmp/bus.sock"
BUS = Path("/run/usbplugin-virtual")
MAJOR_TERMINAL, MAJOR_SCREEN = 4, 7
HANG_UP = 0x5437  # TIOCVHANGUP
DIALOUT = 20
OURS = Path("/tmp/nodes")


class Terminals:
    """Ports that are virtual terminals."""

    kind = "character devices"

    def __init__(self) -> None:
        OURS.mkdir(exist_ok=True)
        self._plugged: dict[str, int] = {}

    @staticmethod
    def obstacle() -> str:
        """Why this node has none; empty if it has."""
        try:
            OURS.mkdir(exist_ok=True)
            with Terminals._open(40):
                return "" if hasattr(termios, "TIOCSTI") else "no TIOCSTI"
        except OSError as error:
            return str(error)

    @staticmethod
    @contextlib.contextmanager
    def _open(minor: int) -> Iterator[int]:
        node = OURS / f"tty{minor}"
        if not node.exists():
            os.mknod(node, 0o20600, os.makedev(MAJOR_TERMINAL, minor))
        terminal = os.open(node, os.O_RDWR | os.O_NOCTTY)
        try:
            yield terminal
        finally:
            os.close(terminal)

    def plug(self, name: str, minor: int, descriptors: dict[str, Any]) -> None:
        with self._open(minor) as terminal:
            os.write(terminal, b"\033c")
        side, node = BUS / f".{name}.json", BUS / name
        draft = BUS / f".{name}.new"
        draft.write_text(json.dumps(descriptors))
        draft.replace(side)
        os.mknod(draft, 0o20660, os.makedev(MAJOR_TERMINAL, minor))
        os.chown(draft, 0, DIALOUT)
        os.chmod(draft, 0o660)
        draft.replace(node)
        self._plugged[name] = minor

    def unplug(self, name: str) -> None:
        (BUS / name).unlink()
        (BUS / f".{name}.json").unlink()
        # As a driver does: whoever has the port open reads its end.
        with self._open(self._plugged.pop(name)) as terminal:
            fcntl.ioctl(terminal, HANG_UP)

    def names(self) -> list[str]:
        return sorted(self._plugged)

    def send(self, name: str, text: str) -> None:
        with self._open(self._plugged[name]) as terminal:
            for byte in text.encode() + b"\n":
                fcntl.ioctl(terminal, termios.TIOCSTI, bytes([byte]))

    def read(self, name: str) -> list[str]:
        minor = self._plugged[name]
        screen = OURS / f"vcs{minor}"
        if not screen.exists():
            os.mknod(screen, 0o20600, os.makedev(MAJOR_SCREEN, minor))
        with self._open(minor) as terminal:
            size = fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(8))
        columns = struct.unpack("4H", size)[1]
        content = screen.read_bytes().decode("latin-1")
        lines = (content[at : at + columns].rstrip() for at in range(0, len(content), columns))
        return [line for line in lines if line]


class Ptys:
    """Ports that are ptys."""

    kind = "ptys"

    def __init__(self) -> None:
        from usbplugin.virtual.ttys import VirtualBus  # noqa: PLC0415 -- only where it is wanted

        self._bus = VirtualBus(BUS)
        self._read: dict[str, bytes] = {}

    def plug(self, name: str, minor: int, descriptors: dict[str, Any]) -> None:
        from usbplugin.virtual.ttys import Descriptors  # noqa: PLC0415

        self._bus.plug(name, Descriptors(**descriptors))
        self._read[name] = b""

    def unplug(self, name: str) -> None:
        self._bus.unplug(name)

    def names(self) -> list[str]:
        return sorted(port.name for port in self._bus.ports() if port.plugged)

    def _peer(self, name: str) -> int:
        return os.open(BUS / f"peer-{name}", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)

    def send(self, name: str, text: str) -> None:
        peer = self._peer(name)
        os.write(peer, text.encode() + b"\n")
        os.close(peer)

    def read(self, name: str) -> list[str]:
        peer = self._peer(name)
        with contextlib.suppress(BlockingIOError):
            while data := os.read(peer, 65536):
                self._read[name] += data
        os.close(peer)
        return [line for line in self._read[name].decode().splitlines() if line]


def tree(path: str) -> list[str] | None:
    """The names in a directory; None if there is no such directory."""
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return None


def remove(path: str, *, everything: bool) -> None:
    """Delete a directory: with all that is in it, or if it is empty."""
    for entry in Path(path).iterdir() if everything else ():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    with contextlib.suppress(OSError):  # it is not empty, or something is mounted there
        os.rmdir(path)


def main(wanted: str) -> None:
    obstacle = Terminals.obstacle() if wanted != "ptys" else "ptys were asked for"
    bus = Ptys() if obstacle else Terminals()
    calls: dict[str, Callable[..., object]] = {
        "plug": bus.plug,
        "unplug": bus.unplug,
        "names": bus.names,
        "send": bus.send,
        "read": bus.read,
        "tree": tree,
        "text": lambda path: Path(path).read_text(),
        "born": lambda path: Path(path).stat().st_mtime,
        "remove": remove,
        "kind": lambda: [bus.kind, obstacle, os.uname().release, os.uname().machine],
    }
    with socket.socket(socket.AF_UNIX) as listener:
        Path(SOCKET).unlink(missing_ok=True)
        listener.bind(SOCKET)
        listener.listen()
        print("ready", bus.kind, obstacle, flush=True)  # noqa: T201
        while True:
            connection, _ = listener.accept()
            with connection, connection.makefile("rw") as lines:
                for line in lines:
                    name, arguments = json.loads(line)
                    try:
                        answer = {"result": calls[name](**arguments)}
                    except Exception as error:  # noqa: BLE001 -- the tests are told, whatever it is
                        answer = {"error": repr(error)}
                    lines.write(json.dumps(answer) + "\n")
                    lines.flush()


main(sys.argv[1])
