"""In a pod as the DaemonSet defines it, and in pods that are worse off."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.deploy.manifests import POD
from tests.node import SERIAL
from usbplugin.config import load

from .line import Line
from .pod import DaemonSetPod, pod_command, user_namespace_command
from .serve import TIMEOUT, HardwareNode, acm_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .conftest import GadgetFactory, QemuSerialFactory
    from .udevd import Udevd

pytestmark = pytest.mark.timeout(120)

CONFIG = Path(__file__).parents[2] / "deploy/kustomize/base/config.yaml"
LINKS = "/run/usbplugin"
STATE = "/var/lib/usbplugin"


@pytest.fixture
def pod(node: HardwareNode) -> DaemonSetPod:
    shutil.copy(CONFIG, node.config)
    load(node.config)
    return DaemonSetPod(
        {
            "/var/lib/kubelet/device-plugins": node.kubelet_dir,
            "/var/lib/kubelet/pod-resources": node.places.pod_resources.parent,
            LINKS: node.link_dir,
            STATE: node.state_dir,
        },
        config=node.config.parent,
    )


async def test_as_the_daemonset_defines_it(
    gadget: GadgetFactory,
    qemu_serial: QemuSerialFactory,
    node: HardwareNode,
    pod: DaemonSetPod,
    tmp_path: Path,
) -> None:
    device, other = gadget(serial=b"MINE"), qemu_serial(2, serial="OTHER")
    device_id, other_id = acm_id("MINE"), "usb-0403:6001-OTHER-if00"
    command = pod.command([sys.executable, "-m", "usbplugin", *pod.args], tmp_path)
    async with node.run(command) as process:
        for _ in range(2):
            device.plug(wait=False)
            await node.healthy(device_id)
            device.unplug(wait=False)
            await node.healthy()
        device.plug(wait=False)
        other.plug(wait=False)
        await node.healthy(device_id, other_id)
        node.kubelet.other_pods = [POD]
        container = await node.kubelet.run_container(SERIAL, device_ids=[device_id])
        await node.until_held(device_id, "default/pod/main")
        (spec,) = container.devices
        assert spec.host_path == f"{LINKS}/{device_id}/if00", "the same path as on the host"
        assert node.node_of(device_id) == spec.container_path == device.nodes[0]
        with Line(node.node_of(device_id)) as application, device.line() as firmware:
            firmware.write(b"hello")
            assert application.read(5) == b"hello"
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert f"CapEff:\t{0:016}\n" in status
        assert f"CapBnd:\t{0:016}\n" in status
        assert "NoNewPrivs:\t1\n" in status
        mounts = Path(f"/proc/{process.pid}/mounts").read_text().splitlines()
        options = {line.split()[1]: line.split()[3].split(",") for line in mounts}
        writable = {path for path, opts in options.items() if "ro" not in opts}
        assert all(
            path.startswith("/proc") or path in {LINKS, STATE, "/var/lib/kubelet/device-plugins"}
            for path in writable
        ), writable
        assert {"/", "/dev", "/sys", "/run", "/run/udev/data"} <= options.keys()
        started = process.log()
        assert "uevents=kernel udevd=seen database=watched" in started
        events = ["cannot", "links were", "ERROR", "Traceback"]
        assert not [word for word in events if word in started], started


def connect(path: str) -> int:
    """Try to speak to udevd; 0, or the error's number."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
        return control.connect_ex(path)


async def test_udevd_is_heard_and_cannot_be_given_orders(
    gadget: GadgetFactory, node: HardwareNode, pod: DaemonSetPod, tmp_path: Path
) -> None:
    device = gadget(serial=b"MINE")
    command = pod.command([sys.executable, "-m", "usbplugin", *pod.args], tmp_path)
    async with node.run(command) as process:
        root = f"/proc/{process.pid}/root"
        assert os.listdir(f"{root}/run/udev") == ["data"]
        assert connect("/run/udev/control") == 0, "outside of the pod"
        assert connect(f"{root}/run/udev/control") == errno.ENOENT
        device.plug(wait=False)
        await node.healthy(acm_id("MINE"))
        assert "udevd=seen database=watched" in process.log()
        await process.wait_for_log("udevd=ready", within=TIMEOUT)


@pytest.fixture
def without_run_udev(udevd: Udevd) -> Iterator[None]:
    """A machine on which no udevd has ever run."""
    path, away = Path("/run/udev"), Path("/run/udev.away")
    udevd.stop()
    path.rename(away)
    yield
    udevd.stop()
    shutil.rmtree(path, ignore_errors=True)
    away.rename(path)


@pytest.mark.usefixtures("without_run_udev")
async def test_udevd_that_comes_later_is_heard_until_its_directory_is_made_anew(
    gadget: GadgetFactory, node: HardwareNode, udevd: Udevd, pod: DaemonSetPod, tmp_path: Path
) -> None:
    device, other = gadget(serial=b"MINE"), gadget(serial=b"OTHER")
    program = [sys.executable, "-m", "usbplugin", *pod.args, "--log-level", "debug"]
    async with node.run(pod.command(program, tmp_path)) as process:
        assert 'udevd="not seen"' in process.log()
        device.plug(wait=False)
        await node.healthy(acm_id("MINE"))
        await process.wait_for_log("udevd=unconfirmed", within=TIMEOUT)

        udevd.start()
        udevd.trigger()
        await process.wait_for_log("udevd=ready", within=TIMEOUT)

        udevd.stop()
        shutil.rmtree("/run/udev")
        udevd.start()
        other.plug(wait=False)
        await node.healthy(acm_id("MINE"), acm_id("OTHER"))
        assert "udevd did not finish in time" not in process.log()


@pytest.mark.parametrize("uid", [0, 65534])
async def test_without_rights_and_network(
    gadget: GadgetFactory, node: HardwareNode, uid: int
) -> None:
    device = gadget(serial=b"MINE")
    for path in (node.root, *node.root.rglob("*")):
        os.chown(path, uid, uid)
    os.chmod(node.root, 0o755)
    node.link_dir.mkdir()
    os.chown(node.link_dir, uid, uid)
    async with node.serve(wrap=lambda command: pod_command(command, uid=uid)):
        for _ in range(2):
            device.plug(wait=False)
            await node.healthy(acm_id("MINE"))
            assert node.node_of(acm_id("MINE")) == device.nodes[0]
            device.unplug(wait=False)
            await node.healthy()


async def test_in_a_user_namespace_dev_is_watched_instead(
    gadget: GadgetFactory, node: HardwareNode
) -> None:
    device = gadget(serial=b"MINE")
    async with node.serve(wrap=user_namespace_command) as process:
        assert 'uevents="none reach this user namespace; watching /dev instead"' in process.log()
        for _ in range(2):
            device.plug(wait=False)
            await node.healthy(acm_id("MINE"))
            device.unplug(wait=False)
            await node.healthy()
