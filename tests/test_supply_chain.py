"""What the program is installed from: pinned, hashed, and from whatever index the user has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOCKS = [*sorted(ROOT.glob("requirements*.lock")), ROOT / "deploy/image/requirements-build.lock"]


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_every_package_is_pinned_and_has_hashes(path: Path) -> None:
    text = path.read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines
    for line in lines:
        assert re.match(r"[a-z0-9.-]+(\[[a-z,]+\])?==[0-9][^ ]* ", line), line
        assert "--hash=sha256:" in line, line


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_no_lock_names_a_host(path: Path) -> None:
    assert "://" not in path.read_text()


def test_what_runs_in_production_is_what_development_tests() -> None:
    def pins(name: str) -> set[str]:
        return set(re.findall(r"^[a-z0-9-]+==[^ ]+", (ROOT / name).read_text(), re.MULTILINE))

    assert pins("requirements.lock") <= pins("requirements-dev.lock")
