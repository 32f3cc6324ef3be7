"""The embedded kubelet's checkpoint: what it has allocated, in a file of a kubelet's form.

The form is that of Kubernetes' pkg/kubelet/cm/devicemanager/checkpoint/checkpoint.go, as version
1.36 writes it. This module only writes: the embedded kubelet keeps all it needs in memory.
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from usbplugin.kubelet.checkpoint import FILE_NAME

if TYPE_CHECKING:
    from collections.abc import Iterable

    from usbplugin.virtual.containers import Container
    from usbplugin.virtual.plugin_client import Resource


class CheckpointFile:
    """The file in the device plugin directory ``directory``."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE_NAME

    def write(self, containers: Iterable[Container], resources: Iterable[Resource]) -> None:
        """Replace the file; with nothing to note and no file there, none is made.

        Raises:
            OSError: it cannot be written; the one before is still there.
        """
        # A Go slice without elements is written as null.
        entries = [_entry(container) for container in containers] or None
        if entries is None and not self.path.exists():
            return
        registered = {resource.name: sorted(resource.healthy) for resource in resources}
        data = {"PodDeviceEntries": entries, "RegisteredDevices": registered}
        # A kubelet's checksum is that of a dump only Go can make; nobody else verifies it.
        checksum = zlib.crc32(json.dumps(data).encode())
        content = json.dumps({"Data": data, "Checksum": checksum}, separators=(",", ":"))
        _replace(self.path, content.encode())


def _entry(container: Container) -> dict[str, object]:
    return {
        "PodUID": container.pod_uid,
        "ContainerName": container.holder.container,
        "ResourceName": container.holder.resource,
        "DeviceIDs": {str(node): ids for node, ids in container.device_ids_by_node.items()},
        "AllocResp": base64.b64encode(container.encoded_answer).decode(),
    }


def _replace(path: Path, content: bytes) -> None:
    # As a kubelet does, but without its fsync: nothing here has to outlast a power failure.
    descriptor, temporary = tempfile.mkstemp(prefix=".", dir=path.parent)  # of mode 0600
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 -- takes no descriptor
            file.write(content)
        os.replace(temporary, path)  # noqa: PTH105 -- takes no str
    except BaseException:
        Path(temporary).unlink()
        raise
