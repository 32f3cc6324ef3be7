"""What the inventory publishes: devices, snapshots of a resource, and what changed between two."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usbplugin.discovery import Port
    from usbplugin.inventory.health import Health


@dataclass(frozen=True, slots=True)
class Device:
    """What is handed out: one port under a stable ID."""

    id: str
    resource: str
    health: Health
    reason: str
    """Why it is not ready, for people; empty if it is."""
    ports: tuple[Port, ...]
    """As last seen: an unplugged device still tells what it was."""
    since: float
    """When ``health`` became what it is; seconds of the inventory's clock."""


@dataclass(frozen=True)
class Snapshot:
    """All devices of one resource at one moment, in the order in which they were first seen."""

    resource: str
    devices: tuple[Device, ...] = ()

    @cached_property
    def by_id(self) -> Mapping[str, Device]:
        """The devices by their ID."""
        return MappingProxyType({device.id: device for device in self.devices})


@dataclass(frozen=True, slots=True)
class Change:
    """One device came to be, changed its health, or was forgotten."""

    device: Device
    before: Health | None
    """None if the device is new."""
    after: Health | None
    """None if the device is no longer remembered."""


@dataclass(frozen=True, slots=True)
class Update:
    """What a batch of facts brought about."""

    snapshots: tuple[Snapshot, ...] = ()
    """Of those resources whose devices changed, and no others."""
    changes: tuple[Change, ...] = ()
