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
        before = node.started().object
        first, second = bus.plug_new(2)
        plugged = node.until(lambda n: allocatable(n) == 2, "two are allocatable")
        assert capacity(plugged.object) == capacity(before) + 2
        bus.unplug(first)
        unplugged = node.until(lambda n: allocatable(n) == 1, "one is allocatable")
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
