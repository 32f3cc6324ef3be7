"""Whether a container may start: what the kubelet replays must lead to the device it was given.

Everything in here reads sysfs, device nodes and files of others, and may hang on a dying device:
never in the event loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from usbplugin.custody.witness import number_at
from usbplugin.discovery.fresh import is_unchanged

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from usbplugin.custody.witness import NumberAt
    from usbplugin.discovery import Port
    from usbplugin.inventory import Device


class Eyes:
    """Looks at nodes and ports as they are at this moment."""

    def __init__(self, number_at: NumberAt = number_at) -> None:
        """Use ``number_at`` to see where a path leads."""
        self.number_at = number_at

    def is_unchanged(self, port: Port) -> bool:
        """Whether the same device still has the same number; False if unsure."""
        return is_unchanged(port)


def grant_problem(devices: Iterable[Device], eyes: Eyes) -> str:
    """Why these devices must not be granted now; empty if they may."""
    for device in devices:
        for port in device.ports:
            if not eyes.is_unchanged(port):
                return _has_changed(device, port)
    return ""


def start_problem(device: Device, paths: Mapping[str, str], eyes: Eyes) -> str:
    """Why a container with these paths must not start now; empty if it may.

    Args:
        device: What the container was given.
        paths: By slot, the host path that the kubelet replays; empty if it replays a CDI name.
        eyes: Looks.
    """
    for port in device.ports:
        if port.slot not in paths:
            return (
                f"the container was not given {port.slot} of {device.id}, which has come since:"
                " delete the pod"
            )
        if path := paths[port.slot]:
            found = eyes.number_at(path)
            if found is None:
                return (
                    f"{path}, which the container was given for {device.id}, leads nowhere, while"
                    f" the device is at {port.node}: delete the pod"
                )
            if found != port.number:
                return (
                    f"{path}, which the container was given for {device.id}, leads to device"
                    f" {found}, while {device.id} is {port.number}: delete the pod"
                )
        if not eyes.is_unchanged(port):
            return _has_changed(device, port)
    return ""


def _has_changed(device: Device, port: Port) -> str:
    return (
        f"{port.node} has just stopped being {device.id}; it will be usable again once that"
        " device is found again"
    )
