"""What claims have of the devices: custody's word decides over both fronts.

Whoever prepares claims remembers them; custody knows them, so that nobody else gets what they have,
and tells before anybody hears of a device what has become of theirs.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from usbplugin.inventory import Grant, GrantedPort
from usbplugin.inventory.grant import claim_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from usbplugin.discovery import DeviceNumber
    from usbplugin.inventory import Change, Device, HeldDevice, Holding, Inventory, Update

    Beforehand = Callable[[Sequence[Change]], None]
    """Does what has to be done before anybody hears of these changes."""


class ClaimedDevices:
    """The devices that claims have."""

    def __init__(
        self,
        inventory: Callable[[], Inventory],
        carry_out: Callable[[Callable[[float], Update]], None],
    ) -> None:
        """Change the latest inventory, and have ``carry_out`` do what follows, at its time."""
        self._inventory = inventory
        self._carry_out = carry_out
        self._beforehand: Beforehand = lambda _: None
        self.named: frozenset[str] = frozenset()
        """The claims, as ``namespace/name``, whose devices containers have by the kubelet's word.
        """
        self.named_at = float("-inf")
        """When the kubelet was asked for them; seconds of custody's clock."""

    def precede(self, beforehand: Beforehand) -> None:
        """Have claims kept true: called with each change before anybody else hears of it."""
        self._beforehand = beforehand

    def make_true(self, changes: Sequence[Change]) -> None:
        """These changes are about to be told."""
        if changes:
            self._beforehand(changes)

    def prepare(
        self,
        claim: str,
        device_id: str,
        device_name: str,
        resource: str,
        numbers: Mapping[str, DeviceNumber],
        may_have: Mapping[str, tuple[DeviceNumber, ...]] = MappingProxyType({}),
    ) -> None:
        """A claim has a device until it is released.

        Args:
            claim: Its ``namespace/name``.
            device_id: Perhaps of a device that is not known: then it becomes so.
            device_name: What the device is called in claims.
            resource: Of which it was given.
            numbers: By slot, those that its container has.
            may_have: By slot, those with which it may have been restarted since.
        """
        ports = {
            slot: GrantedPort(number, "", may_have.get(slot, ()))
            for slot, number in numbers.items()
        }
        grant = Grant(resource, device_name, ports, claim=claim)
        self._carry_out(lambda now: self._inventory().prepare(device_id, grant, now))

    def release(self, claim: str) -> None:
        """A claim has nothing any longer."""
        self._carry_out(lambda now: self._inventory().release(claim, now))

    def hear(self, held: Iterable[HeldDevice], asked_at: float) -> None:
        """These are all who hold a device, by the kubelet's word."""
        self.named = frozenset(filter(None, (claim_of(one.key) for one in held)))
        self.named_at = asked_at

    def conflict(self, device_id: str, claim: str) -> str:
        """Which container, not of that claim, may have the device open; empty if none may."""
        if self._inventory().find(device_id) is None:
            return ""
        keys = [one.key for one in self.holdings(device_id) if one.claim == claim]
        return self._inventory().conflict(device_id, keys)

    def find(self, device_id: str) -> Device | None:
        """The device of that ID, of whatever resource."""
        return self._inventory().find(device_id)

    def holdings(self, device_id: str) -> tuple[Holding, ...]:
        """Who has a device, through whatever front."""
        return self._inventory().holdings(device_id)
