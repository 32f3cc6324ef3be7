"""Sees to it that states get to disk: what cannot be written now is tried again later."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from usbplugin.custody.state import StateStore
    from usbplugin.inventory import DeviceState


class Saving:
    """The states that are not on disk yet."""

    def __init__(self, store: StateStore) -> None:
        """Save to ``store``."""
        self._store = store
        self._unsaved: dict[str, DeviceState] = {}

    def add(self, states: Iterable[DeviceState]) -> None:
        """These have changed."""
        self._unsaved |= {state.id: state for state in states}

    def restore(self, state: DeviceState) -> None:
        """Write a listed device's state again if somebody has deleted it."""
        if not self._store.is_kept(state.id):
            self._unsaved.setdefault(state.id, state)

    def drop(self, device_id: str) -> None:
        """The device is forgotten."""
        self._unsaved.pop(device_id, None)

    def save(self) -> None:
        """Write what is not on disk; what fails stays to be written."""
        self._unsaved = {
            device_id: state
            for device_id, state in self._unsaved.items()
            if not self._store.save(state)
        }
