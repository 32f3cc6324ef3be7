"""What was told of the devices last, and how that differs from what they are now. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usbplugin.inventory.device import Change, Device, DeviceState, Snapshot, Update

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Publication:
    """Devices as they were published last, each resource's snapshot, and each one's state."""

    def __init__(self, resources: Iterable[str]) -> None:
        """Begin with an empty snapshot of each resource."""
        self._devices: dict[str, Device] = {}
        self._states: dict[str, DeviceState] = {}
        self._snapshots = {name: Snapshot(name) for name in resources}

    def snapshot(self, resource: str) -> Snapshot:
        """The latest snapshot of a resource.

        Raises:
            KeyError: there is no such resource.
        """
        return self._snapshots[resource]

    def find(self, device_id: str) -> Device | None:
        """The device of that ID, of whatever resource."""
        return self._devices.get(device_id)

    def state(self, device_id: str) -> DeviceState | None:
        """What was to be on disk of a device; None if it is not listed."""
        return self._states.get(device_id)

    def restore(self, state: DeviceState) -> None:
        """This is on disk already."""
        self._states[state.id] = state

    def take_over(self, predecessor: Publication) -> frozenset[str]:
        """Go on from what was told under other rules; returns the IDs of all that was."""
        self._devices = dict(predecessor._devices)
        self._snapshots |= {
            name: snapshot
            for name, snapshot in predecessor._snapshots.items()
            if name in self._snapshots
        }
        return frozenset(self._devices)

    @property
    def devices(self) -> tuple[Device, ...]:
        """All devices, those included that no resource offers any longer."""
        return tuple(self._devices.values())

    def publish(
        self,
        changed: Iterable[str],
        describe: Callable[[str], tuple[Device, DeviceState] | None],
    ) -> Update:
        """Tell of devices that may have changed.

        Args:
            changed: Their IDs, those of forgotten ones included.
            describe: A device as it is now, and its state; None if it is not to be listed.
        """
        changes, to_save = [], []
        touched: set[str] = set()
        for device_id in sorted(changed):
            before = self._devices.get(device_id)
            after = None
            if described := describe(device_id):
                after, state = described
                if self._states.get(device_id) != state:
                    self._states[device_id] = state
                    to_save.append(state)
            else:
                self._states.pop(device_id, None)
            if after is not None:
                self._devices[device_id] = after
            elif before is not None:
                del self._devices[device_id]
            if before == after:
                continue
            touched |= {device.resource for device in (before, after) if device is not None}
            if device := after or before:
                changes.append(
                    Change(
                        device,
                        before=before.health if before else None,
                        after=after.health if after else None,
                    )
                )
        touched &= self._snapshots.keys()  # a reload may have ended one
        for resource in touched:
            listed = (device for device in self._devices.values() if device.resource == resource)
            self._snapshots[resource] = Snapshot(resource, tuple(listed))
        return Update(
            tuple(self._snapshots[resource] for resource in sorted(touched)),
            tuple(changes),
            tuple(to_save),
        )
