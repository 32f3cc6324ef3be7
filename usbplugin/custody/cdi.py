"""Container Device Interface: a spec file per resource, which the container runtime reads.

CDI follows no links: the spec names the node itself, so that it has to be rewritten before a
device is announced, and a device has to be taken out of it the moment it is away; else a restarted
container would get its old numbers, which may be another device's by then.
"""

from __future__ import annotations

import logging
import re
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from usbplugin.discovery.identity import is_ours as is_ours_by_name
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

    from usbplugin.custody.offer import Offer
    from usbplugin.discovery import Port
    from usbplugin.inventory import Device

Entry = dict[str, object]
"""One device of a spec."""

_log = logging.getLogger(__name__)

_VERSION = "0.5.0"
"""The first with hostPath. A runtime refuses the whole file if it knows no such version."""
_VERSION_WITH_DOTS = "0.6.0"
"""The first that allows dots in the class, which is a resource's name after the slash."""


class CdiDirectory:
    """Keeps the specs of the resources whose devices are given out by CDI."""

    def __init__(self, directory: Path) -> None:
        """Use ``directory``, which is created with the first spec."""
        self._directory = directory
        self._token = secrets.token_hex(4)
        self._complained = False
        self._written: dict[str, dict[str, Entry]] = {}
        """By resource and device, what runtimes read."""

    def write(self, devices: Iterable[Device], offer: Offer) -> None:
        """Make a resource's spec name those of ``devices`` that are there, and no others."""
        present = [device for device in devices if device.health.is_there]
        path = self._path(offer.resource)
        entries = {device.id: _entry(device, offer) for device in present}
        try:
            if not present:
                path.unlink(missing_ok=True)
            else:
                self._replace(path, msgspec.json.encode(_spec(entries.values(), offer.resource)))
            self._written[offer.resource] = entries
            self._complained = False
        except OSError as error:
            self._complain(path, error)

    def has(self, resource: str) -> bool:
        """Whether a spec of that resource is kept, be it that nothing is in it now."""
        return resource in self._written

    def problem(self, device: Device, offer: Offer) -> str:
        """Why the spec does not lead to the device as it is now; empty if it does."""
        if self._written.get(offer.resource, {}).get(device.id) == _entry(device, offer):
            return ""
        return f"its CDI spec cannot be written to {self._directory}"

    def is_kept(self, device: Device, offer: Offer) -> bool:
        """Whether the spec on disk leads to the device as it is now, whoever wrote it. May hang."""
        try:
            found = msgspec.json.decode(self._path(offer.resource).read_bytes())
            return _entry(device, offer) in found["devices"]
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError):
            return False

    def remove(self, resource: str) -> None:
        """Delete a resource's spec."""
        path = self._path(resource)
        self._written.pop(resource, None)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self._complain(path, error)

    def keep_only(self, resources: Collection[str]) -> None:
        """Remove the specs that an earlier run left of other resources: their numbers are old."""
        kept = {self._path(resource) for resource in resources}
        try:
            found = [path for path in self._directory.iterdir() if path.suffix == ".json"]
        except OSError:
            return  # there are none
        for path in found:
            if path not in kept and (resource := _resource_of(path)) is not None:
                _log.info("CDI spec of an earlier run removed", extra=fields(file=path))
                self.remove(resource)

    def _replace(self, path: Path, content: bytes) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        # The runtime reads *.json and *.yaml only.
        temporary = path.with_suffix(f".{self._token}")
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise

    def _complain(self, path: Path, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            _log.error(
                "cannot write the CDI spec: devices that it does not name are not offered",
                extra=fields(file=path, error=error, hint="mount the CDI directory writable"),
            )

    def _path(self, resource: str) -> Path:
        return self._directory / f"{re.sub(r'[^A-Za-z0-9.-]', '_', resource)}.json"


def _resource_of(path: Path) -> str | None:
    """The resource of a spec that we wrote; None if it is somebody else's."""
    try:
        found = msgspec.json.decode(path.read_bytes())
        names = [device["name"] for device in found["devices"]]
        resource = found["kind"]
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError):
        return None
    is_ours = names and all(
        isinstance(name, str) and is_ours_by_name(name.removeprefix("0")) for name in names
    )
    return resource if is_ours and isinstance(resource, str) else None


def qualified_name(resource: str, device_id: str) -> str:
    """The name by which a container asks for a device: ``vendor/class=name``."""
    return f"{resource}={_name(device_id)}"


def _name(device_id: str) -> str:
    """A CDI name ends in a letter or digit; one that does not spoils the file for all others.

    Serials are what devices say they are, so there are IDs that end otherwise. None begins with
    a digit: no two devices get one name.
    """
    return device_id if device_id[-1].isalnum() else f"0{device_id}0"


def spec(devices: Iterable[Device], offer: Offer) -> dict[str, object]:
    """The spec of these devices."""
    return _spec([_entry(device, offer) for device in devices], offer.resource)


def _spec(entries: Iterable[Entry], resource: str) -> dict[str, object]:
    _, _, kind_class = resource.partition("/")
    return {
        "cdiVersion": _VERSION_WITH_DOTS if "." in kind_class else _VERSION,
        "kind": resource,
        "devices": list(entries),
    }


def _entry(device: Device, offer: Offer) -> Entry:
    return {"name": _name(device.id), "containerEdits": _edits(device, offer)}


def _edits(device: Device, offer: Offer) -> Entry:
    return edits(
        (offer.container_path.format(name=port.name, device=0, port=index), port, offer.permissions)
        for index, port in enumerate(device.ports)
    )


def edits(given: Iterable[tuple[str, Port, str]]) -> Entry:
    """What makes ports appear in a container: its path there, the port, cgroup permissions."""
    nodes, mounts = [], []
    for path, port, permissions in given:
        if port.number.is_pty:
            mode = "rw" if "w" in permissions else "ro"
            mounts.append({"hostPath": port.node, "containerPath": path, "options": ["bind", mode]})
        else:
            nodes.append(_node(port, path, permissions))
    made: Entry = {}
    if nodes:
        made["deviceNodes"] = nodes
    if mounts:
        made["mounts"] = mounts
    return made


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
