"""The levels of Pod Security, for the pods that use a port."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cluster import pods

if TYPE_CHECKING:
    from tests.cluster.cluster import Cluster

pytestmark = pytest.mark.timeout(300)

RESTRICTED = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "runAsGroup": 1000,
    "supplementalGroups": [20],
    "seccompProfile": {"type": "RuntimeDefault"},
}


@pytest.mark.parametrize("level", ["baseline", "restricted"])
def test_a_port_at_each_level(cluster: Cluster, level: str) -> None:
    if level == "restricted" and cluster.bus.kind == "ptys":
        pytest.skip("the ptys here are root's alone")
    cluster.install()
    (device,) = cluster.bus.plug_new()
    cluster.wait_allocatable(1)
    namespace = f"usbplugin-test-{level}"
    cluster.make_namespace(namespace, level)
    try:
        pod = pods.pod("reader", pods.container(cluster.image))
        if level == "restricted":
            pod["spec"]["securityContext"] = RESTRICTED
        where = cluster.pods.within(namespace)
        where.create(pod)
        with where.watch("pods", "reader") as watch:
            watch.until(pods.ready, "ready")
        with cluster.logs("reader", namespace=namespace) as log:
            log.until("open")
            cluster.bus.send(device, "hello")
            log.until("heard hello")
    finally:
        cluster.pods.run("delete", "namespace", namespace, timeout=120)
