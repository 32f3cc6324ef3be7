"""The configuration as typed, frozen values: each attribute is a key in the file.

Nothing here reads a file, and no default depends on the machine. ``make docs`` generates the schema
and the reference in docs/configuration.md from these classes.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Annotated

import msgspec

from usbplugin.custody.offer import DEFAULT_CONTAINER_PATH, Offer
from usbplugin.discovery import IdentityMode, Unit
from usbplugin.discovery.port import DEFAULT_NODES
from usbplugin.inventory import HealthPolicy, ResourceRule, Selector
from usbplugin.inventory.shares import MOST_SHARES

DEFAULT_RESOURCE = "usbplugin/serial"


Duration = Annotated[str, msgspec.Meta(pattern=r"^[0-9]+(\.[0-9]+)?(ms|s|m|h)$")]
"""A number and a unit: ``500ms``, ``30s``, ``10m``, ``1.5h``."""

DurationOrNever = Annotated[str, msgspec.Meta(pattern=r"^([0-9]+(\.[0-9]+)?(ms|s|m|h)|never)$")]
"""A duration, or ``never``."""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class Registration(Enum):
    """How the plugin registers with the kubelet."""

    KUBELET = "kubelet"
    """The plugin calls Register on kubelet.sock."""
    WATCHER = "watcher"
    """The kubelet's plugin watcher finds the plugin's socket in plugins_registry."""


class Front(Enum):
    """Through what a resource's devices are given to pods."""

    DEVICE_PLUGIN = "device-plugin"
    """The kubelet's device plugin API: pods name a resource in their limits."""
    DRA = "dra"
    """Dynamic Resource Allocation: pods have ResourceClaims. Needs Kubernetes 1.34 or later."""


class ResourceConfig(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", kw_only=True
):
    """One resource that pods can request."""

    name: str
    """What pods request, e.g. ``usbplugin/zigbee``."""
    selectors: tuple[Selector, ...] = ()
    """Alternatives: a port belongs here if it matches any of them, or if there are none."""
    unit: Unit = Unit.PORT
    """What one device is: a ``port``, or all ports of one ``usb-device`` (a modem)."""
    identity: IdentityMode = IdentityMode.AUTO
    """What device IDs are based on: ``serial``, ``location`` or ``auto``."""
    permissions: Annotated[str, msgspec.Meta(pattern="^(r|w|m|rw|rm|wm|rwm)$")] = "rw"
    """The container's cgroup permissions for the node: r (read), w (write), m (mknod)."""
    container_path: str = DEFAULT_CONTAINER_PATH
    """The node's path in the container. ``{name}`` is its kernel name, ``{device}`` and ``{port}``
    are numbers from 0."""
    by_id_links: bool = False
    """Whether the node also appears under its ``/dev/serial/by-id`` name, unless another of the
    container's devices of this resource claims that name too."""
    pre_start: bool = True
    """Whether each container start is checked, and waits while the device is unplugged."""
    shares: Annotated[int, msgspec.Meta(ge=1, le=MOST_SHARES)] = 1
    """How many containers may have the same device at once."""
    settle: Duration = "0s"
    """How long a new device has to stay before it is listed: a bootloader that shows itself for
    some seconds never is. One that is listed comes back at once."""
    cdi: bool | None = None
    """Whether devices are granted by CDI name; if not given, the top-level ``cdi`` applies. With
    ``front: dra`` they always are."""
    front: Front | None = None
    """``device-plugin`` or ``dra``; if not given, the top-level ``front`` applies."""

    def rule(self, front: Front = Front.DEVICE_PLUGIN) -> ResourceRule:
        """The part the inventory needs, if devices are given out through ``front``."""
        by_claim = front is Front.DRA
        return ResourceRule(
            self.name,
            self.selectors,
            self.identity,
            self.unit,
            # Nobody asks before a container with a claim is started; its spec holds it back.
            self.pre_start or by_claim,
            self.shares,
            by_claim=by_claim,
            settle=seconds(self.settle),
        )


class Flapping(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", kw_only=True
):
    """When a device that keeps coming and going is no longer offered."""

    times: Annotated[int, msgspec.Meta(ge=2, le=60)] = 5
    """A device that is unplugged this many times..."""
    window: Duration = "60s"
    """...within this time is flapping..."""
    quiet: Duration = "30s"
    """...until it has neither come nor gone for this long."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", kw_only=True):
    """The whole configuration; without a file, all USB serial ports are usbplugin/serial."""

    nodes: tuple[str, ...] = DEFAULT_NODES
    """Globs of the device nodes the udev source looks at. Read at startup only."""
    resources: tuple[ResourceConfig, ...] = (ResourceConfig(name=DEFAULT_RESOURCE),)
    """In order of precedence: a device belongs to the first resource that matches it."""
    retention: Duration = "1h"
    """How long an unplugged device that no pod holds stays listed as Unhealthy."""
    flapping: Flapping = Flapping()
    """When a device that keeps coming and going is no longer offered."""
    registration: Registration = Registration.KUBELET
    """``kubelet``: the plugin calls Register. ``watcher``: the plugin watcher finds the plugin."""
    cdi: bool = False
    """Whether devices are granted by CDI name rather than as device nodes."""
    front: Front = Front.DEVICE_PLUGIN
    """Through what devices are given to pods: ``device-plugin`` or ``dra``. Overridden as a whole
    by ``--front``."""
    evict_after: DurationOrNever = "5s"
    """With ``front: dra``: how long an unplugged device only keeps new pods away, before pods that
    hold it are evicted; or ``never``."""
    node_features: bool = False
    """Whether to publish node labels through Node Feature Discovery."""

    def uses_cdi(self, resource: ResourceConfig) -> bool:
        """Whether a resource's devices are granted by CDI name through the device plugin."""
        if self.front_of(resource) is Front.DRA:
            return False
        return self.cdi if resource.cdi is None else resource.cdi

    def front_of(self, resource: ResourceConfig) -> Front:
        """Through what a resource's devices are given to pods."""
        return resource.front or self.front

    def with_front(self, front: Front) -> Config:
        """The same, with all devices given to pods through ``front``."""
        resources = tuple(msgspec.structs.replace(r, front=None) for r in self.resources)
        return msgspec.structs.replace(self, front=front, resources=resources)

    @property
    def uses_dra(self) -> bool:
        """Whether any resource's devices are given to pods by claims."""
        return any(self.front_of(resource) is Front.DRA for resource in self.resources)

    @property
    def evicts_after(self) -> float | None:
        """Seconds from an unplugging until pods are evicted; None if they never are."""
        return None if self.evict_after == "never" else seconds(self.evict_after)

    def rules(self) -> list[ResourceRule]:
        """The part of each resource the inventory needs."""
        return [resource.rule(self.front_of(resource)) for resource in self.resources]

    def offers(self) -> list[Offer]:
        """The terms on which each resource's devices are offered."""
        return [
            Offer(
                resource.name,
                resource.permissions,
                resource.container_path,
                resource.by_id_links,
                resource.pre_start,
                resource.shares,
                cdi=self.uses_cdi(resource),
                by_claim=self.front_of(resource) is Front.DRA,
            )
            for resource in self.resources
        ]

    def health_policy(self) -> HealthPolicy:
        """How long unplugged devices are remembered, and what counts as flapping."""
        return HealthPolicy(
            retention=seconds(self.retention),
            flaps=self.flapping.times,
            flap_window=seconds(self.flapping.window),
            flap_quiet=seconds(self.flapping.quiet),
        )


def seconds(duration: Duration) -> float:
    """A duration in seconds."""
    number, unit = re.findall(r"[0-9.]+|[a-z]+", duration)
    return float(number) * _UNITS[unit]
