"""What a command is to the entry: a name, a summary, its flags and its function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Command:
    """One command; its module is cheap to import, and ``run`` imports what it needs."""

    name: str
    summary: str
    """Begins in lower case, without a full stop."""
    add_flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    """Takes the parsed flags, returns the exit code."""
