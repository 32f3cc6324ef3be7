"""Programs and packages that these tests use where there are any.

``make test`` needs none of them, and says which test it skipped for want of what. With
USBPLUGIN_REQUIRE_ALL=1 such a test fails instead.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).parents[2]
_PATH = os.pathsep.join(
    [str(ROOT / "build" / "tools"), str(Path(sys.executable).parent), os.environ.get("PATH", "")]
)


def missing(reason: str) -> NoReturn:
    if os.environ.get("USBPLUGIN_REQUIRE_ALL") == "1":
        pytest.fail(f"{reason}, and USBPLUGIN_REQUIRE_ALL=1", pytrace=False)
    pytest.skip(reason)


def program(name: str, remedy: str) -> str:
    return shutil.which(name, path=_PATH) or missing(f"{name} is not here: {remedy}")


def module(name: str) -> Any:  # noqa: ANN401 -- these packages have no types
    try:
        return importlib.import_module(name)
    except ImportError:
        missing(f"the Python package {name} is not installed")


def output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout
