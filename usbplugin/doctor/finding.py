"""What a check reports, and the node it looks at."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from usbplugin.config import Config
from usbplugin.discovery.port import printable
from usbplugin.foundation.places import Places

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usbplugin.discovery import Source


class Grade(Enum):
    """How serious a finding is."""

    OK = "ok"
    WARN = "warn"
    """It works, but not as well as it could, or not for everyone."""
    FAIL = "fail"
    """The plugin cannot work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, and what to do about it."""

    grade: Grade
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Node:
    """The node to examine, from inside the plugin's pod or on the host."""

    config: Config = field(default_factory=Config)
    places: Places = field(default_factory=Places)
    sources: Sequence[Source] = ()
    """The sources ``serve`` would use; empty if there is no libudev."""
    root: Path = Path("/")
    """The directory that contains proc, sys and run."""

    @property
    def in_container(self) -> bool:
        """Whether this is a container: its root file system is an overlay."""
        return any(
            point == "/" and kind in {"overlay", "fuse.fuse-overlayfs"}
            for point, kind in self._mounts()
        )

    def is_mounted(self, path: Path) -> bool:
        """Whether ``path`` comes from outside the container: it or a parent is a mount point."""
        points = {point for point, _ in self._mounts()}
        return any(str(above) in points for above in self._way_to(path) if str(above) != "/")

    def is_in_memory(self, path: Path) -> bool:
        """Whether a reboot empties ``path``."""
        kinds = dict(self._mounts())  # of two on one point, the later one hides the other
        points = (str(above) for above in self._way_to(path))
        return next((kinds[point] for point in points if point in kinds), "") in {"tmpfs", "ramfs"}

    def _way_to(self, path: Path) -> tuple[Path, ...]:
        """A path and its parents; links are followed, for mount points have none (/var/run)."""
        root = self.root.resolve()
        real = (root / path.absolute().relative_to("/")).resolve()
        path = Path("/") / real.relative_to(root) if real.is_relative_to(root) else real
        return path, *path.parents

    def read(self, path: str) -> str:
        """A file's text, its path relative to ``root``; empty if it cannot be read."""
        try:
            return (self.root / path).read_text(errors="replace").strip("\0\n ")
        except OSError:
            return ""

    def processes(self) -> dict[str, str]:
        """The names of all visible processes, by PID."""
        found = {}
        for folder in (self.root / "proc").glob("[0-9]*"):
            # Any process may call itself what it likes, escape sequences included (proc(5)).
            if name := printable(self.read(f"proc/{folder.name}/comm").encode()):
                found[folder.name] = name
        return found

    def open_files(self, pid: str) -> list[str]:
        """The files a process has open; none if it has ended or is not ours to inspect."""
        found = []
        with suppress(OSError):
            for link in (self.root / "proc" / pid / "fd").iterdir():
                with suppress(FileNotFoundError):  # closed in the meantime
                    found.append(str(link.readlink()))
        return found

    def _mounts(self) -> list[tuple[str, str]]:
        """Mount points and file system types, from proc(5)'s mountinfo."""
        found = []
        for line in self.read("proc/self/mountinfo").splitlines():
            before, _, after = line.partition(" - ")
            point = before.split()[4].encode().decode("unicode_escape")
            found.append((point, after.split()[0]))
        return found


Check = Callable[[Node], Finding]

SEE_SELINUX = "if SELinux is enforcing, see the SELinux finding"


def ok(found: str) -> Finding:
    """A finding that all is well."""
    return Finding(Grade.OK, found)


def warn(found: str, remedy: str) -> Finding:
    """A finding that something could be better."""
    return Finding(Grade.WARN, found, remedy)


def fail(found: str, remedy: str) -> Finding:
    """A finding that something does not work."""
    return Finding(Grade.FAIL, found, remedy)
