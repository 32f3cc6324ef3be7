"""One device offered several times: IDs ``<id>.0``, ``<id>.1``... for the kubelet alone."""

from __future__ import annotations

import re

from usbplugin.discovery.identity import is_by_serial, slot_of

MOST_SHARES = 1000
"""A suffix of four characters is what identity leaves room for."""

_SHARE = re.compile(r"(.+)\.(0|[1-9][0-9]{0,2})", re.DOTALL)


def share_ids(device_id: str, shares: int) -> tuple[str, ...]:
    """The IDs under which a device is listed; its own if it is not shared."""
    if shares == 1:
        return (device_id,)
    return tuple(f"{device_id}.{number}" for number in range(shares))


def device_of(listed_id: str, shares: int = MOST_SHARES) -> str:
    """The device that a listed ID stands for, among IDs listed ``shares`` times."""
    if shares == 1:
        return listed_id
    listed = _SHARE.fullmatch(listed_id)
    return listed[1] if listed and int(listed[2]) < shares else listed_id


def is_share(listed_id: str) -> bool:
    """Whether an ID can be no device's own: it ends as a share's, behind what ends another ID."""
    device_id = device_of(listed_id)
    return device_id != listed_id and (slot_of(device_id) != "" or is_by_serial(device_id))


def is_listed(listed_id: str, device_id: str, shares: int) -> bool:
    """Whether a device is listed under that ID."""
    if shares == 1:
        return listed_id == device_id
    return listed_id != device_id and device_of(listed_id, shares) == device_id
