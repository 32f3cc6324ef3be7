"""Whether devices may be granted, and containers started, at this very moment.

What is known decides first; then a look at the hardware as it is, outside of the event loop and
with a deadline; then what is known once more, for time has passed.
"""

from __future__ import annotations

from functools import partial
from threading import Event
from typing import TYPE_CHECKING

from usbplugin.custody.starting import Eyes, grant_problem, start_problem
from usbplugin.foundation.workers import TooManyCallsError
from usbplugin.inventory.shares import device_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from usbplugin.custody.effects import Effects
    from usbplugin.foundation.workers import Workers
    from usbplugin.inventory import Device, GrantKey, Holding, Inventory

LOOK_TIMEOUT = 2.0
"""Seconds that hardware has to answer before it counts as hardware that does not."""


class Admission:
    """Decides about Allocate and PreStartContainer."""

    def __init__(
        self,
        inventory: Callable[[], Inventory],
        effects: Effects,
        workers: Workers,
        eyes: Eyes,
    ) -> None:
        """Decide by the latest inventory, by what is on disk, and by what the eyes see."""
        self._inventory = inventory
        self._effects = effects
        self._workers = workers
        self._eyes = eyes
        self._looks: dict[str, Event] = {}
        """By device, the end of a look that took too long."""

    async def grant_problem(self, devices: Sequence[Device]) -> str:
        """Why these devices are not at this moment what they are known to be; empty if they are."""
        return await self._look(devices, partial(grant_problem, devices, self._eyes))

    async def start_problem(self, keys: Sequence[GrantKey]) -> str:
        """Why a container that was given these must not start; empty if it may."""
        devices, looks = [], []
        for key in keys:
            holding = self._inventory().holding(key)
            meant = (holding.device_id,) if holding else (key[1], device_of(key[1]))
            device = next(filter(None, map(self._inventory().find, meant)), None)
            if device is None and holding is not None:
                return f"{holding.device_id} has just been found: it is not ready yet"
            if device is None:
                return f"{key[1]} is unknown to {key[0]}: delete the pod"
            if problem := self._known_problem(device, keys):
                return problem
            if holding is None or holding.grant is None:
                return f"nobody knows what the container was given for {device.id}: delete the pod"
            devices.append(device)
            looks.append(partial(self._look_before_start, device, holding))
        problem = await self._look(
            devices, lambda: next(filter(None, (look() for look in looks)), "")
        )
        # Another container may have been started meanwhile.
        rivals = (self._inventory().conflict(device.id, keys) for device in devices)
        return problem or next(filter(None, rivals), "")

    def _known_problem(self, device: Device, keys: Sequence[GrantKey]) -> str:
        if not device.health.may_start:
            return f"{device.id} is {device.health.value}: {device.reason}"
        if conflict := self._inventory().conflict(device.id, keys):
            return f"{device.id} is contested: {conflict}"
        if problem := self._effects.problem_of_links(device):
            return f"{device.id}: {problem}"
        return ""

    def _look_before_start(self, device: Device, holding: Holding) -> str:
        given = holding.grant.ports if holding.grant else {}
        paths = {
            port.slot: one.path
            for port in device.ports
            if (one := given.get(port.slot, given.get(""))) is not None
        }
        if problem := start_problem(device, paths, self._eyes):
            return problem
        if not all(paths.values()) and not self._effects.is_in_spec(holding, device):
            return f"the CDI spec of {holding.key[0]} does not name {device.id} as it is now"
        return ""

    async def _look(self, devices: Sequence[Device], look: Callable[[], str]) -> str:
        names = {device.id for device in devices}
        # One thread that hangs is enough for each.
        hanging = [name for name in names if name in self._looks and not self._looks[name].is_set()]
        if hanging:
            return _silence(hanging)
        ended = Event()

        def look_and_tell() -> str:
            try:
                return look()
            finally:
                ended.set()

        try:
            problem = await self._workers.answer(look_and_tell, LOOK_TIMEOUT)
        except TooManyCallsError as error:
            return f"{', '.join(sorted(names))} could not be looked at: {error}"
        except TimeoutError:
            self._looks |= dict.fromkeys(names, ended)
            return _silence(names)
        for name in names:
            self._looks.pop(name, None)
        return problem or self._news_of(devices)

    def _news_of(self, devices: Iterable[Device]) -> str:
        """Why what was looked at is not what counts now; empty if it is."""
        for device in devices:
            now = self._inventory().find(device.id)
            if now is None or (now.health, now.ports) != (device.health, device.ports):
                return f"{device.id} has changed at this very moment: try again"
        return ""


def _silence(names: Iterable[str]) -> str:
    return f"{', '.join(sorted(names))} does not answer: it was looked at for {LOOK_TIMEOUT:g} s"
