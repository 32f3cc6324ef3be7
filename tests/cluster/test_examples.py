"""Each pod of deploy/examples, with the configuration that is beside them.

Their images are replaced by the plugin's own, which the node has. What that lacks is put in its
place, as said below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.cluster import pods
from tests.cluster.bus import PYTHON
from tests.cluster.manifests import Install
from tests.deploy.tools import ROOT

if TYPE_CHECKING:
    from tests.cluster.cluster import Cluster
    from tests.cluster.kubectl import Document

pytestmark = pytest.mark.timeout(300)

EXAMPLES = ROOT / "deploy" / "examples"
INSTALL = Install((EXAMPLES / "config.yaml").read_text("utf-8"))
# As much of pyserial as the example uses.
PYSERIAL = """
cat > /packages/serial.py <<'EOF'
class Serial:
    def __init__(self, device, baudrate):
        self.file = open(device, "rb", buffering=0)
    def __enter__(self):
        return self.file
    def __exit__(self, *_):
        self.file.close()
EOF
"""
ZIGBEE = """
import os
with open(os.environ["ZIGBEE2MQTT_CONFIG_SERIAL_PORT"], "rb", buffering=0) as stick:
    while line := stick.readline():
        print("from the stick:", line.decode(), flush=True)
"""


def test_iot_reader(cluster: Cluster) -> None:
    cluster.install(INSTALL)
    (device,) = cluster.bus.plug_new()
    cluster.wait_allocatable(1)
    apply(cluster, "iot-reader", init=["sh", "-c", PYSERIAL])
    cluster.wait_ready("iot-reader")
    with cluster.logs("iot-reader") as log:
        log.until("reading /dev/ttyUSB")
        cluster.bus.send(device, "21.5 degrees")
        log.until("21.5 degrees")


def test_modem(cluster: Cluster) -> None:
    cluster.install(INSTALL)
    bus = cluster.bus
    ports = [
        bus.plug(
            bus.device(serial="EG25", vendor_id="2c7c", interface=number, location="test-eg25")
        )
        for number in range(2)
    ]
    cluster.wait_allocatable(1, "usbplugin/modem")
    apply(cluster, "modem")
    cluster.wait_ready("modem")
    with cluster.logs("modem") as log:
        log.until("/dev/modem0:")
        log.until("/dev/modem1:")
    for port in ports:
        assert any("ATI" in line for line in bus.read(port))


def test_non_root(cluster: Cluster) -> None:
    if cluster.bus.kind == "ptys":
        pytest.skip("the ptys here are root's alone")
    cluster.install(INSTALL)
    (device,) = cluster.bus.plug_new()
    cluster.wait_allocatable(1)
    apply(cluster, "non-root")
    cluster.wait_ready("non-root")
    with cluster.logs("non-root") as log:
        assert "uid=1000" in log.until("uid=")
        log.until("/dev/ttyUSB")
        cluster.bus.send(device, "for everyone")
        log.until("for everyone")


def test_two_ports(cluster: Cluster) -> None:
    cluster.install(INSTALL)
    cluster.bus.plug_new(4)
    cluster.wait_allocatable(4)
    apply(cluster, "two-ports")
    given = []
    for name in ("two-ports-0", "two-ports-1"):
        cluster.wait_ready(name)
        with cluster.logs(name) as log:
            given += log.until("/dev/ttyUSB").split(",")
    assert len(set(given)) == 4


def test_zigbee2mqtt(cluster: Cluster) -> None:
    cluster.install(INSTALL)
    (stick,) = cluster.bus.plug_new(product="Sonoff Zigbee 3.0 USB Dongle Plus")
    cluster.wait_allocatable(1, "usbplugin/zigbee")
    apply(cluster, "zigbee2mqtt", command=[PYTHON, "-uc", ZIGBEE])
    cluster.pods.run("rollout", "status", "deployment/zigbee2mqtt", "--timeout=50s")
    with cluster.logs("deployment/zigbee2mqtt") as log:
        cluster.bus.send(stick, "a frame")
        log.until("from the stick: a frame")


def apply(cluster: Cluster, name: str, **commands: list[str]) -> None:
    """Apply an example, in the image that is here.

    Args:
        cluster: where to.
        name: the example's.
        commands: ``init`` and ``command``, in place of the init container's and the container's.
    """
    documents = [
        document
        for document in yaml.safe_load_all((EXAMPLES / f"{name}.yaml").read_text("utf-8"))
        if document["kind"] != "PersistentVolumeClaim"
    ]
    for document in documents:
        document["metadata"].setdefault("labels", {}).update(pods.LABELS)
        template = (
            document if document["kind"] == "Pod" else document.get("spec", {}).get("template")
        )
        if template:
            template["metadata"].setdefault("labels", {}).update(pods.LABELS)
            _adapt(template["spec"], cluster.image, commands)
    cluster.pods.apply(*documents)


def _adapt(spec: Document, image: str, commands: dict[str, list[str]]) -> None:
    spec["tolerations"] = [{"operator": "Exists"}]
    spec["terminationGracePeriodSeconds"] = 1
    for volume in spec.get("volumes", ()):
        if volume.pop("persistentVolumeClaim", None):
            volume["emptyDir"] = {}
    for kind, key in (("initContainers", "init"), ("containers", "command")):
        for container in spec.get(kind, ()):
            _take_image(container, image, commands.get(key))


def _take_image(container: dict[str, Any], image: str, command: list[str] | None) -> None:
    container.update(image=image, imagePullPolicy="IfNotPresent")
    if command:
        container["command"] = command
    elif container["command"][0] == "python":
        container["command"][0] = PYTHON
    # A virtual terminal has no speed, and stty would say so and fail.
    container["command"] = [word.replace(" 115200", "") for word in container["command"]]
