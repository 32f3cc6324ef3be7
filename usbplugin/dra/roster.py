"""Which devices are published, and on what terms. Pure, but for what it remembers.

A device is published as long as a claim may have it, or has it; and one that a claim was allocated
and nobody knows is published as a ghost, so that its pod is evicted and does not wait for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from usbplugin.dra.contracts import PublishedDevice, Terms
from usbplugin.dra.names import device_name
from usbplugin.inventory import Device, Health

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from usbplugin.custody import Offer
    from usbplugin.inventory import Holding


class Roster:
    """Lists the devices to be published."""

    def __init__(self, retention: float) -> None:
        """Keep ghosts for ``retention`` seconds."""
        self.retention = retention
        self._ghosts: dict[str, float] = {}
        """By name, until when (Unix seconds)."""
        self._since: dict[str, tuple[Health, float, float]] = {}
        """By device: its health, since when on the inventory's clock, and since when in Unix
        seconds. A clock that is set must not move what was published."""

    def haunt(self, names: Iterable[str], now: float) -> None:
        """These were allocated, and are unknown; ``now`` is in Unix seconds."""
        for name in names:
            self._ghosts.setdefault(name, now + self.retention)

    def next_end(self) -> float | None:
        """When the next ghost ends, in Unix seconds; None if there is none."""
        return min(self._ghosts.values(), default=None)

    def list(
        self,
        devices: Iterable[Device],
        offers: Mapping[str, Offer],
        holdings: Callable[[str], Iterable[Holding]],
        urgent: frozenset[str],
        evict_after: float | None,
        now: tuple[float, float],
    ) -> list[PublishedDevice]:
        """All devices as they are to be published.

        Args:
            devices: All there are, of all resources.
            offers: The terms of those resources that claims may have, by name.
            holdings: Who has a device, through whatever front.
            urgent: Devices that were to be prepared while they were away: their pods are not to
                wait.
            evict_after: As in ``PublishedDevice``.
            now: The present moment on the inventory's clock, and in Unix seconds.
        """
        clock, wall = now
        found = []
        seen = set()
        for device in devices:
            held = tuple(holdings(device.id))
            is_claimed = any(one.claim for one in held)
            offer = offers.get(device.resource)
            if offer is None and not is_claimed:
                continue
            seen.add(device.id)
            terms = Terms.OFFERED
            if offer is None:
                terms = Terms.DRAINING
            elif any(not one.claim for one in held):
                terms = Terms.HELD_ELSEWHERE
            found.append(
                PublishedDevice(
                    device_name(device.id),
                    device,
                    self._moment(device, clock, wall),
                    not device.has_twin,
                    offer.shares if offer else 1,
                    0.0 if device.id in urgent else evict_after,
                    terms,
                )
            )
        self._since = {name: moment for name, moment in self._since.items() if name in seen}
        known = {one.name for one in found}
        self._ghosts = {
            name: end for name, end in self._ghosts.items() if end > wall and name not in known
        }
        return found + [
            _ghost(name, end - self.retention, evict_after) for name, end in self._ghosts.items()
        ]

    def _moment(self, device: Device, clock: float, wall: float) -> float:
        known = self._since.get(device.id)
        if known is None or known[:2] != (device.health, device.since):
            age = max(clock - device.since, 0.0)
            known = self._since[device.id] = (device.health, device.since, wall - age)
        return known[2]


def _ghost(name: str, since: float, evict_after: float | None) -> PublishedDevice:
    device = Device(
        id=name,
        resource="",
        health=Health.UNPLUGGED,
        reason="a claim was allocated it, and it has not been seen here",
        ports=(),
        since=since,
    )
    return PublishedDevice(
        name,
        device,
        since,
        evict_after=0.0 if evict_after is None else evict_after,
        terms=Terms.GHOST,
    )
