"""What the documents promise, read out of them, so that the manifests can be held to it."""

from __future__ import annotations

import re

from tests.deploy.tools import ROOT

_ROW = re.compile(r"\| `(/[^`]+)` \| `(/[^`]+)` \| (ro|rw) \| ([^|]+) \|")


def documented_host_paths(target: str) -> set[tuple[str, str, str]]:
    """The table in docs/security.md, for one overlay (or the Helm variant that is like it)."""
    paths = {}
    name = target.removeprefix("helm-")
    where = {"components": ("cdi", "nfd", "watcher"), "dra": ("cdi", "watcher")}.get(name, (name,))
    for host, pod, access, when in _ROW.findall(security()):
        if when.split(",")[0].strip().lower() in ("always", *where):
            paths[pod] = (host, pod, access)
    return set(paths.values())


def supported_versions() -> tuple[str, str]:
    """The oldest and the newest Kubernetes."""
    found = re.search(r"Kubernetes (1\.\d+) to (1\.\d+)", security())
    assert found, "docs/security.md does not say which versions of Kubernetes are supported"
    return found[1], found[2]


def first_version_with_dra() -> str:
    """The oldest Kubernetes for ``front: dra``."""
    text = (ROOT / "docs" / "dra.md").read_text("utf-8")
    found = re.search(r"from Kubernetes (1\.\d+)", text)
    assert found, "docs/dra.md does not say from which Kubernetes on"
    return found[1]


def security() -> str:
    return (ROOT / "docs" / "security.md").read_text("utf-8")
