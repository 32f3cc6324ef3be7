"""The test's side of the bus pod: ports are plugged in, unplugged and talked to by calls.

``agent.py`` is the other side, on the node. A call takes milliseconds, over one ``kubectl exec``
that is begun anew if the kubelet has hung up.
"""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tests.cluster.kubectl import KubectlError

if TYPE_CHECKING:
    from tests.cluster.kubectl import Document, Kubectl

PYTHON = "/opt/usbplugin/bin/python3"
"""Where the plugin's image has its Python."""
POD = "bus"
DIRECTORY = "/run/usbplugin-virtual"
FIRST_MINOR, LAST_MINOR = 40, 62
"""The virtual terminals that are used: 63 is the last, and few machines show those from 40 on."""

_AGENT = Path(__file__).with_name("agent.py")
_BRIDGE = """
import socket, sys
with socket.socket(socket.AF_UNIX) as agent:
    agent.connect("/tmp/bus.sock")
    lines = agent.makefile("rw")
    for request in sys.stdin:
        lines.write(request)
        lines.flush()
        sys.stdout.write(lines.readline())
        sys.stdout.flush()
"""


def pod(image: str, node: str, kind: str) -> Document:
    """The pod that plays the bus; ``kind`` is "auto" or "ptys"."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": POD},
        "spec": {
            "nodeName": node,
            "tolerations": [{"operator": "Exists"}],
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {
                    "name": POD,
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": [PYTHON, "-uc", _AGENT.read_text("utf-8"), kind],
                    "terminationMessagePath": "/tmp/termination-log",
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                    "securityContext": {"privileged": kind != "ptys", "runAsUser": 0},
                    "readinessProbe": {
                        "exec": {"command": ["test", "-S", "/tmp/bus.sock"]},
                        "periodSeconds": 1,
                    },
                    "volumeMounts": [
                        # Why all of /dev: the kind overlay says it, where it has a pod like this.
                        {"name": "dev", "mountPath": "/dev", "readOnly": True},
                        {"name": "bus", "mountPath": DIRECTORY},
                        {"name": "host", "mountPath": "/host"},
                    ],
                }
            ],
            "volumes": [
                {"name": "dev", "hostPath": {"path": "/dev", "type": "Directory"}},
                {"name": "bus", "hostPath": {"path": DIRECTORY, "type": "DirectoryOrCreate"}},
                {"name": "host", "hostPath": {"path": "/", "type": "Directory"}},
            ],
        },
    }


@dataclass(eq=False)
class Device:
    """A USB device's port; it is the same device under whatever name it is plugged in."""

    serial: str
    vendor_id: str = "0403"
    product_id: str = "6001"
    product: str = "FT232R USB UART"
    interface: int = 0
    location: str = ""
    name: str = field(default="", init=False)
    """The port's name while it is plugged in."""

    def descriptors(self) -> dict[str, str | int]:
        return {
            "serial": self.serial,
            "vendor_id": self.vendor_id,
            "product_id": self.product_id,
            "manufacturer": "usbplugin",
            "product": self.product,
            "interface": self.interface,
            "location": self.location or f"test-{self.serial}",
        }


class Bus:
    """The bus of the node under test."""

    def __init__(self, kubectl: Kubectl) -> None:
        self._kubectl = kubectl
        self._session: subprocess.Popen[str] | None = None
        self._made = 0
        self._plugged: list[Device] = []
        self.kind, self.obstacle, self.kernel, self.machine = self._call("kind")

    def close(self) -> None:
        if self._session is not None:
            self._session.kill()
            self._session.communicate()
            self._session = None

    def device(self, **descriptors: Any) -> Device:  # noqa: ANN401 -- Device's own keywords
        """A new device, not plugged in, with a serial number that none had before."""
        self._made += 1
        serial = descriptors.pop("serial", f"T{int(time.time()) % 100_000:05}{self._made:03}")
        return Device(serial, **descriptors)

    def plug(self, device: Device, number: int | None = None) -> Device:
        """Plug in a device, under the lowest free number or the one that is given."""
        used = {int(other.name[6:]) for other in self._plugged}
        free = (n for n in range(FIRST_MINOR, LAST_MINOR + 1) if n not in used)
        minor = next(free) if number is None else number
        name = f"ttyUSB{minor}"
        self._call("plug", name=name, minor=minor, descriptors=device.descriptors())
        device.name = name
        self._plugged.append(device)
        return device

    def plug_new(self, count: int = 1, **descriptors: Any) -> list[Device]:  # noqa: ANN401
        return [self.plug(self.device(**descriptors)) for _ in range(count)]

    def unplug(self, device: Device) -> None:
        self._call("unplug", name=device.name)
        self._plugged.remove(device)

    def unplug_all(self) -> None:
        for device in self._plugged[:]:
            self.unplug(device)

    def forget(self) -> None:
        """The node was rebooted: nothing is plugged in, and nobody unplugged it."""
        self._plugged.clear()

    def send(self, device: Device, text: str) -> None:
        """Have the device say a line."""
        self._call("send", name=device.name, text=text)

    def read(self, device: Device) -> list[str]:
        """The lines that the device was told (and, on a terminal, echoed)."""
        lines: list[str] = self._call("read", name=device.name)
        return lines

    def tree(self, path: str) -> list[str] | None:
        """The names in a directory of the node; None if there is no such directory."""
        names: list[str] | None = self._call("tree", path=f"/host{path}")
        return names

    def text(self, path: str) -> str:
        """A file of the node."""
        text: str = self._call("text", path=f"/host{path}")
        return text

    def born(self, path: str) -> float:
        """When a socket of the node was made, by the node's clock; seconds since 1970."""
        born: float = self._call("born", path=f"/host{path}")
        return born

    def remove(self, path: str, *, everything: bool) -> None:
        """Delete a directory of the node: with all that is in it, or if it is empty."""
        self._call("remove", path=f"/host{path}", everything=everything)

    def _call(self, call: str, /, **arguments: object) -> Any:  # noqa: ANN401 -- as JSON has it
        request = json.dumps([call, arguments]) + "\n"
        line = ""
        for _ in range(2):
            stdin, stdout = self._connected()
            try:
                stdin.write(request)
                stdin.flush()
                line = stdout.readline()
            except BrokenPipeError:
                line = ""
            if line:
                break
            self.close()
        if not line:
            raise KubectlError(f"the bus pod does not answer: {call} {arguments}")
        answer = json.loads(line)
        if "error" in answer:
            raise AssertionError(f"the bus: {call} {arguments}: {answer['error']}")
        return answer["result"]

    def _connected(self) -> tuple[IO[str], IO[str]]:
        if self._session is None:
            self._session = subprocess.Popen(
                self._kubectl.command("exec", "--stdin", POD, "--", PYTHON, "-uc", _BRIDGE),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        assert self._session.stdin is not None
        assert self._session.stdout is not None
        return self._session.stdin, self._session.stdout
