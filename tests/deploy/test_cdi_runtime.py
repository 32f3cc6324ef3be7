"""What a real container gets: by CDI, and where it does not run as root, with podman and runc.

The plugin is the real one. Its devices are virtual ttys, and device nodes.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.deploy.manifests import DEPLOY, load
from tests.deploy.real_nodes import (
    GROUP,
    KMSG,
    NULL,
    OPEN,
    ZERO,
    Ended,
    RealNode,
    absent,
    make_node,
    make_root,
)
from tests.deploy.tools import missing
from tests.node import SERIAL
from usbplugin.virtual import CreateContainerConfigError, Peer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.deploy.manifests import Manifest
    from usbplugin.virtual import Container

pytestmark = pytest.mark.timeout(120)

# The Debian package that has it.
PROGRAMS = {
    "podman": "podman",
    "runc": "runc",
    "busybox": "busybox-static",
    "unshare": "util-linux",
}
USER = "--user=1000:1000"
GPS = "usb-0403:6001-GPS-A7-if00"
OTHER = "usb-0403:6001-OTHER-if00"
_PATIENCE = 60.0


class Podman:
    """podman with a storage and a directory of CDI specs of its own."""

    # /run/cdi is where runtimes look, whatever this machine has there; /dev/shm has podman's locks.
    _ISOLATE = (
        'mount -t tmpfs none /run && mkdir /run/cdi && mount --bind "$1" /run/cdi &&'
        ' mount -t tmpfs none /dev/shm && shift && exec "$@"'
    )
    # Left to itself, podman raises limits, which not every root may.
    _LIMITS = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")

    def __init__(self, root: Path, cdi_dir: Path) -> None:
        self._root = root
        self._cdi_dir = cdi_dir
        self._rootfs = root / "rootfs"
        make_root(self._rootfs)

    def command(self, script: str, *flags: str) -> list[str]:
        """How to run a shell script in a container."""
        # When the first process of a process namespace ends, all others do: conmon too.
        isolated = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        storage = (f"--root={self._root}/storage", f"--runroot={self._root}/run")
        return [
            *(*isolated, "sh", "-c", self._ISOLATE, "sh", str(self._cdi_dir)),
            *("podman", *storage, f"--tmpdir={self._root}/tmp", "--storage-driver=vfs"),
            *("--runtime=runc", "--cgroup-manager=cgroupfs", "--events-backend=none"),
            *("run", "--rm", "--network=none", *self._LIMITS, *flags),
            *("--rootfs", str(self._rootfs), "/bin/sh", "-c", script),
        ]

    async def run(self, script: str, *flags: str) -> Ended:
        process = await asyncio.create_subprocess_exec(
            *self.command(script, *flags),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        output, errors = await asyncio.wait_for(process.communicate(), _PATIENCE)
        assert process.returncode is not None
        return Ended(process.returncode, output.decode(), errors.decode())

    async def succeed(self, script: str, *flags: str) -> str:
        ended = await self.run(script, *flags)
        assert ended.code == 0, ended.errors
        return ended.output


@cache
def obstacle() -> str:
    """Why no container can be run here; empty if one can."""
    if os.geteuid() != 0:
        return "needs root, to run containers with devices"
    if reason := absent(PROGRAMS):
        return reason
    with tempfile.TemporaryDirectory(prefix="podman-") as root:
        cdi_dir = Path(root, "cdi")
        cdi_dir.mkdir()
        try:
            make_node(Path(root, "node"), ZERO, 0o660)
            command = Podman(Path(root), cdi_dir).command("true")
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=_PATIENCE
            )
        except OSError as error:
            return f"no device node can be made here: {error}"
        return f"podman runs no container here: {done.stderr.strip()}" if done.returncode else ""


class PodmanNode(RealNode):
    """A node that runs containers with podman."""

    def __init__(self) -> None:
        super().__init__()
        self.places.cdi_dir.mkdir()
        self.podman = Podman(self.root / "podman", self.places.cdi_dir)


@pytest.fixture
async def node() -> AsyncIterator[PodmanNode]:
    if reason := obstacle():
        missing(reason)
    async with PodmanNode() as node:
        yield node


def cdi(container: Container) -> list[str]:
    """podman's flags for what the plugin answered."""
    assert not container.devices
    assert not container.mounts
    return [f"--device={device.name}" for device in container.answer.cdi_devices]


def plain(container: Container) -> list[str]:
    """The same for device nodes, which podman makes like the host's, as containerd does."""
    assert container.devices
    # As containerd does too, at each start. For podman, a colon ends a path.
    return [
        f"--device={os.path.realpath(each.host_path)}:{each.container_path}:{each.permissions}"
        for each in container.devices
    ]


async def test_cdi_gives_the_node(node: PodmanNode) -> None:
    node.plug_node("ttyUSB0", "GPS-A7", ZERO)
    async with node.serve(*node.configure(cdi=True)):
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        container = await node.kubelet.run_container(SERIAL)
        script = "stat -c '%F %t:%T' /dev/ttyUSB0; head -c 4 /dev/ttyUSB0 | wc -c; : >/dev/ttyUSB0"
        output = await node.podman.succeed(script, *cdi(container))
        assert output.splitlines() == ["character special file 1:5", "4"]
        assert "ttyUSB0" not in await node.podman.succeed("ls /dev")


async def test_cdi_gives_a_virtual_tty(node: PodmanNode) -> None:
    port = node.bus.plug("ttyUSB0", node.descriptors("GPS-A7"), peer=Peer.ECHO)
    async with node.serve(*node.configure(cdi=True)):
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        container = await node.kubelet.run_container(SERIAL)
        script = (
            "stat -c %t:%T /dev/ttyUSB0; exec 3<>/dev/ttyUSB0; echo over and out >&3; head -n1 <&3"
        )
        output = await node.podman.succeed(script, *cdi(container))
        number = os.stat(port.node).st_rdev
        assert output.splitlines() == [
            f"{os.major(number):x}:{os.minor(number):x}",
            "over and out",
        ]


async def test_after_a_replug_cdi_gives_the_new_node(node: PodmanNode) -> None:
    node.plug_node("ttyUSB0", "GPS-A7", ZERO)
    script = "stat -c %t:%T /dev/gps; head -c 4 /dev/gps | wc -c"
    async with node.serve(*node.configure(cdi=True, containerPath="/dev/gps")):
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        container = await node.kubelet.run_container(SERIAL)
        assert await node.podman.succeed(script, *cdi(container)) == "1:5\n4\n"

        # Another device takes the name and the number: nothing that was given must lead there.
        node.unplug_node("ttyUSB0")
        await node.kubelet.wait_healthy(SERIAL, set())
        node.plug_node("ttyUSB0", "OTHER", ZERO)
        await node.kubelet.wait_for(lambda: OTHER in node.kubelet.resource(SERIAL).devices)
        assert node.kubelet.resource(SERIAL).healthy == frozenset(), "the container may open it"
        with pytest.raises(CreateContainerConfigError, match="is gone"):
            await container.restart()
        # Nor would the runtime find it, were the plugin not asked.
        refused = await node.podman.run(script, *cdi(container))
        assert refused.code != 0
        assert f"unresolvable CDI devices {SERIAL}={GPS}" in refused.errors

        node.plug_node("ttyUSB6", "GPS-A7", NULL)
        await node.kubelet.wait_healthy(SERIAL, {GPS, OTHER})
        await container.start()
        assert await node.podman.succeed(script, *cdi(container)) == "1:3\n0\n"


async def test_cdi_gives_all_ports_of_a_modem(node: PodmanNode) -> None:
    for interface, number in enumerate((ZERO, NULL)):
        node.plug_node(f"ttyUSB{interface}", "MODEM-1", number, interface=interface)
    config = node.configure(cdi=True, unit="usb-device", containerPath="/dev/modem{port}")
    async with node.serve(*config):
        await node.kubelet.wait_healthy(SERIAL, {"usb-0403:6001-MODEM-1"})
        container = await node.kubelet.run_container(SERIAL)
        output = await node.podman.succeed("stat -c '%n %t:%T' /dev/modem*", *cdi(container))
        assert output == "/dev/modem0 1:5\n/dev/modem1 1:3\n"


async def test_one_container_has_several_devices_by_cdi(node: PodmanNode) -> None:
    node.plug_node("ttyUSB0", "GPS-A7", ZERO)
    node.plug_node("ttyUSB1", "OTHER", NULL)
    async with node.serve(*node.configure(cdi=True)):
        await node.kubelet.wait_healthy(SERIAL, {GPS, OTHER})
        container = await node.kubelet.run_container(SERIAL, count=2)
        output = await node.podman.succeed("stat -c '%n %t:%T' /dev/ttyUSB*", *cdi(container))
        assert output == "/dev/ttyUSB0 1:5\n/dev/ttyUSB1 1:3\n"


@pytest.mark.parametrize("permissions", ["r", "w"])
async def test_cdi_permissions_hold(node: PodmanNode, permissions: str) -> None:
    node.plug_node("ttyUSB0", "GPS-A7", KMSG)
    async with node.serve(*node.configure(cdi=True, permissions=permissions)):
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        container = await node.kubelet.run_container(SERIAL)
        ended = await node.podman.run(OPEN, *cdi(container))
        if permissions == "w":
            assert (ended.code, ended.output) == (0, "opened\n"), ended.errors
        else:
            assert ended.code != 0
            assert "Operation not permitted" in ended.errors


async def test_a_device_with_an_odd_serial_spoils_cdi_for_nobody(node: PodmanNode) -> None:
    """Its ID ends in a dash, and a runtime refuses a file with such a name in it as a whole."""
    node.plug_node("ttyUSB0", "GPS-A7", ZERO)
    node.plug_node("ttyUSB1", "ODD-", NULL)
    config = node.configure(cdi=True, unit="usb-device")
    ids = {"usb-0403:6001-GPS-A7": "1:5", "usb-0403:6001-ODD-": "1:3"}
    async with node.serve(*config):
        await node.kubelet.wait_healthy(SERIAL, set(ids))
        for pod, (device_id, number) in enumerate(ids.items()):
            container = await node.kubelet.run_container(
                SERIAL, device_ids=[device_id], pod=f"pod{pod}"
            )
            output = await node.podman.succeed("stat -c %t:%T /dev/ttyUSB*", *cdi(container))
            assert output == f"{number}\n"


async def test_cdi_gives_the_node_to_whoever_the_container_runs_as(node: PodmanNode) -> None:
    node.plug_node("ttyUSB0", "GPS-A7", KMSG)
    async with node.serve(*node.configure(cdi=True)):
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        container = await node.kubelet.run_container(SERIAL)
        script = f"id -G; stat -c '%a %u:%g' /dev/ttyUSB0; {OPEN}"
        output = await node.podman.succeed(script, USER, *cdi(container))
        assert output == "1000\n666 1000:1000\nopened\n", "with no group but its own"


@pytest.mark.parametrize(
    ("mode", "group"),
    [
        pytest.param(0o660, GROUP, id="supplementalGroups"),
        pytest.param(0o666, None, id="mode 0666"),
    ],
)
async def test_what_opens_a_node_without_root(
    node: PodmanNode, mode: int, group: int | None
) -> None:
    ended = await try_to_open(node, mode, group)
    assert (ended.code, ended.output) == (0, "opened\n"), ended.errors


@pytest.mark.parametrize(
    ("mode", "group"),
    [
        pytest.param(0o660, None, id="nothing"),
        pytest.param(0o660, GROUP + 1, id="another group"),
        pytest.param(0o600, GROUP, id="mode 0600"),
    ],
)
async def test_what_does_not(node: PodmanNode, mode: int, group: int | None) -> None:
    ended = await try_to_open(node, mode, group)
    assert ended.code != 0
    assert "Permission denied" in ended.errors


async def try_to_open(node: PodmanNode, mode: int, group: int | None) -> Ended:
    """What becomes of a container that is no root, with a node that belongs to ``GROUP``."""
    node.plug_node("ttyUSB0", "GPS-A7", KMSG, mode)
    async with node.serve(*node.configure()):
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        flags = plain(await node.kubelet.run_container(SERIAL))
        seen = await node.podman.succeed("stat -c '%a %u:%g' /dev/ttyUSB0", *flags)
        assert seen == f"{mode:o} 0:{GROUP}\n", "the host's"
        groups = [] if group is None else [f"--group-add={group}"]
        return await node.podman.run(OPEN, USER, *groups, *flags)


async def test_the_example_of_a_container_without_root(node: PodmanNode) -> None:
    (pod,) = load((DEPLOY / "examples/non-root.yaml").read_text("utf-8"))
    node.plug_node("ttyUSB0", "GPS-A7", KMSG)
    async with node.serve(*node.configure()):
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        container = await node.kubelet.run_container(SERIAL)
        flags = [*security_flags(pod["spec"]), *plain(container)]
        assert await node.podman.succeed(OPEN, *flags) == "opened\n"
        without = [flag for flag in flags if not flag.startswith("--group-add")]
        assert (await node.podman.run(OPEN, *without)).code != 0


def security_flags(spec: Manifest) -> list[str]:
    """podman's flags for a pod's security contexts."""
    (container,) = spec["containers"]
    pod, own = spec["securityContext"], container["securityContext"]
    assert own["allowPrivilegeEscalation"] is False
    assert own["readOnlyRootFilesystem"] is True
    return [
        f"--user={pod['runAsUser']}:{pod['runAsGroup']}",
        *(f"--group-add={group}" for group in pod["supplementalGroups"]),
        *(f"--cap-drop={name}" for name in own["capabilities"]["drop"]),
        *("--security-opt=no-new-privileges", "--read-only"),
    ]
