"""Whether a container may start: what the kubelet replays must lead to the device it was given."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from usbplugin.discovery import DeviceNumber
from usbplugin.discovery.fresh import is_unchanged

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usbplugin.inventory import Device


def start_problem(device: Device, paths: Mapping[str, str]) -> str:
    """Why a container with these paths must not start now; empty if it may.

    Args:
        device: What the container was given.
        paths: By slot, the host path that the kubelet replays.
    """
    for port in device.ports:
        path = paths[port.slot]
        try:
            found = DeviceNumber.of(os.stat(path).st_rdev)  # noqa: PTH116 -- a str
        except OSError as error:
            return (
                f"{path}, which the container was given for {device.id}, leads nowhere"
                f" ({error.strerror}), while the device is at {port.node}: delete the pod"
            )
        if found != port.number:
            return (
                f"{path}, which the container was given for {device.id}, leads to device"
                f" {found}, while {device.id} is {port.number}: delete the pod"
            )
        if not is_unchanged(port):
            return (
                f"{port.node} has just stopped being {device.id}; the container will start"
                " once that device is found again"
            )
    return ""
