"""The kubelet restarted and killed, and the node rebooted: for whoever has rights on the node.

A shell command on this machine does it, and returns when the node is back. Each has a variable, and
without it its tests are skipped.
"""

from __future__ import annotations

import os
import subprocess
from datetime import datetime
from typing import TYPE_CHECKING

import pytest

from tests.cluster import bus as buses
from tests.cluster import pods
from tests.cluster.cluster import DAEMONSET, PLUGIN_NAMESPACE

if TYPE_CHECKING:
    from tests.cluster.cluster import Cluster
    from tests.cluster.report import Times

pytestmark = pytest.mark.timeout(600)

KUBELET = {
    "restarted": "USBPLUGIN_CLUSTER_RESTART_KUBELET",
    "killed": "USBPLUGIN_CLUSTER_KILL_KUBELET",
}
REBOOT = "USBPLUGIN_CLUSTER_REBOOT_NODE"


@pytest.mark.parametrize("how", KUBELET)
def test_the_kubelet_is(cluster: Cluster, times: Times, how: str) -> None:
    command = wanted(KUBELET[how])
    cluster.install()
    bus = cluster.bus
    held, other = bus.plug_new(2)
    cluster.wait_allocatable(2)
    cluster.start(pods.pod("before", pods.container(cluster.image)))
    (holder,) = (row["serial"] for row in cluster.devices() if row["holders"])
    if holder != held.serial:
        held, other = other, held
    bus.unplug(other)
    run(command)
    registered = registration(cluster)
    times.note(f"kubelet {how}: its socket is there → registered again", registered)
    begin = cluster.now()
    bus.plug(other, 52)
    cluster.pods.create(pods.pod("after", pods.container(cluster.image)))
    cluster.wait_ready("after")
    times.note(f"kubelet {how}, a device plugged in → a new pod has it", cluster.now() - begin)
    for name, device in (("before", held), ("after", other)):
        assert pods.status(cluster.pods.get("pod", name))["restartCount"] == 0
        with cluster.logs(name) as log:
            bus.send(device, f"for {name}")
            log.until(f"heard for {name}")


def test_the_node_reboots_and_cables_are_swapped_meanwhile(cluster: Cluster, times: Times) -> None:
    command = wanted(REBOOT)
    cluster.install()
    bus = cluster.bus
    one, two = bus.plug_new(2)
    cluster.wait_allocatable(2)
    for name in ("first", "second"):
        cluster.pods.apply(deployment(name, cluster.image))
        cluster.pods.run("rollout", "status", f"deployment/{name}", "--timeout=50s")
    before = pods.status(cluster.pods.get("pod", buses.POD), buses.POD)["restartCount"]
    run(command)
    begin = cluster.now()
    with cluster.pods.watch("pods", buses.POD) as pod:
        pod.until(
            lambda p: pods.ready(p) and pods.status(p, buses.POD)["restartCount"] > before,
            "the bus is back",
            timeout=180,
        )
    numbers = [int(device.name[6:]) for device in (one, two)]
    bus.forget()
    bus.plug(one, numbers[1])
    bus.plug(two, numbers[0])
    for name in ("first", "second"):
        cluster.pods.run("rollout", "status", f"deployment/{name}", "--timeout=170s", timeout=180)
    times.note("node rebooted → each Deployment has a port again", cluster.now() - begin)
    cluster.wait_rollout()
    holders = {
        row["serial"]: holder.split("/")[1]
        for row in cluster.devices()
        for holder in row["holders"]
    }
    assert {*holders} == {one.serial, two.serial}
    for device in (one, two):
        with cluster.logs(holders[device.serial]) as log:
            log.until("open")
            bus.send(device, f"for the holder of {device.serial}")
            log.until(f"heard for the holder of {device.serial}")


def registration(cluster: Cluster) -> float:
    """Seconds from the kubelet's new socket to the plugin's registration, by the node's clock."""
    born = cluster.bus.born("/var/lib/kubelet/device-plugins/kubelet.sock")
    with cluster.logs(DAEMONSET, namespace=PLUGIN_NAMESPACE) as log:
        while True:
            moment = datetime.fromisoformat(log.until("registered resource=").split()[0])
            if (after := moment.timestamp() - born) > 0:
                return after


def deployment(name: str, image: str) -> dict[str, object]:
    pod = pods.pod(name, pods.container(image))
    labels = {**pods.LABELS, "app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": pods.LABELS},
        "spec": {
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": labels}, "spec": pod["spec"]},
        },
    }


def wanted(variable: str) -> str:
    return os.environ.get(variable) or pytest.skip(
        f"needs a right on the node: {variable}, a shell command"
    )


def run(command: str) -> None:
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
