"""Pods that get their port, lose it and get it back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cluster import pods
from tests.cluster.cluster import allocatable, capacity

if TYPE_CHECKING:
    from tests.cluster.cluster import Cluster
    from tests.cluster.report import Times

pytestmark = pytest.mark.timeout(300)


def test_capacity_follows_the_cables(cluster: Cluster, times: Times) -> None:
    cluster.install()
    bus = cluster.bus
    with cluster.watch_node() as node:
        node.until(lambda n: allocatable(n) == 0, "none is allocatable")
        begin = cluster.now()
        first, second = bus.plug_new(2)
        plugged = node.until(lambda n: allocatable(n) == 2, "two are allocatable")
        times.note("plugged in → allocatable in the node's status", plugged.at - begin)
        bus.unplug(first)
        unplugged = node.until(lambda n: allocatable(n) == 1, "one is allocatable")
        # An unplugged device is not forgotten, it is Unhealthy.
        assert capacity(unplugged.object) == capacity(plugged.object)
        bus.unplug(second)
        node.until(lambda n: allocatable(n) == 0, "none is allocatable")


def test_bytes_both_ways(cluster: Cluster) -> None:
    cluster.install()
    (device,) = cluster.bus.plug_new()
    cluster.wait_allocatable(1)
    cluster.start(pods.pod("reader", pods.container(cluster.image)))
    with cluster.logs("reader") as log:
        log.until("open")
        cluster.bus.send(device, "hello")
        log.until("heard hello")
    assert "answer to hello" in cluster.bus.read(device)


def test_unplugged_and_back_under_another_number(cluster: Cluster, times: Times) -> None:
    cluster.install()
    bus = cluster.bus
    (device,) = bus.plug_new()
    cluster.wait_allocatable(1)
    cluster.start(pods.pod("reader", pods.container(cluster.image)))
    with cluster.pods.watch("pods", "reader") as pod:
        pod.started()
        begin = cluster.now()
        bus.unplug(device)
        if cluster.tells_health:
            seen = pod.until(lambda p: pods.health(p) == ["Unhealthy"], "its device is Unhealthy")
            times.note("unplugged → allocatedResourcesStatus says Unhealthy", seen.at - begin)
        pod.until(lambda p: pods.waiting(p) != "", "its container waits")
        begin = cluster.now()
        bus.plug(device, 50)
        seen = pod.until(
            lambda p: pods.ready(p) and pods.status(p)["restartCount"] > 0, "running again"
        )
        times.note("replugged → the waiting container runs", seen.at - begin)
    with cluster.logs("reader") as log:
        log.until("open")
        bus.send(device, "again")
        log.until("heard again")


def test_two_come_back_swapped_and_each_container_finds_its_own(cluster: Cluster) -> None:
    cluster.install()
    bus = cluster.bus
    one, two = bus.plug_new(2)
    first, second = (int(device.name[6:]) for device in (one, two))
    cluster.wait_allocatable(2)
    for name in ("reader-1", "reader-2"):
        cluster.start(pods.pod(name, pods.container(cluster.image)))
    holders = holders_by_serial(cluster)
    bus.unplug(one)
    bus.unplug(two)
    bus.plug(one, second)
    bus.plug(two, first)
    for device in (one, two):
        (pod,) = holders[device.serial]
        cluster.wait_restarted(pod)
        with cluster.logs(pod) as log:
            log.until("open")
            bus.send(device, f"for the holder of {device.serial}")
            log.until(f"heard for the holder of {device.serial}")


def test_a_displaced_device_is_unhealthy_until_its_container_restarts(cluster: Cluster) -> None:
    cluster.install()
    bus = cluster.bus
    if bus.kind == "ptys":
        pytest.skip("a container gets a pty as a mount, which nothing displaces")
    one, two = bus.plug_new(2)
    first, second = (int(device.name[6:]) for device in (one, two))
    cluster.wait_allocatable(2)
    for name in ("holder-1", "holder-2"):
        cluster.start(pods.pod(name, pods.container(cluster.image, pods.HOLD)))
    with cluster.watch_node() as node:
        node.started()
        bus.unplug(one)
        bus.unplug(two)
        bus.plug(one, second)
        bus.plug(two, first)
        node.until(lambda n: allocatable(n) == 0, "both are Unhealthy")
        assert {states(cluster)[device.serial] for device in (one, two)} <= {
            "displaced",
            "contested",
        }
        for name in ("holder-1", "holder-2"):
            cluster.pods.run("exec", name, "--", "touch", "/tmp/end")
        node.until(lambda n: allocatable(n) == 2, "both are Healthy")


def test_a_pod_waits_until_there_is_a_device_for_it(cluster: Cluster, times: Times) -> None:
    cluster.install()
    cluster.wait_allocatable(0)
    cluster.pods.create(pods.pod("early", pods.container(cluster.image)))
    with cluster.pods.watch("pods", "early") as pod:
        sight = pod.until(
            lambda p: pods.condition(p, "PodScheduled") == "False", "it cannot be scheduled"
        )
        (why,) = (c for c in sight.object["status"]["conditions"] if c["type"] == "PodScheduled")
        assert f"Insufficient {pods.SERIAL}" in why["message"]
        begin = cluster.now()
        cluster.bus.plug_new()
        seen = pod.until(pods.ready, "it runs")
        times.note("plugged in → the pod that waited for it runs", seen.at - begin)


def test_a_waiting_container_says_why(cluster: Cluster) -> None:
    cluster.install()
    (device,) = cluster.bus.plug_new()
    cluster.wait_allocatable(1)
    cluster.start(pods.pod("reader", pods.container(cluster.image)))
    cluster.bus.unplug(device)
    with cluster.pods.watch("pods", "reader") as pod:
        seen = pod.until(lambda p: pods.waiting(p) == "CreateContainerConfigError", "it waits")
    message = pods.status(seen.object)["state"]["waiting"]["message"]
    assert f"{device.serial}-if00 is unplugged" in message


def test_init_containers_and_sidecars_have_ports(cluster: Cluster) -> None:
    cluster.install()
    cluster.bus.plug_new(2)
    cluster.wait_allocatable(2)
    init = pods.container(cluster.image, pods.OPEN, name="init")
    sidecar = pods.container(cluster.image, name="sidecar") | {"restartPolicy": "Always"}
    pod = pods.pod("three", pods.container(cluster.image), init=(init, sidecar))
    cluster.start(pod)
    said = {}
    for name in ("sidecar", "app"):
        with cluster.logs("three", "--container", name) as log:
            said[name] = log.until("open")
    assert said["sidecar"] != said["app"]
    with cluster.logs("three", "--container", "init") as log:
        log.until("opened usb-")


def holders_by_serial(cluster: Cluster) -> dict[str, list[str]]:
    """Which pods hold each device, without their namespace and container."""
    return {
        row["serial"]: [holder.split("/")[1] for holder in row["holders"]]
        for row in cluster.devices()
    }


def states(cluster: Cluster) -> dict[str, str]:
    """Each device's state by its serial number."""
    return {row["serial"]: row["health"] for row in cluster.devices()}
