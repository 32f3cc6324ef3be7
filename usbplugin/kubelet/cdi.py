"""Container Device Interface: a spec file per resource, which the container runtime reads.

CDI follows no links: the spec names the node itself, so that it has to be rewritten before a
device is announced, and a device has to be taken out of it the moment it is away; else a restarted
container would get its old numbers, which may be another device's by then.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from pathlib import Path

    from usbplugin.discovery import Port
    from usbplugin.inventory import Device, Snapshot
    from usbplugin.kubelet.allocation import Handover

_log = logging.getLogger(__name__)

CDI_VERSION = "0.7.0"
"""The first with additionalGids."""

_TEMPORARY = ".new"


class CdiDirectory:
    """Keeps the specs of the resources that are handed over by CDI."""

    def __init__(self, directory: Path) -> None:
        """Use ``directory``, which is created with the first spec."""
        self._directory = directory
        self._complained = False

    def write(self, snapshot: Snapshot, handover: Handover) -> None:
        """Make the spec name those devices that are there, and no others."""
        present = [device for device in snapshot.devices if device.health.is_there]
        path = self._path(handover.resource)
        try:
            if not present:
                path.unlink(missing_ok=True)
                return
            self._directory.mkdir(parents=True, exist_ok=True)
            # The runtime reads *.json and *.yaml only.
            temporary = path.with_suffix(_TEMPORARY)
            temporary.write_bytes(msgspec.json.encode(spec(present, handover)))
            temporary.replace(path)
        except OSError as error:
            if not self._complained:
                self._complained = True
                _log.error(
                    "CDI spec not written: containers will not start",
                    extra=fields(file=path, error=error, hint="mount the CDI directory writable"),
                )

    def remove(self, resource: str) -> None:
        """Delete a resource's spec."""
        self._path(resource).unlink(missing_ok=True)

    def _path(self, resource: str) -> Path:
        return self._directory / f"{re.sub(r'[^A-Za-z0-9.-]', '_', resource)}.json"


def qualified_name(resource: str, device_id: str) -> str:
    """The name by which a container asks for a device: ``vendor/class=name``."""
    return f"{resource}={device_id}"


def spec(devices: list[Device], handover: Handover) -> dict[str, object]:
    """The spec of these devices, under CDI's schema 0.7.0; one whose node vanishes is left out."""
    entries = []
    for device in devices:
        with suppress(FileNotFoundError):
            entries.append({"name": device.id, "containerEdits": _edits(device, handover)})
    return {"cdiVersion": CDI_VERSION, "kind": handover.resource, "devices": entries}


def _edits(device: Device, handover: Handover) -> dict[str, object]:
    nodes, mounts, groups = [], [], set()
    for index, port in enumerate(device.ports):
        path = handover.container_path.format(name=port.name, device=0, port=index)
        if port.number.is_pty:
            mode = "rw" if "w" in handover.permissions else "ro"
            mounts.append({"hostPath": port.node, "containerPath": path, "options": ["bind", mode]})
        else:
            nodes.append(_node(port, path, handover.permissions))
            groups |= _group(port)
    edits: dict[str, object] = {}
    if nodes:
        edits["deviceNodes"] = nodes
    if mounts:
        edits["mounts"] = mounts
    if groups:
        # So that a container that does not run as root may open its port.
        edits["additionalGids"] = sorted(groups)
    return edits


def _node(port: Port, path: str, permissions: str) -> dict[str, object]:
    return {
        "path": path,
        "hostPath": port.node,
        "type": "c",
        "major": port.number.major,
        "minor": port.number.minor,
        "permissions": permissions,
    }


def _group(port: Port) -> set[int]:
    """The group that may open the node, if it is not root's."""
    status = os.stat(port.node)  # noqa: PTH116 -- a str
    return {status.st_gid} if status.st_gid and status.st_mode & stat.S_IRGRP else set()
