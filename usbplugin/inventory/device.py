"""What the inventory publishes: devices, snapshots of a resource, and what changed between two."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from usbplugin.discovery import DeviceNumber, Port
from usbplugin.inventory.health import Health

if TYPE_CHECKING:
    from collections.abc import Mapping


class Device(msgspec.Struct, frozen=True):
    """What is handed out: one port, or all ports of one USB device, under a stable ID."""

    id: str
    resource: str
    health: Health
    reason: str
    """Why it is not ready, for people; empty if it is."""
    ports: tuple[Port, ...]
    """In interface order, as last seen: an unplugged device still tells what it was. Empty for
    a device that is known only because somebody holds it."""
    since: float
    """When ``health`` became what it is; seconds of the inventory's clock."""
    holders: tuple[str, ...] = ()
    """Who holds it, as ``namespace/pod/container``."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """The device nodes of its ports."""
        return tuple(port.node for port in self.ports)


@dataclass(frozen=True)
class Snapshot:
    """All devices of one resource at one moment, in the order in which they were first seen."""

    resource: str
    devices: tuple[Device, ...] = ()

    @cached_property
    def by_id(self) -> Mapping[str, Device]:
        """The devices by their ID."""
        return MappingProxyType({device.id: device for device in self.devices})


class Change(msgspec.Struct, frozen=True):
    """One device came to be, changed, or was forgotten."""

    device: Device
    before: Health | None
    """None if the device is new."""
    after: Health | None
    """None if the device is no longer remembered."""


class GrantedPort(msgspec.Struct, frozen=True):
    """What a container was given for one port."""

    number: DeviceNumber | None
    """None if no container runs with it: one that asked to be started has ended before."""
    path: str
    """Path on the host that the kubelet replays whenever the container is restarted."""


class DeviceState(msgspec.Struct, frozen=True):
    """What has to be known of a device after a restart of the plugin."""

    id: str
    resource: str
    ports: tuple[Port, ...]
    granted: dict[str, GrantedPort] = msgspec.field(name="handed_over", default_factory=dict)
    """By slot. Version 0.1 wrote it under the name that it has on disk still."""
    absent_since: float | None = None
    """Seconds of CLOCK_MONOTONIC, which a restart of the plugin does not touch."""
    has_twin: bool = False
    """Whether another device has shown the same descriptors."""


class Update(msgspec.Struct, frozen=True):
    """What a batch of facts brought about."""

    snapshots: tuple[Snapshot, ...] = ()
    """Of those resources whose devices changed, and no others."""
    changes: tuple[Change, ...] = ()
    to_save: tuple[DeviceState, ...] = ()
    """What has to be on disk anew."""


@dataclass(frozen=True, slots=True)
class HeldDevice:
    """Somebody holds a device."""

    resource: str
    device_id: str
    holder: str
    """``namespace/pod/container``."""
