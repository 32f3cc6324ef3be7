"""One device offered several times: IDs ``<id>.0``, ``<id>.1``... for the kubelet alone."""

from __future__ import annotations

MOST_SHARES = 1000
"""A suffix of four characters is what identity leaves room for."""


def share_ids(device_id: str, shares: int) -> tuple[str, ...]:
    """The IDs under which a device is listed; its own if it is not shared."""
    if shares == 1:
        return (device_id,)
    return tuple(f"{device_id}.{number}" for number in range(shares))


def device_of(share_id: str, shares: int) -> str:
    """The device that a listed ID stands for."""
    if shares == 1:
        return share_id
    device_id, _, number = share_id.rpartition(".")
    return device_id if number.isdigit() and int(number) < shares else share_id
