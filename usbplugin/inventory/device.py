"""What the inventory publishes: devices, snapshots of a resource, and what changed between two."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from usbplugin.discovery import Port
from usbplugin.inventory.grant import Grant, GrantedPort
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
    also_listed: tuple[str, ...] = ()
    """Listed IDs under which a pod holds it, and under which it is not offered any longer."""
    has_twin: bool = False
    """Whether another device has shown the same descriptors: its serial tells nobody from it."""
    has_moved: bool = False
    """Whether it is displaced because a container is known to have other numbers, and not because
    nobody knows what the container has."""

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

    @property
    def reason(self) -> str:
        """Why the device is as it is now; empty if it is not remembered any longer."""
        return self.device.reason if self.after is not None else ""


class DeviceState(msgspec.Struct, frozen=True, omit_defaults=True):
    """What has to be known of a device after a restart of the plugin, or of the node."""

    id: str
    resource: str
    ports: tuple[Port, ...]
    grants: tuple[Grant, ...] = ()
    absent_since: float | None = None
    """Seconds of CLOCK_MONOTONIC, which a restart of the plugin does not touch."""
    has_twin: bool = False
    """Whether another device has shown the same descriptors."""
    boot: str = ""
    """The boot of which ``absent_since`` is; empty in what version 0.1 wrote."""
    handed_over: dict[str, GrantedPort] = {}
    """By slot, what version 0.1 granted; never written any more."""


class Update(msgspec.Struct, frozen=True):
    """What a batch of facts brought about."""

    snapshots: tuple[Snapshot, ...] = ()
    """Of those resources whose devices changed, and no others."""
    changes: tuple[Change, ...] = ()
    to_save: tuple[DeviceState, ...] = ()
    """What has to be on disk anew."""

    def then(self, later: Update) -> Update:
        """This and what followed before anybody was told, as if it had been one."""
        snapshots = {
            snapshot.resource: snapshot for snapshot in (*self.snapshots, *later.snapshots)
        }
        changes = {change.device.id: change for change in self.changes}
        for change in later.changes:
            first = changes.get(change.device.id, change)
            changes[change.device.id] = Change(change.device, first.before, change.after)
        states = {state.id: state for state in (*self.to_save, *later.to_save)}
        return Update(tuple(snapshots.values()), tuple(changes.values()), tuple(states.values()))
