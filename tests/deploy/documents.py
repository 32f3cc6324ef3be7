"""What the documents promise, read out of them, so that the manifests can be held to it."""

from __future__ import annotations

import re

from tests.deploy.tools import ROOT

_ROW = re.compile(r"\| `(/[^`]+)` \| `(/[^`]+)` \| (ro|rw) \| ([^|]+) \|")


def documented_host_paths(target: str) -> set[tuple[str, str, str]]:
    """The table in docs/security.md, for one overlay (or the Helm variant that is like it)."""
    paths = {}
    name = target.removeprefix("helm-")
    where = ("cdi", "nfd", "watcher") if name == "components" else (name,)
    for host, pod, access, when in _ROW.findall(security()):
        if when.strip().lower() in ("always", *where):
            paths[pod] = (host, pod, access)
    return set(paths.values())


def supported_versions() -> tuple[str, str]:
    """The oldest and the newest Kubernetes."""
    found = re.search(r"Kubernetes (1\.\d+) to (1\.\d+)", security())
    assert found, "docs/security.md does not say which versions of Kubernetes are supported"
    return found[1], found[2]


def security() -> str:
    return (ROOT / "docs" / "security.md").read_text("utf-8")
