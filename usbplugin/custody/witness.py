"""From what the kubelet will replay, by its checkpoint, to what containers were granted."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from usbplugin.discovery import DeviceNumber
from usbplugin.discovery.identity import slot_of
from usbplugin.inventory import Grant, GrantedPort
from usbplugin.inventory.shares import device_of

# Documentation/admin-guide/devices.txt: the minor number is that of the name.
_MAJORS = {"USB": 188, "ACM": 166}
_NAMED = re.compile(r"/dev/tty(USB|ACM)([0-9]{1,3})")

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

    With which numbers a container runs, nobody has noted. So the grants are unsure, with what a
    path leads to now and what its name in the container tells as numbers that it may have.

    Args:
        replays: The notes.
        number_at: Tells what a path leads to now.
    """
    found: dict[GrantKey, Grant | None] = {}
    for replay in replays:
        for grant in _grants(replay, number_at):
            known = found.setdefault(grant.key, grant)
            if known is not None and known.paths != grant.paths:
                found[grant.key] = None
    return tuple(grant for grant in found.values() if grant is not None)


def _grants(replay: Replay, number_at: NumberAt) -> Iterable[Grant]:
    if not replay.is_legible:
        return
    by_device = _paths_by_device(replay)
    names = {host: inside for inside, host in replay.host_paths.items()}
    for listed_id in replay.device_ids:
        for device_id in (listed_id, device_of(listed_id)):
            if slots := by_device.get(device_id):
                ports = {
                    slot: GrantedPort(None, path, _guesses(path, names.get(path, ""), number_at))
                    for slot, path in slots.items()
                }
                yield Grant(replay.resource, listed_id, ports, is_unsure=True)
                break


def _guesses(path: str, name: str, number_at: NumberAt) -> tuple[DeviceNumber, ...]:
    """The numbers that a container may have for a path: at best those of its last start."""
    found = number_at(path) if path else None
    by_name = _NAMED.fullmatch(name)
    named = DeviceNumber(_MAJORS[by_name[1]], int(by_name[2])) if by_name else None
    return tuple(dict.fromkeys(number for number in (found, named) if number is not None))


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
