"""What a process has in use, by proc(5)."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    threads: int
    descriptors: int
    sockets: int
    memory: float
    """Resident, MiB."""
    kinds: tuple[tuple[str, int], ...] = ()
    """Descriptors by what they are."""

    @classmethod
    def of(cls, pid: int) -> Usage:
        kinds = Counter(_kind(link) for link in _links(Path(f"/proc/{pid}/fd")))
        status = Path(f"/proc/{pid}/status").read_text()
        values = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        return cls(
            threads=int(values["Threads"]),
            descriptors=kinds.total(),
            sockets=kinds["socket"],
            memory=int(values["VmRSS"].split()[0]) / 1024,
            kinds=tuple(sorted(kinds.items())),
        )


def _links(directory: Path) -> list[str]:
    links = []
    for entry in os.listdir(directory):
        with suppress(FileNotFoundError):  # closed meanwhile
            links.append(os.readlink(directory / entry))
    return links


def _kind(link: str) -> str:
    return link.partition(":")[0] if ":[" in link else link
