"""As much HTTP/2 as it takes to be a rude client: bytes of our own on a plugin's socket."""

from __future__ import annotations

import array
import fcntl
import socket
import struct
import termios
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS = 1, 4
INITIAL_WINDOW_SIZE = 4

LIST_AND_WATCH = "/v1beta1.DevicePlugin/ListAndWatch"
ALLOCATE = "/v1beta1.DevicePlugin/Allocate"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame (RFC 9113, 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def setting(identifier: int, value: int) -> bytes:
    return struct.pack(">HI", identifier, value)


def _literal(name: str, value: str) -> bytes:
    """A header field that goes into no table (RFC 7541, 6.2.2); both under 127 bytes."""
    return b"".join((b"\0", bytes([len(name)]), name.encode(), bytes([len(value)]), value.encode()))


def request_headers(path: str) -> bytes:
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    return b"".join(_literal(name, value) for name, value in fields.items())


def message(body: bytes) -> bytes:
    """A gRPC message, not compressed."""
    return struct.pack(">BI", 0, len(body)) + body


def opening(window: int = 65_535) -> bytes:
    """What a client says first; ``window`` is how much it may be sent before it has read some."""
    return PREFACE + frame(SETTINGS, 0, 0, setting(INITIAL_WINDOW_SIZE, window))


def call(path: str, body: bytes = b"", stream: int = 1) -> bytes:
    """A whole request with one message."""
    return frame(HEADERS, END_HEADERS, stream, request_headers(path)) + frame(
        DATA, END_STREAM, stream, message(body)
    )


def connect(path: Path) -> socket.socket:
    """A connection that blocks."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def unread(connection: socket.socket) -> int:
    """How many bytes lie there to be read."""
    count = array.array("i", [0])
    fcntl.ioctl(connection, termios.FIONREAD, count)
    return count[0]


def never_reading_stream(path: Path, window: int = 65_535) -> socket.socket:
    """A ListAndWatch stream whose client never reads a byte."""
    connection = connect(path)
    connection.sendall(opening(window) + call(LIST_AND_WATCH))
    return connection
