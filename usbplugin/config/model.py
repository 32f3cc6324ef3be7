"""The configuration as typed, frozen values: each attribute is a key of the file.

Nothing here reads a file, and no default depends on the machine. ``make docs`` derives the schema
and the reference in docs/configuration.md from these classes.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Annotated

import msgspec

from usbplugin.custody.offer import DEFAULT_CONTAINER_PATH, Offer
from usbplugin.custody.shares import MOST_SHARES
from usbplugin.discovery import IdentityMode, Unit
from usbplugin.discovery.port import DEFAULT_NODES
from usbplugin.inventory import HealthPolicy, ResourceRule, Selector

DEFAULT_RESOURCE = "usbplugin/serial"


Duration = Annotated[str, msgspec.Meta(pattern=r"^[0-9]+(\.[0-9]+)?(ms|s|m|h)$")]
"""A number and a unit: ``500ms``, ``30s``, ``10m``, ``1.5h``."""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class Registration(Enum):
    """How the kubelet comes to know the plugin."""

    KUBELET = "kubelet"
    """The plugin calls Register on kubelet.sock."""
    WATCHER = "watcher"
    """The kubelet's plugin watcher finds the plugin's socket in plugins_registry."""


class ResourceConfig(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", kw_only=True
):
    """One resource that pods can request."""

    name: str
    """What pods request, e.g. ``usbplugin/zigbee``."""
    selectors: tuple[Selector, ...] = ()
    """Alternatives; a port that matches one of them belongs here. None: every port."""
    unit: Unit = Unit.PORT
    """What one device is: a ``port``, or all ports of one ``usb-device`` (a modem)."""
    identity: IdentityMode = IdentityMode.AUTO
    """What device IDs hang on: ``serial``, ``location`` or ``auto``."""
    permissions: Annotated[str, msgspec.Meta(pattern="^(r|w|m|rw|rm|wm|rwm)$")] = "rw"
    """cgroup permissions of the container on the node: r (read), w (write), m (mknod)."""
    container_path: str = DEFAULT_CONTAINER_PATH
    """Path in the container; ``{name}`` is the kernel name, ``{device}`` and ``{port}`` count."""
    by_id_links: bool = False
    """Whether the node also appears under its ``/dev/serial/by-id`` name, unless another of the
    container's devices of this resource claims the same one."""
    pre_start: bool = True
    """Whether each start of a container is checked, and waits while its device is away."""
    shares: Annotated[int, msgspec.Meta(ge=1, le=MOST_SHARES)] = 1
    """How many containers may have the same device at the same time."""
    cdi: bool | None = None
    """Whether devices are handed over by CDI; if not given, what ``cdi`` at the top says."""

    def rule(self) -> ResourceRule:
        """What the inventory needs of it."""
        return ResourceRule(self.name, self.selectors, self.identity, self.unit, self.pre_start)


class Flapping(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", kw_only=True
):
    """When a device that comes and goes is no longer handed out."""

    times: Annotated[int, msgspec.Meta(ge=2, le=60)] = 5
    """So many departures..."""
    window: Duration = "60s"
    """...within this time make it flapping..."""
    quiet: Duration = "30s"
    """...until it has neither come nor gone for so long."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", kw_only=True):
    """The whole configuration; with no file at all, every USB serial port is usbplugin/serial."""

    nodes: tuple[str, ...] = DEFAULT_NODES
    """Device nodes that the udev source looks at, as globs. Read at start only."""
    resources: tuple[ResourceConfig, ...] = (ResourceConfig(name=DEFAULT_RESOURCE),)
    """In order: a device belongs to the first resource that matches it."""
    retention: Duration = "1h"
    """For how long an unplugged device that no pod holds stays listed as Unhealthy."""
    flapping: Flapping = Flapping()
    """When a device that comes and goes is no longer handed out."""
    registration: Registration = Registration.KUBELET
    """``kubelet``: call Register. ``watcher``: be found by the kubelet's plugin watcher."""
    cdi: bool = False
    """Whether devices are handed over by CDI names in place of device nodes."""
    node_features: bool = False
    """Whether node labels are offered to Node Feature Discovery."""

    def uses_cdi(self, resource: ResourceConfig) -> bool:
        """Whether containers are given a resource's devices by CDI."""
        return self.cdi if resource.cdi is None else resource.cdi

    def rules(self) -> list[ResourceRule]:
        """What the inventory needs of the resources."""
        return [resource.rule() for resource in self.resources]

    def offers(self) -> list[Offer]:
        """What the kubelet side needs of the resources."""
        return [
            Offer(
                resource.name,
                resource.permissions,
                resource.container_path,
                resource.by_id_links,
                resource.pre_start,
                resource.shares,
                cdi=self.uses_cdi(resource),
            )
            for resource in self.resources
        ]

    def health_policy(self) -> HealthPolicy:
        """How long things are remembered and waited for."""
        return HealthPolicy(
            retention=seconds(self.retention),
            flaps=self.flapping.times,
            flap_window=seconds(self.flapping.window),
            flap_quiet=seconds(self.flapping.quiet),
        )

    def warnings(self) -> list[str]:
        """What is valid but hardly meant; a line each."""
        catching_all: str | None = None
        found = []
        for index, resource in enumerate(self.resources):
            if catching_all is not None:
                found.append(
                    f"resources[{index}]: {resource.name} never gets a device, for"
                    f" {catching_all} before it matches every port: move that one to the end"
                )
            elif not resource.selectors or any(s.is_empty for s in resource.selectors):
                catching_all = resource.name
            if self.uses_cdi(resource) and "{name}" in resource.container_path:
                found.append(
                    f"resources[{index}]: with cdi and {{name}} in containerPath, after a replug"
                    " the node in the container has another name than its environment says: write"
                    " a path without {name}, such as /dev/modem{port}"
                )
        return found


def seconds(duration: Duration) -> float:
    """A duration's seconds."""
    number, unit = re.findall(r"[0-9.]+|[a-z]+", duration)
    return float(number) * _UNITS[unit]
