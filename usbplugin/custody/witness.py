"""From what the kubelet will replay, by its checkpoint, to what containers were granted."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from usbplugin.discovery import DeviceNumber
from usbplugin.discovery.identity import slot_of
from usbplugin.inventory import Grant, GrantedPort
from usbplugin.inventory.shares import device_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from usbplugin.inventory import GrantKey
    from usbplugin.kubelet import Replay

    NumberAt = Callable[[str], DeviceNumber | None]
    """The number of the device that a path leads to; None if it leads to none."""


def number_at(path: str) -> DeviceNumber | None:
    """The number of the device that a path leads to; None if it leads to none. May hang."""
    try:
        return DeviceNumber.of(os.stat(path).st_rdev)  # noqa: PTH116 -- a str
    except OSError:
        return None


def grants_of(replays: Iterable[Replay], number_at: NumberAt = number_at) -> tuple[Grant, ...]:
    """What containers were granted of our devices, as far as the kubelet's notes tell.

    What a container's answer says of a device must be beyond doubt: a device whose paths cannot be
    told from another one's is left out, and so is one of which two notes say different things.

    Args:
        replays: The notes.
        number_at: Tells what a path leads to now. With which numbers a container runs, nobody has
            noted: these are the best guess, and where they are another device's, the truth.
    """
    found: dict[GrantKey, Grant | None] = {}
    for replay in replays:
        for grant in _grants(replay, number_at):
            known = found.setdefault(grant.key, grant)
            if known is not None and _paths(known) != _paths(grant):
                found[grant.key] = None
    return tuple(grant for grant in found.values() if grant is not None)


def _grants(replay: Replay, number_at: NumberAt) -> Iterable[Grant]:
    if not replay.is_legible:
        return
    by_device = _paths_by_device(replay)
    for listed_id in replay.device_ids:
        for device_id in (listed_id, device_of(listed_id)):
            if slots := by_device.get(device_id):
                ports = {
                    slot: GrantedPort(number_at(path) if path else None, path)
                    for slot, path in slots.items()
                }
                yield Grant(replay.resource, listed_id, ports)
                break


def _paths_by_device(replay: Replay) -> Mapping[str, Mapping[str, str]]:
    """By device and slot, the paths on the host; empty paths for devices given by CDI."""
    if replay.cdi_devices:
        names = {name.partition("=")[2] for name in replay.cdi_devices}
        # An ID that ends in no letter or digit is framed by zeros (custody.cdi).
        names |= {name[1:-1] for name in names if name.startswith("0")}
        return {name: {slot_of(name): ""} for name in names}
    found: dict[str, dict[str, str]] = {}
    paths = dict.fromkeys(replay.host_paths.values())
    for path in paths:
        device_id, slot = _linked(path)
        if not slot:
            return _by_position(replay, tuple(paths))
        found.setdefault(device_id, {})[slot] = path
    return found


def _paths(grant: Grant) -> Mapping[str, str]:
    return {slot: given.path for slot, given in grant.ports.items()}


def _linked(path: str) -> tuple[str, str]:
    """Device and slot of a link that we keep, wherever; empty if it is none."""
    *_, device_id, slot = ("", "", *path.split("/"))
    return (device_id, slot) if slot.startswith("if") and "-" in device_id else ("", "")


def _by_position(replay: Replay, paths: Sequence[str]) -> Mapping[str, Mapping[str, str]]:
    """Version 0.1 gave nodes where it could keep no links: clear for a single port alone."""
    device_ids = dict.fromkeys(map(device_of, replay.device_ids))
    if len(device_ids) != 1 or len(paths) != 1:
        return {}
    found = {}
    for device_id in (*device_ids, *replay.device_ids):
        if slot := slot_of(device_id):
            found[device_id] = {slot: paths[0]}
    return found
