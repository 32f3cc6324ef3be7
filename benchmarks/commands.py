"""Controls a measured process: a line on its standard input, a line in answer.

All processes that are compared are controlled in this same way, so that it costs them the same.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping


def obey(commands: Mapping[str, Callable[[int], float]]) -> None:
    """Run the command in each line of standard input, ``NAME NUMBER``, and print its result."""
    for line in sys.stdin:
        name, _, number = line.partition(" ")
        answer = commands[name](int(number))
        os.write(1, f"{answer!r}\n".encode())


class Subject:
    """A process that runs ``obey``."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin = process.stdin
        self._stdout = process.stdout

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, command: str, number: int = 0) -> None:
        self._stdin.write(f"{command} {number}\n".encode())

    async def answer(self) -> float:
        """The result of the oldest command not yet answered."""
        return float(await self._stdout.readline())

    async def ask(self, command: str, number: int = 0) -> float:
        self.tell(command, number)
        return await self.answer()


@asynccontextmanager
async def subject(*arguments: str) -> AsyncIterator[Subject]:
    """Run ``python -m ARGUMENTS``, and kill it in the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield Subject(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A directory, in memory if possible (as /run is on a node), with a short path for sockets."""
    memory = Path("/dev/shm")
    usable = memory.is_dir() and os.access(memory, os.W_OK)
    return tempfile.TemporaryDirectory(prefix="up-", dir=memory if usable else None)
