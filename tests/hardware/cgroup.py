"""A cgroup whose processes may open certain device nodes and no others, as a container's does.

cgroup v2 has no file for that: a runtime attaches a small BPF program, and so is done here.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Self

_ROOT = Path("/sys/fs/cgroup")

# linux/bpf.h, and the system call's number on x86-64.
_SYS_BPF = 321
_PROG_LOAD, _PROG_ATTACH = 5, 8
_PROG_TYPE_CGROUP_DEVICE, _ATTACH_CGROUP_DEVICE = 15, 6
_CHARACTER_DEVICE = 2
_READ_OR_WRITE = 2 | 4

_LOAD_WORD, _MOVE, _AND, _SHIFT_RIGHT = 0x61, 0xB7, 0x57, 0x77
_COPY, _JUMP_IF_NOT, _JUMP_IF, _EXIT = 0xBF, 0x55, 0x15, 0x95


class DeviceCgroup:
    """A cgroup; remove it, or use it as a context manager, when its processes have ended."""

    def __init__(self, name: str, numbers: Collection[tuple[int, int]]) -> None:
        """Make it; ``numbers`` are those that its processes may open, as ``rw``."""
        self._path = _ROOT / name
        self._path.mkdir()
        self.processes = self._path / "cgroup.procs"
        """Where a process writes its number to come in."""
        directory = os.open(self._path, os.O_RDONLY)
        try:
            program = _load(_program(numbers))
            try:
                _bpf(
                    _PROG_ATTACH, struct.pack("IIII", directory, program, _ATTACH_CGROUP_DEVICE, 0)
                )
            finally:
                os.close(program)
        finally:
            os.close(directory)

    def remove(self) -> None:
        self._path.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def _program(numbers: Collection[tuple[int, int]]) -> bytes:
    """Register 1 leads to what is asked: the kind of device and access, major, minor; 0 answers."""
    pairs = 2 * len(numbers)
    code = [
        _instruction(_LOAD_WORD, 2, 1, offset=0),
        _instruction(_COPY, 3, 2),
        _instruction(_AND, 3, value=0xFFFF),
        _instruction(_JUMP_IF_NOT, 3, offset=5 + pairs, value=_CHARACTER_DEVICE),
        _instruction(_SHIFT_RIGHT, 2, value=16),
        _instruction(_AND, 2, value=~_READ_OR_WRITE),
        _instruction(_JUMP_IF_NOT, 2, offset=2 + pairs, value=0),
        _instruction(_LOAD_WORD, 4, 1, offset=4),
        _instruction(_LOAD_WORD, 5, 1, offset=8),
    ]
    for left, (major, minor) in zip(range(pairs, 0, -2), numbers, strict=True):
        code += [
            _instruction(_JUMP_IF_NOT, 4, offset=1, value=major),
            _instruction(_JUMP_IF, 5, offset=left, value=minor),
        ]
    for answer in (0, 1):
        code += [_instruction(_MOVE, 0, value=answer), _instruction(_EXIT)]
    return b"".join(code)


def _instruction(
    code: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0
) -> bytes:
    return struct.pack("<BBhi", code, target | source << 4, offset, value)


def _load(program: bytes) -> int:
    instructions = ctypes.create_string_buffer(program, len(program))
    license_ = ctypes.create_string_buffer(b"Apache-2.0")
    count = len(program) // 8
    return _bpf(
        _PROG_LOAD,
        struct.pack(
            "IIQQ",
            _PROG_TYPE_CGROUP_DEVICE,
            count,
            ctypes.addressof(instructions),
            ctypes.addressof(license_),
        ),
    )


def _bpf(command: int, attributes: bytes) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    # The kernel takes what is missing at the end for zeros.
    result = int(libc.syscall(_SYS_BPF, command, attributes, len(attributes)))
    if result < 0:
        code = ctypes.get_errno() or errno.EINVAL
        raise OSError(code, f"bpf({command}): {os.strerror(code)}")
    return result
