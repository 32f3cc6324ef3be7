"""What containerd makes of the plugin's answers for a container that does not run as root."""

from __future__ import annotations

import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.deploy.containerd import Containerd
from tests.deploy.real_nodes import GROUP, KMSG, NULL, OPEN, ZERO, RealNode, absent, make_node
from tests.deploy.tools import missing
from tests.node import SERIAL
from usbplugin.virtual import CreateContainerConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.timeout(120)

# The Debian package that has it.
PROGRAMS = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "busybox": "busybox-static",
    "unshare": "util-linux",
}
USER = 1000
GPS = "usb-0403:6001-GPS-A7-if00"
OWNERSHIP = "device_ownership_from_security_context = true"


@cache
def obstacle() -> str:
    """Why containerd cannot be run here; empty if it can."""
    if os.geteuid() != 0:
        return "needs root, to run containers with devices"
    if reason := absent(PROGRAMS):
        return reason
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return f"no namespaces can be made here: {done.stderr.strip()}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            make_node(Path(folder, "node"), ZERO, 0o660)
        except OSError as error:
            return f"no device node can be made here: {error}"
    return ""


@pytest.fixture
async def node() -> AsyncIterator[RealNode]:
    if reason := obstacle():
        missing(reason)
    async with RealNode() as node:
        yield node


@pytest.mark.parametrize(
    ("settings", "groups", "owner", "opens"),
    [
        pytest.param("", [], f"0:{GROUP}", "", id="nothing"),
        pytest.param("", [GROUP], f"0:{GROUP}", "opened\n", id="supplementalGroups"),
        pytest.param(OWNERSHIP, [], f"{USER}:{USER}", "opened\n", id="ownership"),
    ],
)
async def test_what_opens_a_node_without_root(
    node: RealNode, settings: str, groups: list[int], owner: str, opens: str
) -> None:
    node.plug_node("ttyUSB0", "GPS-A7", KMSG)
    async with (
        node.serve(*node.configure()),
        Containerd(node.root / "containerd", settings) as containerd,
    ):
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        container = await node.kubelet.run_container(SERIAL)
        script = f"stat -c '%a %u:%g' /dev/ttyUSB0; {OPEN}"
        ended = await containerd.exec(script, container.answer, USER, groups)
        assert ended.output == f"660 {owner}\n{opens}"
        assert ("Permission denied" in ended.errors) is not bool(opens)


async def test_the_path_that_was_given_leads_a_restarted_container_to_the_new_number(
    node: RealNode,
) -> None:
    node.plug_node("ttyUSB0", "GPS-A7", ZERO)
    async with (
        node.serve(*node.configure()),
        Containerd(node.root / "containerd") as containerd,
    ):
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        container = await node.kubelet.run_container(SERIAL)
        script = "stat -c %t:%T /dev/ttyUSB0; head -c 4 /dev/ttyUSB0 | wc -c"
        assert (await containerd.exec(script, container.answer)).output == "1:5\n4\n"
        node.unplug_node("ttyUSB0")
        await node.kubelet.wait_healthy(SERIAL, set())
        with pytest.raises(CreateContainerConfigError, match="is gone"):
            await container.restart()
        node.plug_node("ttyUSB6", "GPS-A7", NULL)
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        await container.start()
        assert (await containerd.exec(script, container.answer)).output == "1:3\n0\n"
