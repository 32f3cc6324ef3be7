"""Installing, changing and removing the plugin."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.cluster import pods
from tests.cluster.cluster import DAEMONSET, PLUGIN_NAMESPACE, allocatable
from tests.cluster.kubectl import KubectlError
from tests.cluster.manifests import Install, virtual_patch
from tests.deploy.manifests import CHART, REMEDY
from tests.deploy.tools import program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.cluster.cluster import Cluster
    from tests.cluster.kubectl import Document
    from tests.cluster.report import Times

pytestmark = pytest.mark.timeout(300)

REFUSED = "resources:\n  - name: usbplugin/serial\n    colour: green\n"
PLUGIN_PODS = "-lapp.kubernetes.io/name=usbplugin"
SECOND = "usbplugin-test-second"
ARRIVALS = 16


def test_installed_by_kustomize(cluster: Cluster, times: Times) -> None:
    cluster.uninstall()
    begin = cluster.now()
    cluster.install()
    times.note("`kubectl apply` → rolled out (minReadySeconds: 5)", cluster.now() - begin)
    cluster.bus.plug_new()
    cluster.wait_allocatable(1)


def test_installed_by_helm(cluster: Cluster) -> None:
    helm = program("helm", REMEDY)
    cluster.uninstall()
    repository, _, tag = cluster.image.rpartition(":")
    where = ("--namespace", PLUGIN_NAMESPACE)
    cluster.make_namespace(PLUGIN_NAMESPACE)
    output(
        *(helm, "install", "usbplugin", str(CHART), *where),
        *("--set", f"image.repository={repository}", "--set", f"image.tag={tag}"),
        *("--wait", "--timeout", "60s"),
    )
    try:
        # The chart knows nothing of virtual ports.
        cluster.plugin.run("patch", DAEMONSET, "--patch", virtual_patch())
        cluster.wait_rollout()
        (device,) = cluster.bus.plug_new()
        cluster.wait_allocatable(1)
        cluster.start(pods.pod("reader", pods.container(cluster.image)))
        with cluster.logs("reader") as log:
            log.until("open")
            cluster.bus.send(device, "hello")
            log.until("heard hello")
        cluster.delete_pods()
    finally:
        output(helm, "uninstall", "usbplugin", *where, "--wait")
    cluster.plugin.run("wait", "--for=delete", "pods", PLUGIN_PODS, "--timeout=50s")
    left = cluster.plugin.run(
        "get", "all,configmaps,networkpolicies,serviceaccounts", "--output=name"
    )
    assert "usbplugin" not in left
    cluster.uninstall()


def test_pods_that_come_during_a_rollout_and_a_rollback_get_their_devices(
    cluster: Cluster, times: Times
) -> None:
    cluster.install()
    cluster.bus.plug_new(ARRIVALS)
    cluster.wait_allocatable(ARRIVALS)
    for command in (("restart", DAEMONSET), ("undo", DAEMONSET)):
        with arrivals(cluster) as arrived:
            begin = cluster.now()
            cluster.plugin.run("rollout", *command)
            cluster.wait_rollout()
            took = cluster.now() - begin
        times.note(f"`rollout {command[0]}`, with {len(arrived())} pods arriving", took)
        for name in arrived():
            cluster.wait_ready(name)
        cluster.delete_pods()


def test_pods_that_come_while_a_second_install_comes_and_goes_get_their_devices(
    cluster: Cluster,
) -> None:
    cluster.install()
    cluster.bus.plug_new(ARRIVALS)
    cluster.wait_allocatable(ARRIVALS)
    second = cluster.render(Install(), namespace=SECOND)
    try:
        with arrivals(cluster) as arrived:
            cluster.plugin.within(SECOND).apply(*second)
            cluster.plugin.within(SECOND).run(
                "rollout", "status", DAEMONSET, "--timeout=60s", timeout=70
            )
            cluster.plugin.run("delete", "namespace", SECOND, timeout=120)
        for name in arrived():
            cluster.wait_ready(name)
    finally:
        cluster.plugin.run("delete", "namespace", SECOND, "--ignore-not-found", timeout=120)


def test_a_refused_configuration_stops_at_the_first_node_and_changes_nothing(
    cluster: Cluster,
) -> None:
    cluster.install()
    (device,) = cluster.bus.plug_new()
    cluster.wait_allocatable(1)
    cluster.plugin.apply(*cluster.render(Install(REFUSED)))
    try:
        with cluster.plugin.watch("pods", labels="app.kubernetes.io/name=usbplugin") as watch:
            seen = watch.until(lambda p: "colour" in last_words(p), "it ended, and said why")
        new = seen.object["metadata"]["name"]
        with pytest.raises(KubectlError, match="rollout"):
            cluster.plugin.run("rollout", "status", DAEMONSET, "--timeout=3s")
        cluster.start(pods.pod("reader", pods.container(cluster.image)))
        with cluster.logs("reader") as log:
            log.until("open")
            cluster.bus.send(device, "hello")
            log.until("heard hello")
    finally:
        cluster.plugin.run("rollout", "undo", DAEMONSET)
        cluster.wait_rollout()
    with cluster.plugin.watch("pods", labels="app.kubernetes.io/name=usbplugin") as watch:
        left = watch.until(pods.ready, "the old one is ready").object
    assert left["metadata"]["name"] != new


def test_the_node_loses_its_label_and_gets_it_back(cluster: Cluster) -> None:
    cluster.install()
    cluster.bus.plug_new()
    cluster.wait_allocatable(1)
    with cluster.watch_node() as node:
        cluster.unlabel()
        node.until(lambda n: allocatable(n) == 0, "no plugin, no devices")
        cluster.label()
        node.until(lambda n: allocatable(n) == 1, "its devices are back")
    cluster.wait_rollout()


def test_an_uninstall_leaves_nothing_but_the_two_directories(cluster: Cluster) -> None:
    bus = cluster.bus
    cluster.install(
        Install(
            "cdi: true\nnodeFeatures: true\nregistration: watcher\nresources:\n"
            "  - {name: usbplugin/serial, containerPath: /dev/serial}\n",
            ("cdi", "nfd", "watcher"),
        )
    )
    bus.plug_new()
    cluster.wait_allocatable(1)
    cluster.start(pods.pod("holder", pods.container(cluster.image, pods.HOLD)))
    cluster.delete_pods()
    cluster.plugin.run("delete", DAEMONSET, "--wait=true", timeout=60)
    cluster.plugin.run("wait", "--for=delete", "pods", PLUGIN_PODS, "--timeout=50s")
    cluster.wait_allocatable(0)
    for path in (
        "/var/lib/kubelet/device-plugins",
        "/var/lib/kubelet/plugins_registry",
        "/run/cdi",
        "/etc/kubernetes/node-feature-discovery/features.d",
    ):
        assert not [name for name in bus.tree(path) or () if "usbplugin" in name], path
    assert "usbplugin.sock" not in (bus.tree("/run/usbplugin") or ())
    cluster.uninstall()


def test_list_events_and_doctor_in_the_plugins_pod(cluster: Cluster) -> None:
    cluster.install()
    (device,) = cluster.bus.plug_new()
    cluster.wait_allocatable(1)
    assert device.serial in cluster.usbplugin("list")
    assert device.serial in cluster.usbplugin("events")
    findings = json.loads(cluster.usbplugin("doctor", "--json"))
    assert not [finding for finding in findings if finding["grade"] == "fail"]


def test_metrics_and_probes_through_a_port_forward(cluster: Cluster) -> None:
    cluster.install(Install(components=("http",)))
    (device,) = cluster.bus.plug_new()
    cluster.wait_allocatable(1)
    with port_forward(cluster, 9808) as url:
        assert get(f"{url}/healthz")[0] == 200
        assert get(f"{url}/readyz")[0] == 200
        status, metrics = get(f"{url}/metrics")
        assert status == 200
        assert 'usbplugin_registered{resource="usbplugin/serial"} 1' in metrics
        assert device.serial in metrics
        assert device.serial in get(f"{url}/devices")[1]
        assert "<html" in get(f"{url}/")[1]
    cluster.install()


@contextmanager
def arrivals(cluster: Cluster) -> Iterator[Callable[[], list[str]]]:
    """Meanwhile, pods that want a device are made one after another; tells which were."""
    names: list[str] = []
    over = threading.Event()

    def make() -> None:
        for number in range(ARRIVALS):
            name = f"arrival-{number}"
            cluster.pods.create(pods.pod(name, pods.container(cluster.image, pods.HOLD)))
            names.append(name)
            if over.wait(0.4):
                return

    with ThreadPoolExecutor(1) as thread:
        made = thread.submit(make)
        try:
            yield lambda: names
        finally:
            over.set()
            made.result()
    assert len(names) > ARRIVALS // 4


@contextmanager
def port_forward(cluster: Cluster, port: int) -> Iterator[str]:
    process = subprocess.Popen(
        cluster.plugin.command("port-forward", DAEMONSET, f":{port}"),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
        assert found
        yield f"http://127.0.0.1:{found[1]}"
    finally:
        process.terminate()
        process.communicate()


def get(url: str) -> tuple[int, str]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.status, answer.read().decode()


def last_words(pod: Document) -> str:
    """The termination message of the plugin's container before this one."""
    ended = pods.status(pod, "usbplugin").get("lastState", {}).get("terminated", {})
    return str(ended.get("message", ""))


def output(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
