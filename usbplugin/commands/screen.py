"""Shows a text that changes: in place where the terminal can do that, one below the other else."""

from __future__ import annotations

import os
import re
import shutil
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from types import TracebackType

# Control sequences of ECMA-48, and xterm's alternate screen.
_ENTER = "\033[?1049h\033[?25l"
_LEAVE = "\033[?25h\033[?1049l"
_HOME = "\033[H"
_CLEAR_LINE = "\033[K"
_CLEAR_REST = "\033[J"
_CUT = "…"
_COLOUR = re.compile("(\033\\[[0-9;]*m)")


class Screen:
    """A terminal, a dumb one, or no terminal at all."""

    def __init__(self, stream: TextIO) -> None:
        """Show on ``stream``."""
        self._stream = stream
        self._in_place = stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"

    def __enter__(self) -> Self:
        """Leave what the terminal shows as it is, to come back to it."""
        if self._in_place:
            self._write(_ENTER)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Come back to it."""
        if self._in_place:
            self._write(_LEAVE)

    def show(self, text: str) -> None:
        """Show ``text`` in the place of what was shown before."""
        if not self._in_place:
            self._write(f"{text}\n\n")
            return
        width, height = shutil.get_terminal_size()
        lines = text.splitlines()
        if len(lines) > height:
            lines[height - 1 :] = [f"... and {len(lines) - height + 1} lines more"]
        shown = "\r\n".join(_cropped(line, width) + _CLEAR_LINE for line in lines)
        self._write(f"{_HOME}{shown}{_CLEAR_REST}")

    @property
    def width(self) -> int | None:
        """Columns; None if it is no terminal, and lines may have any length."""
        return shutil.get_terminal_size().columns if self._stream.isatty() else None

    @property
    def has_colours(self) -> bool:
        """Whether colours are understood and wanted (no-color.org)."""
        return self._in_place and not os.environ.get("NO_COLOR")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def _cropped(line: str, width: int) -> str:
    """As much of a line as fits, with a mark if that is not all; colours take no room, and stay."""
    parts = _COLOUR.split(line)
    if sum(map(len, parts[::2])) <= width:
        return line
    kept, left, is_cut = [], width - len(_CUT), False
    for index, part in enumerate(parts):
        if index % 2:
            kept.append(part)
        elif not is_cut:
            is_cut = len(part) > left
            kept.append(part[:left] + _CUT if is_cut else part)
            left -= len(part)
    return "".join(kept)
