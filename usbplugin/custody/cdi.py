"""Container Device Interface: a spec file per resource, which the container runtime reads.

CDI follows no links: the spec names the node itself, so that it has to be rewritten before a
device is announced, and a device has to be taken out of it the moment it is away; else a restarted
container would get its old numbers, which may be another device's by then.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

import msgspec

from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from pathlib import Path

    from usbplugin.custody.offer import Offer
    from usbplugin.discovery import Port
    from usbplugin.inventory import Device, Snapshot

_log = logging.getLogger(__name__)

_VERSION = "0.5.0"
"""The first with hostPath. A runtime refuses the whole file if it knows no such version."""
_VERSION_WITH_DOTS = "0.6.0"
"""The first that allows dots in the class, which is a resource's name after the slash."""

_TEMPORARY = ".new"


class CdiDirectory:
    """Keeps the specs of the resources whose devices are given out by CDI."""

    def __init__(self, directory: Path) -> None:
        """Use ``directory``, which is created with the first spec."""
        self._directory = directory
        self._complained = False

    def write(self, snapshot: Snapshot, offer: Offer) -> None:
        """Make the spec name those devices that are there, and no others."""
        present = [device for device in snapshot.devices if device.health.is_there]
        path = self._path(offer.resource)
        try:
            if not present:
                path.unlink(missing_ok=True)
                return
            self._directory.mkdir(parents=True, exist_ok=True)
            # The runtime reads *.json and *.yaml only.
            temporary = path.with_suffix(_TEMPORARY)
            temporary.write_bytes(msgspec.json.encode(spec(present, offer)))
            temporary.replace(path)
            self._complained = False
        except OSError as error:
            self._complain(path, error)

    def remove(self, resource: str) -> None:
        """Delete a resource's spec."""
        path = self._path(resource)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self._complain(path, error)

    def _complain(self, path: Path, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            _log.error(
                "cannot write the CDI spec: containers may not start, or get an old node",
                extra=fields(file=path, error=error, hint="mount the CDI directory writable"),
            )

    def _path(self, resource: str) -> Path:
        return self._directory / f"{re.sub(r'[^A-Za-z0-9.-]', '_', resource)}.json"


def qualified_name(resource: str, device_id: str) -> str:
    """The name by which a container asks for a device: ``vendor/class=name``."""
    return f"{resource}={_name(device_id)}"


def _name(device_id: str) -> str:
    """A CDI name ends in a letter or digit; one that does not spoils the file for all others.

    Serials are what devices say they are, so there are IDs that end otherwise. None begins with
    a digit: no two devices get one name.
    """
    return device_id if device_id[-1].isalnum() else f"0{device_id}0"


def spec(devices: list[Device], offer: Offer) -> dict[str, object]:
    """The spec of these devices."""
    _, _, kind_class = offer.resource.partition("/")
    return {
        "cdiVersion": _VERSION_WITH_DOTS if "." in kind_class else _VERSION,
        "kind": offer.resource,
        "devices": [
            {"name": _name(device.id), "containerEdits": _edits(device, offer)}
            for device in devices
        ],
    }


def _edits(device: Device, offer: Offer) -> dict[str, object]:
    nodes, mounts = [], []
    for index, port in enumerate(device.ports):
        path = offer.container_path.format(name=port.name, device=0, port=index)
        if port.number.is_pty:
            mode = "rw" if "w" in offer.permissions else "ro"
            mounts.append({"hostPath": port.node, "containerPath": path, "options": ["bind", mode]})
        else:
            nodes.append(_node(port, path, offer.permissions))
    edits: dict[str, object] = {}
    if nodes:
        edits["deviceNodes"] = nodes
    if mounts:
        edits["mounts"] = mounts
    return edits


def _node(port: Port, path: str, permissions: str) -> dict[str, object]:
    return {
        "path": path,
        "hostPath": port.node,
        "type": "c",
        "major": port.number.major,
        "minor": port.number.minor,
        # The host node's mode and owner are not taken over, and what a runtime makes of it then is
        # its own choice. So that a container that does not run as root may open its port.
        "fileMode": 0o666,
        "permissions": permissions,
    }
