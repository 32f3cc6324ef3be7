"""What the configuration can say of resources, on a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cluster import pods
from tests.cluster.manifests import Install

if TYPE_CHECKING:
    from tests.cluster.cluster import Cluster

pytestmark = pytest.mark.timeout(300)

MODEM = """
resources:
  - name: usbplugin/modem
    selectors: [{vendor: "2c7c"}]
    unit: usb-device
    containerPath: "/dev/modem{port}"
  - name: usbplugin/serial
"""
SHARED = """
resources:
  - name: usbplugin/serial
    shares: 2
"""
CDI = """
cdi: true
resources:
  - name: usbplugin/serial
    containerPath: /dev/serial{port}
"""
WATCHER = """
registration: watcher
resources:
  - name: usbplugin/serial
"""
NFD = """
nodeFeatures: true
resources:
  - name: usbplugin/serial
"""
REGISTRY = "/var/lib/kubelet/plugins_registry"
CDI_SPECS = "/run/cdi"  # /var/run is a link to /run, nearly everywhere
FEATURES = "/etc/kubernetes/node-feature-discovery/features.d"


def test_a_modem_is_one_device(cluster: Cluster) -> None:
    cluster.install(Install(MODEM))
    bus = cluster.bus
    ports = [
        bus.plug(
            bus.device(
                serial="MODEM",
                vendor_id="2c7c",
                product_id="0125",
                product="EG25-G",
                interface=interface,
                location="test-modem",
            )
        )
        for interface in range(3)
    ]
    cluster.wait_allocatable(1, "usbplugin/modem")
    program = pods.TALK.replace("SERIAL", "MODEM").replace("[0]", "[2]")
    cluster.start(
        pods.pod("modem", pods.container(cluster.image, program, resource="usbplugin/modem"))
    )
    with cluster.logs("modem") as log:
        assert log.until("open").startswith("open /dev/modem2 ")
        bus.send(ports[2], "AT")
        log.until("heard AT")
    bus.unplug(ports[1])
    cluster.wait_allocatable(0, "usbplugin/modem")


def test_two_pods_share_a_device(cluster: Cluster) -> None:
    cluster.install(Install(SHARED))
    (device,) = cluster.bus.plug_new()
    cluster.wait_allocatable(2)
    for name in ("one", "two"):
        cluster.start(pods.pod(name, pods.container(cluster.image, pods.HOLD)))
    cluster.pods.create(pods.pod("three", pods.container(cluster.image, pods.HOLD)))
    (row,) = [row for row in cluster.devices() if row["serial"] == device.serial]
    assert {holder.split("/")[1] for holder in row["holders"]} == {"one", "two"}
    with cluster.pods.watch("pods", "three") as pod:
        pod.until(lambda p: pods.condition(p, "PodScheduled") == "False", "no share is left")


def test_a_device_by_cdi(cluster: Cluster) -> None:
    if cluster.bus.kind == "ptys":
        pytest.skip("CDI has device nodes, and these ports are mounts")
    cluster.install(Install(CDI, ("cdi",)))
    bus = cluster.bus
    (device,) = bus.plug_new()
    cluster.wait_allocatable(1)
    assert cluster.bus.tree(CDI_SPECS)
    cluster.start(pods.pod("reader", pods.container(cluster.image)))
    with cluster.logs("reader") as log:
        assert log.until("open").startswith("open /dev/serial0 ")
        bus.send(device, "hello")
        log.until("heard hello")
    bus.unplug(device)
    with cluster.pods.watch("pods", "reader") as pod:
        pod.until(lambda p: pods.waiting(p) != "", "its container waits")
    bus.plug(device, 51)
    cluster.wait_restarted("reader")
    with cluster.logs("reader") as log:
        assert log.until("open") == "open /dev/serial0 4:51"


def test_registered_by_the_plugin_watcher(cluster: Cluster) -> None:
    cluster.install(Install(WATCHER, ("watcher",)))
    (device,) = cluster.bus.plug_new()
    cluster.wait_allocatable(1)
    assert any(name.startswith("usbplugin") for name in cluster.bus.tree(REGISTRY) or ())
    cluster.start(pods.pod("reader", pods.container(cluster.image)))
    with cluster.logs("reader") as log:
        log.until("open")
        cluster.bus.send(device, "hello")
        log.until("heard hello")


def test_node_features_are_written(cluster: Cluster) -> None:
    cluster.install(Install(NFD, ("nfd",)))
    cluster.bus.plug_new(2)
    cluster.wait_allocatable(2)
    text = cluster.bus.text(f"{FEATURES}/usbplugin")
    assert "usbplugin_serial.count=2\n" in text
    assert "usb-0403-6001.count=2\n" in text
    cluster.install()
    assert "usbplugin" not in (cluster.bus.tree(FEATURES) or ())
