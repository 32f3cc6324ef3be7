"""Sees to it that states get to disk: what cannot be written now is tried again later."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from usbplugin.custody.state import StateStore
    from usbplugin.inventory import DeviceState


class Saving:
    """The states that are not on disk yet."""

    def __init__(self, store: StateStore, saved: Iterable[DeviceState]) -> None:
        """Save to ``store``, where ``saved`` is already."""
        self._store = store
        self._saved = {state.id: state for state in saved}
        self._unsaved: dict[str, DeviceState] = {}
        self._problems: dict[str, str] = {}

    @property
    def problems(self) -> Mapping[str, str]:
        """By device, why its state is not on disk."""
        return self._problems

    def add(self, states: Iterable[DeviceState]) -> bool:
        """These have changed.

        Returns:
            Whether one of them names its device anew, so that it has to be on disk before anybody
            hears of it: else, after a crash, the ID might come to stand for another device.
        """
        self._unsaved |= (new := {state.id: state for state in states})
        return any(_names_anew(self._saved.get(state.id), state) for state in new.values())

    def restore(self, state: DeviceState | None) -> None:
        """Write a device's state again if somebody has deleted it; None if it is not listed."""
        if state is not None and not self._store.is_kept(state.id):
            self._unsaved.setdefault(state.id, state)

    def is_disturbed(self) -> bool:
        """Whether somebody may have deleted what was written."""
        return self._store.is_disturbed() and bool(self._saved)

    def keep_only(self, device_ids: Collection[str]) -> None:
        """Remove the states of devices that are not known any longer."""
        for device_id in self._saved.keys() - device_ids:
            self.drop(device_id)

    def drop(self, device_id: str) -> None:
        """The device is forgotten."""
        for known in (self._saved, self._unsaved, self._problems):
            known.pop(device_id, None)
        self._store.forget(device_id)

    def save(self) -> None:
        """Write what is not on disk; what fails stays to be written, and is a problem."""
        for device_id, state in list(self._unsaved.items()):
            if problem := self._store.save(state):
                self._problems[device_id] = problem
            else:
                self._problems.pop(device_id, None)
                self._saved[device_id] = self._unsaved.pop(device_id)


def _names_anew(saved: DeviceState | None, state: DeviceState) -> bool:
    return saved is None or _hardware(saved) != _hardware(state)


def _hardware(state: DeviceState) -> object:
    return state.has_twin, [(port.name, port.origin, port.usb) for port in state.ports]
