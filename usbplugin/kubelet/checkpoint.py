"""Reads which answers to Allocate the kubelet keeps, to replay them at each start of a container.

The kubelet keeps them in a file of its own. Nobody has promised us its form, which follows
Kubernetes' pkg/kubelet/cm/devicemanager/checkpoint/checkpoint.go. So everything in it is checked,
nothing is ever written to it, and whoever asks must be able to go on without it.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec
from google.protobuf.message import DecodeError

from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.errors import KubeletError

if TYPE_CHECKING:
    from pathlib import Path

FILE_NAME = "kubelet_internal_checkpoint"
"""What the file is called in the kubelet's device plugin directory."""

# Answers have a few KiB, so these are many times what a node needs; and our memory is limited.
_LARGEST_FILE = 4 << 20
_MOST_ENTRIES = 10_000
_LONGEST_NAME = 4095  # PATH_MAX, without the final NUL (path_resolution(7))
_LONGEST_VALUE = 128 << 10  # MAX_ARG_STRLEN: no process is started with a longer one (execve(2))

_NO_JSON = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

_Type = TypeVar("_Type")


class Replay(msgspec.Struct, frozen=True):
    """What a container is given for one resource, at each of its starts, without asking us again.

    One that is not legible says only whom it concerns, as far as that can be told: a text is empty,
    and there are no IDs, if they cannot. It does not mean that nothing was allocated.
    """

    resource: str
    device_ids: tuple[str, ...]
    """As the kubelet was told of them, sorted."""
    pod_uid: str
    container: str
    host_paths: Mapping[str, str]
    """The path on the host of each device node and each mount, by its path in the container."""
    cdi_devices: tuple[str, ...]
    environment: Mapping[str, str]
    is_legible: bool = True
    """Whether all of it has the form that we know."""


class _Data(msgspec.Struct):
    # Raw, so that one entry that makes no sense does not hide the others. A Go slice that was never
    # filled is written as null.
    entries: list[msgspec.Raw] | None = msgspec.field(name="PodDeviceEntries")


class _File(msgspec.Struct):
    data: _Data = msgspec.field(name="Data")
    # The kubelet itself verifies the checksum, which is that of a dump only Go can make.


class _Answer(NamedTuple):
    host_paths: Mapping[str, str]
    cdi_devices: tuple[str, ...]
    environment: Mapping[str, str]


_NOTHING = _Answer({}, (), {})


class Checkpoint:
    """The kubelet's notes about what it has allocated.

    An answer is noted after Allocate has returned, and before PreStartContainer is called. What is
    noted of a pod that has gone stays until the kubelet has both noticed and written the file anew,
    so that several entries may name one device. The file outlives a reboot.
    """

    def __init__(self, path: Path) -> None:
        """Use the file ``path``, which need not exist yet."""
        self._path = path

    @property
    def is_there(self) -> bool:
        """Whether we can see the file."""
        return os.path.exists(self._path)  # noqa: PTH110 -- a Path's raises without permission

    def read(self) -> tuple[Replay, ...]:
        """All answers that are noted, in the file's order. Blocks, for a millisecond or so.

        Raises:
            KubeletError: the file is missing, cannot be read, is too large, or has another form.
        """
        content = self._content()
        try:
            entries = msgspec.json.decode(content, type=_File).data.entries or []
        except _NO_JSON as error:
            raise self._unknown(f"it has another form than expected ({error})") from error
        if len(entries) > _MOST_ENTRIES:
            raise self._unknown(f"it has {len(entries)} entries, more than {_MOST_ENTRIES}")
        return tuple(_replay(entry) for entry in entries)

    def _content(self) -> bytes:
        try:
            with open(self._path, "rb", opener=_at_once) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise self._unknown("it is not a regular file")
                content = file.read(_LARGEST_FILE + 1)
        except OSError as error:
            raise self._unknown(str(error.strerror)) from error
        if len(content) > _LARGEST_FILE:
            raise self._unknown(f"it is larger than {_LARGEST_FILE >> 20} MiB")
        return content

    def _unknown(self, problem: str) -> KubeletError:
        return KubeletError(
            f"cannot read {self._path}: {problem}; what the kubelet will replay is unknown"
        )


def _at_once(path: str, flags: int) -> int:
    """Open a file; a FIFO in its place would have us wait for somebody who writes to it."""
    return os.open(path, flags | os.O_NONBLOCK)


def _replay(entry: msgspec.Raw) -> Replay:
    values = _decoded(entry, dict[str, msgspec.Raw]) or {}
    resource = _name(values.get("ResourceName"))
    device_ids = _device_ids(values.get("DeviceIDs"))
    pod_uid = _name(values.get("PodUID"))
    container = _name(values.get("ContainerName"))
    answer = _answer(values.get("AllocResp"))
    is_legible = all((resource, device_ids, pod_uid, container)) and answer is not None
    shown = answer if answer is not None and is_legible else _NOTHING
    return Replay(resource, device_ids, pod_uid, container, *shown, is_legible=is_legible)


def _decoded(value: msgspec.Raw | None, kind: type[_Type]) -> _Type | None:
    """A value of that type; None if it is another, or is missing."""
    if value is None:
        return None
    try:
        return msgspec.json.decode(value, type=kind)
    except _NO_JSON:
        return None


def _name(value: msgspec.Raw | None) -> str:
    """A name; empty if it is none."""
    name = _decoded(value, str)
    return name if name and _is_name(name) else ""


def _device_ids(value: msgspec.Raw | None) -> tuple[str, ...]:
    """All IDs, without the NUMA nodes that they are listed by; none if any of them is no ID."""
    # Kubelets before 1.20 wrote a plain list (checkpointv1.go).
    by_node = _decoded(value, dict[str, list[str]])
    lists = by_node.values() if by_node else [_decoded(value, list[str]) or []]
    # A device that is near several NUMA nodes is listed by each of them.
    device_ids = {device_id for ids in lists for device_id in ids}
    return tuple(sorted(device_ids)) if all(map(_is_name, device_ids)) else ()


def _answer(value: msgspec.Raw | None) -> _Answer | None:
    """What the plugin answered; None if it cannot be told."""
    encoded = _decoded(value, bytes)
    if encoded is None:
        return None
    try:
        message = v1beta1.ContainerAllocateResponse.FromString(encoded)
    except DecodeError:
        return None
    if encoded and not message.ListFields():
        return None  # most bytes pass for fields of a later version
    paths = {(device.container_path, device.host_path) for device in message.devices}
    paths |= {(mount.container_path, mount.host_path) for mount in message.mounts}
    answer = _Answer(
        dict(paths), tuple(device.name for device in message.cdi_devices), dict(message.envs)
    )
    if len(answer.host_paths) < len(paths):
        return None  # which of two the container gets is up to the kubelet and the runtime
    names = (*itertools.chain(*paths), *answer.cdi_devices, *answer.environment)
    values = answer.environment.values()
    if not all(map(_is_name, names)) or not all(_is_plain(v, _LONGEST_VALUE) for v in values):
        return None
    return answer


def _is_name(text: str) -> bool:
    """Whether it can be a name or a path."""
    return text != "" and _is_plain(text, _LONGEST_NAME)


def _is_plain(text: str, longest: int) -> bool:
    return len(text) <= longest and text.isprintable()
