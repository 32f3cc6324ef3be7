"""The list of faults. Each is a function that does harm, and undoes it before it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable

    from tests.faults.rig import Rig

    Harm = Callable[[Rig, random.Random], Awaitable[None]]


@dataclass(frozen=True)
class Fault:
    name: str
    harm: Harm
    within: float
    """Seconds after which the truth must have reached the kubelet, once the harm is undone."""
    why: str
    """What that time is made of: on the page, faults with the same reason share a table."""
    kills: bool
    """Whether the plugin's process does not survive it."""
    mounts: bool
    """Whether a file system has to be mounted for it."""


LOOK = 12.0
"""Every 10 s all directories are looked at, whatever inotify says."""

CATALOGUE: list[Fault] = []


def fault(
    name: str,
    *,
    within: float = LOOK,
    why: str = "every 10 s all directories are looked at, whatever inotify says",
    kills: bool = False,
    mounts: bool = False,
) -> Callable[[Harm], Harm]:
    """Put a function into the catalogue."""

    def put(harm: Harm) -> Harm:
        CATALOGUE.append(Fault(name, harm, within, why, kills, mounts))
        return harm

    return put
