"""Pods that use a port, in the plugin's own image, which is on the node anyway."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.cluster.bus import PYTHON

if TYPE_CHECKING:
    from tests.cluster.kubectl import Document

SERIAL = "usbplugin/serial"
LABELS = {"usbplugin-cluster-test": "pod"}

TALK = """
import os, sys
path = os.environ["USBPLUGIN_SERIAL_DEVICES"].split(",")[0]
number = os.stat(path).st_rdev
print("open", path, f"{os.major(number)}:{os.minor(number)}", flush=True)
with open(path, "rb", buffering=0) as port, open(path, "wb", buffering=0) as out:
    while line := port.readline():
        print("heard", line.decode().strip(), flush=True)
        out.write(b"answer to " + line.strip() + b"\\n")
print("end of the port", flush=True)
"""
"""Says where its port is, answers each line, and ends when the port does."""

HOLD = """
import os, time
print("here", os.environ["USBPLUGIN_SERIAL_DEVICES"], flush=True)
while not os.path.exists("/tmp/end"):
    time.sleep(0.1)
"""
"""Has a port, leaves it alone, and ends when it is told to."""

OPEN = """
import os
for path in os.environ["USBPLUGIN_SERIAL_DEVICES"].split(","):
    os.close(os.open(path, os.O_RDWR | os.O_NOCTTY))
print("opened", os.environ["USBPLUGIN_SERIAL_IDS"], flush=True)
"""
"""Opens its ports, and ends."""


def container(
    image: str,
    program: str = TALK,
    *,
    name: str = "app",
    resource: str = SERIAL,
    count: int = 1,
) -> Document:
    """A container that asks for ``count`` devices."""
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": [PYTHON, "-uc", program],
        "resources": {"limits": {resource: str(count)}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def pod(name: str, *containers: Document, init: tuple[Document, ...] = ()) -> Document:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": LABELS},
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 1,
            "tolerations": [{"operator": "Exists"}],
            "initContainers": list(init),
            "containers": list(containers),
        },
    }


def ready(pod: Document) -> bool:
    return condition(pod, "Ready") == "True"


def condition(pod: Document, kind: str) -> str:
    for entry in pod.get("status", {}).get("conditions", ()):
        if entry["type"] == kind:
            return str(entry["status"])
    return "Unknown"


def status(pod: Document, name: str = "app") -> Document:
    """A container's status; empty while there is none."""
    for entry in pod.get("status", {}).get("containerStatuses", ()):
        if entry["name"] == name:
            return dict(entry)
    return {}


def waiting(pod: Document, name: str = "app") -> str:
    """Why a container waits; empty if it does not."""
    return str(status(pod, name).get("state", {}).get("waiting", {}).get("reason", ""))


def health(pod: Document, resource: str = SERIAL) -> list[str]:
    """What the API says of the health of a pod's devices (Kubernetes 1.36 by default)."""
    found = []
    for entry in pod.get("status", {}).get("containerStatuses", ()):
        for allocated in entry.get("allocatedResourcesStatus", ()):
            if allocated["name"] == resource:
                found += [device["health"] for device in allocated.get("resources", ())]
    return found
