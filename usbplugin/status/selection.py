"""What each resource selects of the ports that are here; a resource of nothing included. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from usbplugin.inventory import first_match

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from usbplugin.discovery import Port
    from usbplugin.inventory import Device, ResourceRule


class Selection(NamedTuple):
    """What one resource selects."""

    resource: str
    devices: tuple[Device, ...]
    """Its devices, those included that are listed and away."""
    waiting: tuple[Port, ...]
    """Ports that belong to it, and to none of its devices, or not yet."""
    taken: dict[str, tuple[Port, ...]]
    """Ports that it matches, too, by the name of the earlier resource that takes them."""


def selections(
    devices: Iterable[Device], ports: Collection[Port], rules: Sequence[ResourceRule]
) -> list[Selection]:
    """One for each of ``rules``, in their order.

    Args:
        devices: All listed devices.
        ports: All ports present.
        rules: The resources; the first match wins.
    """
    devices = list(devices)
    owners = [(port, first_match(rules, port)) for port in ports]
    return [_selection(rule, devices, owners) for rule in rules]


def _selection(
    rule: ResourceRule,
    devices: Iterable[Device],
    owners: Iterable[tuple[Port, ResourceRule | None]],
) -> Selection:
    own = tuple(device for device in devices if device.resource == rule.name)
    listed = {port.node for device in own for port in device.ports}
    waiting = []
    taken: dict[str, tuple[Port, ...]] = {}
    for port, owner in owners:
        if owner is rule and port.node not in listed:
            waiting.append(port)
        elif owner is not None and owner is not rule and rule.matches(port):
            taken[owner.name] = (*taken.get(owner.name, ()), port)
    return Selection(rule.name, own, tuple(waiting), taken)
