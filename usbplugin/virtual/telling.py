"""How a demo tells its story in the terminal, and counts what held."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio.subprocess import Process

PATIENCE = 10.0
"""Seconds for which a demo waits for what it shows."""


class Teller:
    """Prints the story and counts the checks that passed."""

    def __init__(self) -> None:
        """Begin with nothing checked."""
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self._bold, self._green, self._red, self._dim, self._off = (
            ("\033[1m", "\033[32m", "\033[31m", "\033[2m", "\033[0m") if colour else ("",) * 5
        )
        self.held = 0
        self.failed = 0

    def chapter(self, text: str) -> None:
        """A new part of the story."""
        print(f"\n{self._bold}{text}{self._off}", flush=True)

    def say(self, text: str) -> None:
        """A detail."""
        print(f"    {self._dim}{text}{self._off}", flush=True)

    def check(self, text: str, *, held: bool = True) -> None:
        """What has to be so, and whether it is."""
        self.held += held
        self.failed += not held
        mark = f"{self._green}ok   {self._off}" if held else f"{self._red}FAIL {self._off}"
        print(f"  {mark}{text}", flush=True)

    def conclude(self, began: float, hint: str) -> bool:
        """Count; returns whether all held, and then gives the hint."""
        steps = self.held + self.failed
        self.chapter(f"{self.held} of {steps} checks passed in {time.monotonic() - began:.1f} s.")
        if not self.failed:
            self.say(hint)
        return not self.failed


def kill(plugin: Process) -> None:
    """Kill the process that an interrupted demo would leave behind."""
    if plugin.returncode is None:
        plugin.kill()


def since(began: float) -> str:
    """How long ago a moment was, in milliseconds."""
    return f"{1000 * (time.monotonic() - began):.0f} ms"
