"""How long it takes to choose devices, and how that grows with what there is to choose from."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from benchmarks.subject import RESOURCE, device_id, port
from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.deviceplugin.preference import prefer
from usbplugin.inventory import Device, Health, Snapshot
from usbplugin.inventory.shares import share_ids

if TYPE_CHECKING:
    from benchmarks.report import Report

_BAR = 20.0
"""How many times as long ten times as much may take; a square would be a hundred."""
_CASES = {
    "8 devices of 1,000 shares": ((8, 100), (8, 1000)),
    "1,000 devices": ((100, 1), (1000, 1)),
}
"""How many devices of how many shares, fewer and more."""


def measure(report: Report, rounds: int) -> None:
    for name, (fewer, more) in _CASES.items():
        pairs = [(_seconds(*fewer), _seconds(*more)) for _ in range(rounds)]
        middle = report.times(f"half of {name} preferred", [most for _, most in pairs])
        least = statistics.median(least for least, _ in pairs)
        report.add("  compared with a tenth of it", middle / least, "x", _BAR)


def _seconds(devices: int, shares: int) -> float:
    """How long it takes to choose half of all there is."""
    snapshot = Snapshot(
        RESOURCE,
        tuple(
            Device(device_id(n), RESOURCE, Health.READY, "", (port(n),), n) for n in range(devices)
        ),
    )
    ids = [one for device in snapshot.devices for one in share_ids(device.id, shares)]
    request = v1beta1.ContainerPreferredAllocationRequest(
        available_deviceIDs=ids, allocation_size=len(ids) // 2
    )
    began = time.perf_counter()
    prefer(request, snapshot, shares)
    return time.perf_counter() - began
