"""How devices appear in a container: paths and environment, for every front. Pure."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from usbplugin.discovery import Port
    from usbplugin.inventory import Device

# The characters that udev leaves in a name (udev(7), SYMLINK); its last part comes from the device.
_BY_ID_LINK = re.compile(r"/dev/serial/by-id/[A-Za-z0-9#+.:=@_\\-]+")


class Placement(NamedTuple):
    """One path in a container, and what it leads to."""

    path: str
    device: Device
    port: Port
    is_main: bool
    """Whether it is the path that its environment names."""


class Clash(NamedTuple):
    """Two ports that would have one path."""

    path: str
    first: Port
    second: Port


def placements(
    devices: Sequence[Device], container_path: str, *, by_id_links: bool
) -> list[Placement]:
    """Where a container finds the ports of these devices.

    Args:
        devices: In the order in which they are counted.
        container_path: With ``{name}``, ``{device}`` and ``{port}``, as in ``Offer``.
        by_id_links: Whether their by-id names lead to them too.
    """
    by_id = _by_id_paths(devices) if by_id_links else {}
    found = []
    for position, device in enumerate(devices):
        for index, port in enumerate(device.ports):
            path = container_path.format(name=port.name, device=position, port=index)
            found.append(Placement(path, device, port, is_main=True))
            found += [Placement(link, device, port, is_main=False) for link in by_id.get(port, ())]
    return found


def clash(placements: Iterable[Placement]) -> Clash | None:
    """The first two ports that would have one path: the last of them would win, silently."""
    taken: dict[str, Port] = {}
    for one in placements:
        if (other := taken.setdefault(one.path, one.port)) is not one.port:
            return Clash(one.path, other, one.port)
    return None


def variable_prefix(name: str) -> str:
    """What the names of a container's environment variables begin with."""
    return re.sub(r"[^A-Z0-9]", "_", name.upper())


def environment(
    prefix: str, devices: Iterable[Device], placements: Iterable[Placement]
) -> dict[str, str]:
    """What a container is told of its devices."""
    listed = list(devices)
    return {
        f"{prefix}_DEVICES": ",".join(one.path for one in placements if one.is_main),
        f"{prefix}_IDS": ",".join(device.id for device in listed),
        f"{prefix}_INFO": json.dumps([_info(device) for device in listed]),
    }


def _by_id_paths(devices: Sequence[Device]) -> dict[Port, list[str]]:
    """The by-id names of each port, but for those that several claim: whose they are is chance."""
    ports = [port for device in devices for port in device.ports]
    claims = Counter(link for port in ports for link in port.links if _BY_ID_LINK.fullmatch(link))
    return {port: [link for link in port.links if claims[link] == 1] for port in ports}


def _info(device: Device) -> dict[str, object]:
    usb = device.ports[0].usb
    info: dict[str, object] = {"id": device.id}
    if usb is not None:
        info |= {
            "vendor": usb.vendor_id,
            "product": usb.product_id,
            "serial": usb.serial,
            "manufacturer": usb.manufacturer,
            "productName": usb.product,
            "interface": usb.interface,
            "location": usb.location,
        }
    return info
