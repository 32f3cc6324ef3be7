from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import usbplugin
from usbplugin import agent, config, custody, deviceplugin, discovery, inventory, kubelet, virtual

ROOT = Path(__file__).parents[1]
PACKAGE = Path(usbplugin.__file__).parent


def test_imports_point_down_the_flow_only() -> None:
    result = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache", "--no-logo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout


def test_serve_without_the_udev_source_loads_no_pyudev() -> None:
    code = (
        "import sys, usbplugin.agent, usbplugin.config\n"
        "sys.exit('pyudev' in sys.modules or 'usbplugin.virtual' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_who_uses_the_device_plugin_alone_loads_nothing_of_dra(tmp_path: Path) -> None:
    code = """
import asyncio, sys
from pathlib import Path
from usbplugin.agent import Agent
from usbplugin.config import Config
from usbplugin.discovery import DirectorySource
from usbplugin.foundation.places import Places

places = Places(**{
    name: Path(sys.argv[1], name)
    for name in ("kubelet_dir", "registry_dir", "pod_resources", "link_dir", "state_dir",
                 "cdi_dir", "features_dir")
})
for path in (places.kubelet_dir, places.registry_dir):
    path.mkdir()

async def run():
    stopping = asyncio.Event()
    asyncio.get_running_loop().call_later(0.5, stopping.set)
    await Agent(Config(), [DirectorySource(Path(sys.argv[1]))], places).run(stopping)

asyncio.run(run())
loaded = [name for name in sys.modules if name == "h11" or name.startswith("usbplugin.dra")]
sys.exit(f"{loaded}" if loaded else 0)
"""
    result = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "room", [agent, config, custody, deviceplugin, discovery, inventory, kubelet, virtual]
)
def test_a_rooms_public_names_are_those_it_lists(room: object) -> None:
    listed: list[str] = room.__all__  # type: ignore[attr-defined]
    assert listed == sorted(listed)
    assert all(hasattr(room, name) for name in listed)


def own_modules() -> list[Path]:
    return [path for path in PACKAGE.rglob("*.py") if "_pb2" not in path.name]


@pytest.mark.parametrize("path", own_modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_says_what_it_is_and_stays_small(path: Path) -> None:
    source = path.read_text()
    assert ast.get_docstring(ast.parse(source)) or not source
    assert len(source.splitlines()) <= 400
