"""What a check says, and what it looks at."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from usbplugin.config import Config
from usbplugin.foundation.places import Places

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usbplugin.discovery import Source


class Grade(Enum):
    """How things are."""

    OK = "ok"
    WARN = "warn"
    """It works, but worse than it could, or not for everybody."""
    FAIL = "fail"
    """The plugin cannot do its work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """How one thing is, and what to do about it."""

    grade: Grade
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Node:
    """The node to be examined, from inside the plugin's pod or on the host."""

    config: Config = field(default_factory=Config)
    places: Places = field(default_factory=Places)
    sources: Sequence[Source] = ()
    """Where ``serve`` would discover ports; empty if there is no libudev."""
    root: Path = Path("/")
    """Where proc, sys and run are."""

    @property
    def in_container(self) -> bool:
        """Whether this is a container: its root file system is put together from layers."""
        return any(
            point == "/" and kind in {"overlay", "fuse.fuse-overlayfs"}
            for point, kind in self._mounts()
        )

    def is_mounted(self, path: Path) -> bool:
        """Whether ``path`` comes from outside of the container: it, or one above it, is a mount."""
        points = {point for point, _ in self._mounts()}
        return any(str(above) in points for above in (path, *path.parents) if str(above) != "/")

    def read(self, path: str) -> str:
        """The text of a file of proc or sys; empty where it cannot be read."""
        try:
            return (self.root / path).read_text(errors="replace").strip("\0\n ")
        except OSError:
            return ""

    def processes(self) -> dict[str, str]:
        """Names of the processes that can be seen, by their number."""
        found = {}
        for folder in (self.root / "proc").glob("[0-9]*"):
            if name := self.read(f"proc/{folder.name}/comm"):
                found[folder.name] = name
        return found

    def open_files(self, pid: str) -> list[str]:
        """What a process has open; nothing if it has ended, or is not ours to look into."""
        found = []
        with suppress(OSError):
            for link in (self.root / "proc" / pid / "fd").iterdir():
                with suppress(FileNotFoundError):  # closed meanwhile
                    found.append(str(link.readlink()))
        return found

    def _mounts(self) -> list[tuple[str, str]]:
        """Mount points and types of file systems, by proc(5)'s mountinfo."""
        found = []
        for line in self.read("proc/self/mountinfo").splitlines():
            before, _, after = line.partition(" - ")
            point = before.split()[4].encode().decode("unicode_escape")
            found.append((point, after.split()[0]))
        return found


Check = Callable[[Node], Finding]


def ok(found: str) -> Finding:
    """All is well."""
    return Finding(Grade.OK, found)


def warn(found: str, remedy: str) -> Finding:
    """It could be better."""
    return Finding(Grade.WARN, found, remedy)


def fail(found: str, remedy: str) -> Finding:
    """It does not work so."""
    return Finding(Grade.FAIL, found, remedy)
