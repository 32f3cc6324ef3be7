"""What hangs on the inventory outside of the process: links, CDI specs and states on disk.

What cannot be done is kept as an obstacle of its device, and tried again when somebody asks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from usbplugin.inventory import Health

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from usbplugin.custody.cdi import CdiDirectory
    from usbplugin.custody.links import LinkDirectory
    from usbplugin.custody.offer import Offer
    from usbplugin.custody.saving import Saving
    from usbplugin.inventory import Device, DeviceState, Holding, Inventory, Update


class Effects:
    """Makes links, specs and states true of one inventory."""

    def __init__(
        self,
        inventory: Inventory,
        offers: Iterable[Offer],
        links: LinkDirectory,
        cdi: CdiDirectory,
        saving: Saving,
    ) -> None:
        """Write through ``links``, ``cdi`` and ``saving``; ``rebase`` tells of other truths."""
        self.obstacles: dict[str, str] = {}
        """By device, what its containers need and could not be written, and why."""
        self._links = links
        self._cdi = cdi
        self._saving = saving
        self._left: set[str] = set()
        """Resources that another instance is registered for: what it writes, we do not."""
        self.rebase(inventory, offers)

    def rebase(self, inventory: Inventory, offers: Iterable[Offer]) -> None:
        """From now on, this inventory is the truth, and these are the terms."""
        self._inventory = inventory
        self._offers = {offer.resource: offer for offer in offers}

    def do(self, update: Update) -> dict[str, str]:
        """Do what has to be done before anybody hears of these changes.

        Returns:
            By device, the obstacles that are new, and an empty text for each that is gone.
        """
        found: dict[str, str] = {}
        resources = {snapshot.resource for snapshot in update.snapshots}
        for change in update.changes:
            device = change.device
            resources.add(device.resource)
            if change.after is None:
                self._forget(device)
            elif device.reason != self.obstacles.get(device.id):
                found[device.id] = self._update_links(device)
            # Else nothing was written of it, and that is why it is as it is.
        if self._saving.add(state for state in update.to_save if state.resource not in self._left):
            self._saving.save()
        for device_id, obstacle in found.items():
            found[device_id] = obstacle or self._saving.problems.get(device_id, "")
        for offer in self._offers.values():
            # What was given by CDI may be of any resource by now.
            if offer.resource in resources or (resources and self._cdi.has(offer.resource)):
                self._write_spec(offer, found)
        return self._noted(found)

    def save(self) -> dict[str, str]:
        """Write the states that are not on disk; returns obstacles as ``do`` does."""
        self._saving.save()
        problems = self._saving.problems.items()
        return self._noted({name: text for name, text in problems if name not in self.obstacles})

    def keep(self, state: DeviceState | None) -> None:
        """Write a listed device's state with the next ones, if it is not on disk."""
        if state is None:
            return
        if state.resource in self._left:  # the kubelet asked us all the same
            self._saving.add([state])
        self._saving.restore(state)

    def mark(self) -> None:
        """Let other instances see that links are kept here."""
        self._links.mark()

    def unmark(self) -> None:
        """Links are not kept here any longer."""
        self._links.unmark()

    def has_left(self, resource: str) -> bool:
        """Whether a resource is left to another instance."""
        return resource in self._left

    def leave(self, resource: str) -> None:
        """Leave a resource to another instance."""
        self._left.add(resource)

    def take_back(self, resource: str) -> None:
        """Be the one that keeps a resource; ``mend`` makes its links and specs true."""
        self._left.discard(resource)
        states = (self._inventory.state(device.id) for device in self._inventory.devices)
        self._saving.add(s for s in states if s is not None and s.resource == resource)

    def is_disturbed(self) -> bool:
        """Whether somebody may have deleted what was written, or something could not be."""
        # Each is asked, for each compares with what it saw when it was last asked.
        disturbed = (self._links.is_disturbed(), self._saving.is_disturbed())
        return bool(self.obstacles) or any(disturbed)

    def mend(self) -> dict[str, str]:
        """Make again what somebody has deleted, or what could not be made.

        Returns:
            Obstacles as ``do`` does.
        """
        found = {}
        for device in self._inventory.devices:
            if device.resource not in self._left:
                self._saving.restore(self._inventory.state(device.id))
            if device.reason != self.obstacles.get(device.id):
                found[device.id] = self._update_links(device)
        self._saving.save()
        self.write_specs()
        for device in self._inventory.devices:
            if device.reason == self.obstacles.get(device.id):
                hindered = msgspec.structs.replace(device, health=Health.READY)
                found[device.id] = self._obstacle_of(hindered)
        return self._noted(found)

    def write_specs(self) -> None:
        """Write all specs that have to be there."""
        for offer in self._offers.values():
            self._write_spec(offer, {})

    def clean_up(self) -> None:
        """Remove what earlier runs left of devices and resources that are not known any longer."""
        known = {device.id for device in self._inventory.devices}
        self._links.keep_only(known)
        self._saving.keep_only(known)
        self.write_specs()
        self._cdi.keep_only([name for name in self._offers if self._cdi.has(name)])

    def remove_spec(self, resource: str) -> None:
        """Nobody needs a resource's spec, or nobody would keep it true."""
        if self._cdi.has(resource) and resource not in self._left:
            self._cdi.remove(resource)

    def host_path(self, device: Device, slot: str) -> str:
        """Where on the host the port in that slot is found."""
        return self._links.host_path(device.id, slot)

    def problem_of_links(self, device: Device) -> str:
        """Why a device's links do not lead to it, whatever happened to them meanwhile."""
        return self._links.update(device)

    def is_in_spec(self, holding: Holding, device: Device) -> bool:
        """Whether the spec by which a container was given a device leads to it. May hang."""
        offer = self._offers.get(holding.key[0])
        return offer is not None and self._cdi.is_kept(device, offer)

    def _update_links(self, device: Device) -> str:
        """What ``LinkDirectory.update`` does, unless another instance does it."""
        if device.resource in self._left and self._links.is_shared:
            return ""
        return self._links.update(device)

    def _obstacle_of(self, device: Device) -> str:
        """What still cannot be written of a device that would be offered; empty if it all can."""
        if obstacle := self._update_links(device) or self._saving.problems.get(device.id, ""):
            return obstacle
        offer = self._offers.get(device.resource)
        if offer is None or offer.resource in self._left or not self._is_by_cdi(device, offer):
            return ""
        others = (other for other in self._by_cdi(offer) if other.id != device.id)
        self._cdi.write([*others, device], offer)
        return self._cdi.problem(device, offer)

    def _write_spec(self, offer: Offer, found: dict[str, str]) -> None:
        """Make a resource's spec true, also after a reload that ended CDI while it was needed."""
        if offer.resource in self._left:
            return
        if not (offer.cdi or self._inventory.has_cdi_grants or self._cdi.has(offer.resource)):
            return
        devices = self._by_cdi(offer)
        if not offer.cdi and not devices:
            self.remove_spec(offer.resource)
            return
        self._cdi.write(devices, offer)
        for device in devices:
            if device.health.is_there and not found.get(device.id):
                found[device.id] = self._cdi.problem(device, offer)

    def _by_cdi(self, offer: Offer) -> list[Device]:
        """The devices that a resource's spec has to name."""
        return [device for device in self._inventory.devices if self._is_by_cdi(device, offer)]

    def _is_by_cdi(self, device: Device, offer: Offer) -> bool:
        if device.resource == offer.resource and offer.cdi:
            return True
        return any(
            holding.key[0] == offer.resource and holding.grant is not None and holding.grant.is_cdi
            for holding in self._inventory.holdings(device.id)
        )

    def _forget(self, device: Device) -> None:
        self.obstacles.pop(device.id, None)
        if device.resource not in self._left:
            self._saving.drop(device.id)
            self._links.forget(device.id)

    def _noted(self, found: Mapping[str, str]) -> dict[str, str]:
        news = {name: text for name, text in found.items() if text != self.obstacles.get(name, "")}
        self.obstacles |= news
        for device_id in [name for name, text in news.items() if not text]:
            del self.obstacles[device_id]
        return news
