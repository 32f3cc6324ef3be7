"""What the program is installed from: pinned, hashed, and from whatever index the user has."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOCKS = [*sorted(ROOT.glob("requirements*.lock")), ROOT / "deploy/image/requirements-build.lock"]
LICENCES = {
    *("Apache-2.0", "BSD-3-Clause", "MIT", "PSF-2.0"),
    "3-Clause BSD License",  # protobuf's words
    "LGPL-2.1-or-later",  # pyudev, which is imported as it comes
}


def requirements(path: Path) -> list[str]:
    """A line each, its hashes included."""
    text = path.read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def pins(name: str) -> dict[str, str]:
    """Versions by name."""
    lines = requirements(ROOT / name)
    return dict(line.split()[0].split("==") for line in lines)


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_every_package_is_pinned_and_has_hashes(path: Path) -> None:
    assert requirements(path)
    for line in requirements(path):
        package, *rest = re.split(r" +(?=--hash=)", line.strip())
        assert re.fullmatch(r"[a-z0-9.-]+(\[[a-z,]+\])?==[0-9][^ ]*( ; .*)?", package), line
        assert rest, line
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for one in rest), line


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_no_lock_names_a_host(path: Path) -> None:
    assert "://" not in path.read_text()


def test_what_runs_in_production_is_what_development_tests() -> None:
    assert pins("requirements.lock").items() <= pins("requirements-dev.lock").items()


def test_the_lock_has_all_that_the_program_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.split("[<>=~!]", text)[0] for text in project["dependencies"]}
    assert wanted <= pins("requirements.lock").keys()


@pytest.mark.parametrize("name", pins("requirements.lock"))
def test_a_licence_that_goes_with_ours(name: str) -> None:
    about = metadata.metadata(name)
    assert (about["License-Expression"] or about["License"]) in LICENCES
