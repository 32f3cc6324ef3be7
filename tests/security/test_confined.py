"""``usbplugin serve`` with no more than the DaemonSet gives it: it can do all that it has to."""

from __future__ import annotations

import asyncio
import errno
import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.node import SERIAL, Node
from tests.security import confine

# The same tests again, on a node where the plugin is confined.
from tests.test_serve import (  # noqa: F401
    test_a_killed_one_leaves_nothing_that_the_next_does_not_clean_up,
    test_a_second_instance_does_not_disturb_the_first,
    test_a_signal_ends_it_cleanly_with_a_stream_open,
    test_a_signal_ends_it_while_there_is_no_kubelet,
    test_ids_and_allocations_survive_a_restart_of_the_plugin,
    test_json_logs_are_one_object_per_line,
    test_text_logs_are_one_line_per_record,
)
from usbplugin.virtual import CreateContainerConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.node import Process

pytestmark = pytest.mark.timeout(60)

ROOT = Path(__file__).parents[2]
FILTERED = platform.machine() in confine._ARCHITECTURES
GPS = "usb-0403:6001-GPS-A7-if00"
SENSOR = "usb-0403:6001-SENSOR-if00"


@cache
def obstacle() -> str:
    """Why nothing can be confined here; empty if it can."""
    if os.geteuid() != 0:
        return "needs root, to make namespaces and to give privileges up"
    done = subprocess.run(
        [sys.executable, confine.__file__, "--", "/bin/true"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr.strip().rpartition("\n")[2] if done.returncode else ""


class ConfinedNode(Node):
    """The plugin may write where the DaemonSet lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.writable = [
            self.places.kubelet_dir,
            self.places.link_dir,
            self.places.state_dir,
            self.places.registry_dir,
            self.places.cdi_dir,
        ]
        for path in self.writable:
            path.mkdir()

    def command(self, *flags: str) -> list[str]:
        return [
            *(sys.executable, confine.__file__),
            *(f"--writable={path}" for path in self.writable),
            *("--", *super().command(*flags)),
        ]


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    if reason := obstacle():
        if os.environ.get("USBPLUGIN_REQUIRE_ALL") == "1":
            pytest.fail(f"{reason}, and USBPLUGIN_REQUIRE_ALL=1", pytrace=False)
        pytest.skip(reason)
    async with ConfinedNode() as node:
        node.plug("ttyUSB0", "GPS-A7")
        yield node


def status(process: Process) -> dict[str, str]:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def manifest() -> dict[str, Any]:
    document = yaml.safe_load((ROOT / "deploy/kustomize/base/daemonset.yaml").read_text())
    spec: dict[str, Any] = document["spec"]["template"]["spec"]
    return spec


def test_the_daemonset_gives_what_is_given_here() -> None:
    pod = manifest()
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "privileged": False,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["securityContext"] == {
        "runAsUser": 0,
        "runAsGroup": 0,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert pod["hostNetwork"] is False
    writable = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
    assert writable == {
        "/var/lib/kubelet/device-plugins",
        "/run/usbplugin",
        "/var/lib/usbplugin",
    }


async def test_it_has_nothing_left_to_give_up(node: Node) -> None:
    async with node.serve() as process:
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        seen = status(process)
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(seen[kind], 16) == 0, kind
        assert seen["NoNewPrivs"] == "1"
        assert seen["Uid"].split() == ["0"] * 4
        if FILTERED:
            assert seen["Seccomp"] == "2"
        for namespace in ("net", "mnt", "ipc", "uts"):
            mine = os.readlink(f"/proc/self/ns/{namespace}")
            assert os.readlink(f"/proc/{process.pid}/ns/{namespace}") != mine
        for name in ("etc", "tmp", "dev", "home", ""):
            with pytest.raises(OSError, match="Read-only") as caught:
                Path(f"/proc/{process.pid}/root/{name}/usbplugin-was-here").touch()
            assert caught.value.errno == errno.EROFS


@pytest.mark.skipif(not FILTERED, reason="system call numbers of this machine are not known")
async def test_system_calls_are_refused_that_need_no_privilege(node: Node) -> None:
    del node  # for its reasons to skip
    code = (
        "import ctypes, errno\n"
        f"number = {confine.REFUSED['keyctl'][confine._ARCHITECTURES[platform.machine()][1]]}\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.syscall(number, 0, -3, 0, 0, 0) == -1\n"
        "assert ctypes.get_errno() == errno.EPERM\n"
    )
    command = [sys.executable, confine.__file__, "--", sys.executable, "-c", code]
    done = await asyncio.create_subprocess_exec(*command)
    assert await done.wait() == 0


async def test_the_whole_job(node: Node) -> None:
    async with node.serve() as process:
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        container = await node.kubelet.run_container(SERIAL)
        (mount,) = container.mounts
        port = node.plug("ttyUSB1", "SENSOR")
        await node.kubelet.wait_healthy(SERIAL, {GPS, SENSOR})
        node.bus.unplug("ttyUSB0")
        await node.kubelet.wait_healthy(SERIAL, {SENSOR})
        with pytest.raises(CreateContainerConfigError, match="is gone"):
            await container.restart()
        await node.kubelet.restart()
        await node.kubelet.wait_healthy(SERIAL, {SENSOR})
        moved = node.bus.replug("ttyUSB0", "ttyUSB7")
        await node.kubelet.wait_healthy(SERIAL, {GPS, SENSOR})
        await container.restart()
        assert os.path.realpath(mount.host_path) == moved.node
        opened = {os.readlink(f) for f in Path(f"/proc/{process.pid}/fd").iterdir()}
        assert not {port.node, moved.node} & opened, "it opened a port"
        assert "Read-only" not in process.log()
        assert "Permission denied" not in process.log()


async def test_with_the_plugin_watcher_and_cdi(node: Node) -> None:
    config = node.device_dir / "config.yaml"
    config.write_text("{registration: watcher, cdi: true}")
    async with node.serve("--config", str(config)):
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        container = await node.kubelet.run_container(SERIAL)
        (device,) = container.answer.cdi_devices
        assert device.name == f"{SERIAL}={GPS}"
        (spec,) = node.places.cdi_dir.glob("*.json")
        assert GPS in spec.read_text()


@pytest.mark.parametrize(
    ("place", "says"), [("link_dir", "cannot keep links"), ("state_dir", "cannot save state")]
)
async def test_without_a_place_to_write_to_it_says_so_and_offers_nothing(
    node: Node, place: str, says: str
) -> None:
    assert isinstance(node, ConfinedNode)
    node.writable.remove(getattr(node.places, place))
    async with node.serve() as process:
        await process.wait_for_log(says)
        await node.until_connected()
        await node.kubelet.wait_for(lambda: GPS in node.kubelet.resource(SERIAL).devices)
        assert node.kubelet.resource(SERIAL).healthy == frozenset()
