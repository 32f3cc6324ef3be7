"""Reads metrics from devices, sessions and sources at the moment Prometheus asks.

So they cost nothing while nobody does, and leave no stale series behind.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from usbplugin.deviceplugin import State
from usbplugin.inventory import Health
from usbplugin.status.health import learns_by
from usbplugin.telemetry import catalogue
from usbplugin.telemetry.instruments import Labels, Readings

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from usbplugin.deviceplugin import Session
    from usbplugin.discovery import Source
    from usbplugin.foundation.supervision import Part
    from usbplugin.inventory import Device

_HEALTHS = ("healthy", "unhealthy")


def of_devices(devices: Collection[Device], resources: Iterable[str]) -> list[Readings]:
    """How many devices are in each state, what they are, and who holds them."""
    # While a new configuration is being applied, devices may be a step ahead of the sessions.
    resources = dict.fromkeys((*resources, *(device.resource for device in devices)))
    states: dict[Labels, float] = {
        (name, _health(health), health.value): 0 for name in resources for health in Health
    }
    held: dict[Labels, float] = {(name, health): 0 for name in resources for health in _HEALTHS}
    for device in devices:
        states[device.resource, _health(device.health), device.health.value] += 1
        held[device.resource, _health(device.health)] += bool(device.holders)
    keys = [((device.resource, device.id), device) for device in devices]
    return [
        Readings(catalogue.DEVICES, states),
        Readings(catalogue.DEVICES_HELD, held),
        Readings(catalogue.DEVICE_INFO, {_info(device): 1 for device in devices}),
        Readings(
            catalogue.DEVICE_READY, {key: d.health.is_usable for key, d in keys if _is_due(d)}
        ),
        Readings(catalogue.DEVICE_HOLDERS, {key: len(d.holders) for key, d in keys}),
    ]


def of_sources(
    sources: Iterable[Source],
    ports: Iterable[tuple[str, str]],
    listed_at: Mapping[str, float],
    parts: Mapping[str, Part],
) -> list[Readings]:
    """Whether sources are running, how they learn about changes, and what they see."""
    sources = tuple(sources)
    seen = Counter(source for source, _ in ports)
    began = time.time() - time.monotonic()
    running = {part.name for part in parts.values() if part.running}
    return [
        Readings(catalogue.PORTS, {(s.name,): seen[s.name] for s in sources}),
        Readings(catalogue.SOURCE_UP, {(s.name,): f"source {s.name}" in running for s in sources}),
        Readings(catalogue.SOURCE_INFO, {(s.name, learns_by(s)): 1 for s in sources}),
        Readings(
            catalogue.SOURCE_LISTED,
            {(s.name,): began + listed_at[s.name] if s.name in listed_at else 0 for s in sources},
        ),
        Readings(catalogue.PART_FAILURES, {(p.name,): p.failures for p in parts.values()}),
    ]


def of_sessions(sessions: Iterable[Session]) -> list[Readings]:
    """Whether sessions are registered, what streams they have, and what those leave out."""
    sessions = tuple(sessions)
    known = (State.REGISTERED, State.STREAMING)
    return [
        Readings(catalogue.REGISTERED, {(s.resource,): s.state in known for s in sessions}),
        Readings(
            catalogue.STANDING_BY, {(s.resource,): s.state is State.STANDING_BY for s in sessions}
        ),
        Readings(catalogue.STREAMS, {(s.resource,): s.streams for s in sessions}),
        Readings(
            catalogue.DEVICES_LEFT_OUT,
            {(s.resource,): s.plugin.left_out if s.plugin else 0 for s in sessions},
        ),
    ]


def _is_due(device: Device) -> bool:
    """Whether it ought to be ready: one that is not offered any more is as it should be."""
    return device.health is not Health.RETIRED


def _health(health: Health) -> str:
    return _HEALTHS[not health.is_usable]


def _info(device: Device) -> tuple[str, ...]:
    port = device.ports[0] if device.ports else None
    usb = port.usb if port else None
    about = (
        (usb.vendor_id, usb.product_id, usb.serial, usb.manufacturer, usb.product)
        if usb
        else ("",) * 5
    )
    driver = port.driver if port else ""
    location = usb.location if usb else ""
    return (device.resource, device.id, ",".join(device.nodes), *about, driver, location)
