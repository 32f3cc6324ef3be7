"""Who was given what, over all devices, resources and IDs. Pure, and mutable."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from usbplugin.inventory.grant import Grant, GrantedPort, Holding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from usbplugin.discovery import DeviceNumber
    from usbplugin.inventory.grant import GrantKey


class GrantBook:
    """All holdings: by listed ID, by device, and by the numbers their containers may have."""

    def __init__(self, grace: float, boot: str, *, holders_can_tell: bool) -> None:
        """Begin with none.

        Args:
            grace: The kubelet's word that nobody holds a device counts if it was asked so many
                seconds after the device was granted.
            boot: The boot of which numbers are.
            holders_can_tell: Whether the kubelet can be asked who holds what: until it answers,
                what was granted counts as held.
        """
        self.asked_at: float | None = -math.inf if holders_can_tell else None
        """When the kubelet was last asked who holds what; None if it cannot be."""
        self._grace = grace
        self._boot = boot
        self._of: dict[str, dict[GrantKey, Holding]] = {}
        self._device_of: dict[GrantKey, str] = {}
        self._with: defaultdict[DeviceNumber, set[GrantKey]] = defaultdict(set)
        self._by_cdi: set[GrantKey] = set()
        self._devices: set[str] = set()
        self._numbers: set[DeviceNumber] = set()

    @property
    def has_cdi_grants(self) -> bool:
        """Whether a container, of whatever device, was given a CDI name."""
        return bool(self._by_cdi)

    def find(self, key: GrantKey) -> Holding | None:
        """The holding of a listed ID; None if nobody has it, for all we know."""
        device_id = self._device_of.get(key)
        return None if device_id is None else self._of[device_id][key]

    def held(self, device_id: str) -> tuple[Holding, ...]:
        """What containers have of a device, for all we know."""
        holdings = self._of.get(device_id)
        return tuple(filter(self._counts, holdings.values())) if holdings else ()

    def with_number(self, number: DeviceNumber) -> list[Holding]:
        """What containers have that may run with that number."""
        keys = sorted(self._with.get(number, ()))
        return [h for key in keys if self._counts(h := self._of[self._device_of[key]][key])]

    def grants(self, device_id: str) -> tuple[Grant, ...]:
        """All that is known to have been given of a device, but for what claims were given."""
        holdings = self._of.get(device_id, {})
        grants = (h.grant for _, h in sorted(holdings.items()) if not h.claim)
        return tuple(grant for grant in grants if grant is not None)

    def holders(self, device_id: str) -> tuple[str, ...]:
        """Who has a device, by the kubelet's word, in alphabetical order."""
        holdings = self._of.get(device_id, {}).values()
        return tuple(sorted({name for holding in holdings for name in holding.holders}))

    def awaits_holders(self, device_id: str, *, is_ready: bool) -> bool:
        """Whether the kubelet's next word on who holds a device will decide something."""
        # What claims have is theirs until they are unprepared, whatever the kubelet says; it names
        # their pods, for people.
        all_of_it = self._of.get(device_id, {}).values()
        holdings = [one for one in all_of_it if not one.claim or self._is_fresh(one)]
        if any(holding.holders for holding in holdings):
            # One more holder may have come since.
            return not is_ready or any(map(self._is_fresh, holdings))
        return bool(holdings)

    def changes(self) -> tuple[set[str], set[DeviceNumber]]:
        """The devices whose holders have changed since the last call, and the numbers concerned."""
        changed = self._devices, self._numbers
        self._devices, self._numbers = set(), set()
        return changed

    def grant(self, device_id: str, grant: Grant, now: float) -> None:
        """A container gets this of a device."""
        own = msgspec.structs.replace(grant, boot=self._boot)
        self._put(Holding(device_id, own.key, own, granted_at=now))

    def prepare(self, device_id: str, grant: Grant, now: float) -> None:
        """A claim has this of a device until it is released."""
        known = self.find(grant.key)
        own = msgspec.structs.replace(grant, boot=self._boot)
        if known is None or (known.device_id, known.grant) != (device_id, own):
            self._put(Holding(device_id, own.key, own, known.holders if known else (), now))

    def release(self, claim: str) -> None:
        """A claim has nothing any longer."""
        for holding in [h for holdings in self._of.values() for h in holdings.values()]:
            if holding.claim == claim:
                self._drop(holding.key)

    def take_over(self, device_id: str, grant: Grant, now: float) -> None:
        """An earlier process granted this: it counts until the kubelet's first word."""
        # The containers of another boot do not run any longer.
        known = grant if grant.boot in ("", self._boot) else grant.stopped()
        own = msgspec.structs.replace(known, boot=self._boot)
        self._put(Holding(device_id, own.key, own, granted_at=now - self._grace))

    def recall(self, device_id: str, grant: Grant, now: float) -> None:
        """Another instance granted this meanwhile, and knows it better than we do."""
        known = self.find(grant.key)
        if known is None:
            self.take_over(device_id, grant, now)
        elif known.device_id == device_id and known.grant != grant and grant.boot == self._boot:
            self._put(replace(known, grant=grant))

    def inherit(self, predecessor: GrantBook, device_id: str) -> None:
        """Know of a device what the book before this one did."""
        for holding in predecessor._of.get(device_id, {}).values():
            self._put(holding)

    def learn(self, device_id: str, grant: Grant, now: float) -> None:
        """The kubelet's own notes say that this was granted; of its numbers we may know better."""
        known = self.find(grant.key)
        before = known.grant if known is not None else None
        before = before or self._of_all_shares(device_id, grant.key)
        told = msgspec.structs.replace(grant, boot=self._boot)
        if before is not None and is_told_by(before, grant):
            told = before
        elif before is not None:
            ports = {
                slot: msgspec.structs.replace(before.ports.get(slot, given), path=given.path)
                for slot, given in grant.ports.items()
            }
            told = msgspec.structs.replace(before, ports=ports)
        if known is None:
            self._put(Holding(device_id, grant.key, told, granted_at=now - self._grace))
        else:
            self._put(replace(known, grant=told))

    def started(self, key: GrantKey, numbers: Mapping[str, DeviceNumber]) -> None:
        """The container that has this starts anew, with these numbers by slot."""
        holding = self.find(key)
        if holding is None or holding.grant is None:
            return
        given = holding.grant.ports
        if of_all := given.get(""):  # a CDI name of which the slots were not known
            given = dict.fromkeys(numbers, of_all)
        self._rewrite(
            holding,
            {
                slot: GrantedPort(numbers.get(slot, port.number), port.path)
                for slot, port in given.items()
            },
        )

    def ended(self, key: GrantKey) -> None:
        """The container that has this does not run, and so has none of its old numbers open."""
        holding = self.find(key)
        if holding is not None and holding.grant is not None:
            self._rewrite(holding, holding.grant.stopped().ports)

    def may_start_with(
        self, device_id: str, slot: str, number: DeviceNumber, *, claims_only: bool
    ) -> None:
        """The containers of a device may be started with that number, and nobody would tell.

        Args:
            device_id: The device.
            slot: Which of its ports.
            number: The port's.
            claims_only: Whether only containers with claims are started without our being asked.
        """
        for holding in list(self._of.get(device_id, {}).values()):
            if claims_only and not holding.claim:
                continue
            given = holding.grant.ports.get(slot) if holding.grant else None
            if holding.grant is None or given is None or number in given.numbers:
                continue
            more = msgspec.structs.replace(given, also=(*given.also, number))
            ports = {**holding.grant.ports, slot: more}
            self._rewrite(holding, ports, is_unsure=holding.grant.is_unsure)

    def hear(
        self,
        held: Mapping[GrantKey, Iterable[str]],
        device_of: Callable[[GrantKey], str],
        asked_at: float,
    ) -> None:
        """These are all who hold a device of ours, by the kubelet's word.

        Args:
            held: The holders, by listed ID.
            device_of: The device that a listed ID stands for.
            asked_at: When the kubelet was asked.
        """
        for key in held:
            if self.find(key) is None:
                device_id = device_of(key)
                self._put(Holding(device_id, key, self._of_all_shares(device_id, key)))
        self.asked_at = asked_at
        for holding in [h for holdings in self._of.values() for h in holdings.values()]:
            names = tuple(sorted(held.get(holding.key, ())))
            named = holding
            if names != holding.holders:
                self._put(named := replace(holding, holders=names))
            if not self._counts(named):
                self._drop(holding.key)

    def forget(self, device_id: str) -> None:
        """Know nothing of a device any longer."""
        for key in list(self._of.get(device_id, {})):
            self._drop(key)

    def holds(self, resource: str) -> bool:
        """Whether a container has something of a resource, for all we know."""
        return any(
            holding.key[0] == resource and self._counts(holding)
            for holdings in self._of.values()
            for holding in holdings.values()
        )

    def _counts(self, holding: Holding) -> bool:
        """Whether a container has it, for all we know."""
        return bool(holding.holders or holding.claim) or self._is_fresh(holding)

    def _is_fresh(self, holding: Holding) -> bool:
        """Whether the kubelet's last word on its holders came too early to count."""
        return self.asked_at is not None and holding.granted_at + self._grace > self.asked_at

    def _of_all_shares(self, device_id: str, key: GrantKey) -> Grant | None:
        """What version 0.1 wrote of a device is of all its shares alike."""
        for grant in self.grants(device_id):
            if grant.is_of_all_shares:
                return msgspec.structs.replace(
                    grant, resource=key[0], listed_id=key[1], is_of_all_shares=False
                )
        return None

    def _rewrite(
        self, holding: Holding, ports: dict[str, GrantedPort], *, is_unsure: bool = False
    ) -> None:
        if holding.grant is None:
            return
        grant = msgspec.structs.replace(
            holding.grant, ports=ports, boot=self._boot, is_unsure=is_unsure
        )
        if grant != holding.grant:
            self._put(replace(holding, grant=grant))

    def _put(self, holding: Holding) -> None:
        self._drop(holding.key)
        self._of.setdefault(holding.device_id, {})[holding.key] = holding
        self._device_of[holding.key] = holding.device_id
        self._devices.add(holding.device_id)
        if holding.grant is None:
            return
        if holding.grant.is_cdi:
            self._by_cdi.add(holding.key)
        for number in holding.grant.numbers:
            self._with[number].add(holding.key)
            self._numbers.add(number)

    def _drop(self, key: GrantKey) -> None:
        device_id = self._device_of.pop(key, None)
        if device_id is None:
            return
        self._by_cdi.discard(key)
        holdings = self._of[device_id]
        holding = holdings.pop(key)
        if not holdings:
            del self._of[device_id]
        self._devices.add(device_id)
        for number in holding.grant.numbers if holding.grant is not None else ():
            self._numbers.add(number)
            self._with[number].discard(key)
            if not self._with[number]:
                del self._with[number]


def is_told_by(known: Grant, told: Grant) -> bool:
    """Whether what is told of a grant says nothing but what is known of it."""
    if told.paths == {"": ""}:  # a CDI name of a whole device
        return not any(known.paths.values())
    return all(known.paths.get(slot) == path for slot, path in told.paths.items())
