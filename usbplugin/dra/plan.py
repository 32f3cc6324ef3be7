"""What the slices are to say, against what the API server has acknowledged. Pure, and mutable."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from usbplugin.dra.device import entry_of
from usbplugin.dra.slices import MOST_SLICES, slices_of
from usbplugin.dra.taints import Effect, Taint, eviction_at, taints_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from usbplugin.dra.contracts import PublishedDevice
    from usbplugin.dra.device import Entry
    from usbplugin.dra.slices import Pool, ResourceSlice


class Plan:
    """The slices of a pool: as wanted, as acknowledged, and what to apply next."""

    def __init__(self) -> None:
        """Begin with nothing wanted, and nothing acknowledged."""
        self._devices: dict[str, PublishedDevice] = {}
        self._entries: dict[str, tuple[PublishedDevice, tuple[Taint, ...], Entry]] = {}
        self._refused: dict[str, Entry] = {}
        """What the API server does not take, until it is another one."""
        self._acknowledged: dict[int, ResourceSlice] = {}
        self._to_confirm: set[int] = set()
        self.keeps_taints: bool | None = None
        """Whether the API server keeps taints; None if it is not known."""
        self.wanted: list[ResourceSlice] = []

    @property
    def names(self) -> Iterable[str]:
        """The devices that are to be published."""
        return self._devices.keys()

    @property
    def refused(self) -> Sequence[str]:
        """The devices that are not, for the API server does not take them."""
        return sorted(self._refused)

    @property
    def acknowledged(self) -> int:
        """How many slices the API server has."""
        return len(self._acknowledged)

    @property
    def taints(self) -> dict[str, tuple[str, ...]]:
        """The taints that the API server has, by the device's ID, for people."""
        return {
            self._devices[entry.name].device.id: tuple(map(str, entry.taints))
            for known in self._acknowledged.values()
            for entry in known.spec.devices
            if entry.taints and entry.name in self._devices
        }

    def want(self, devices: Iterable[PublishedDevice]) -> None:
        """These are all devices."""
        self._devices = {device.name: device for device in devices}

    def next_eviction(self, after: float) -> float | None:
        """When time alone changes a taint next, in seconds of the Unix epoch."""
        moments = (eviction_at(device) for device in self._devices.values())
        return min((at for at in moments if at is not None and at > after), default=None)

    def draw(self, pool: Pool, node: str, node_uid: str, now: float) -> None:
        """Decide what each slice is to say now."""
        entries = {}
        for name, device in self._devices.items():
            entry = self._entry(device, taints_of(device, now))
            if name in self._refused and self._refused[name] == _without_taints(entry):
                continue
            self._refused.pop(name, None)
            if entry.taints and self.keeps_taints is False:
                continue  # without its taints, any pod might be given it
            entries[name] = entry
        self._entries = {n: kept for n, kept in self._entries.items() if n in self._devices}
        self._refused = {n: entry for n, entry in self._refused.items() if n in self._devices}
        self.wanted = slices_of(pool, entries, node, node_uid)

    def _entry(self, device: PublishedDevice, taints: tuple[Taint, ...]) -> Entry:
        known = self._entries.get(device.name)
        if known is not None and known[0] == device and known[1] == taints:
            return known[2]
        entry = entry_of(device, taints)
        self._entries[device.name] = (device, taints, entry)
        return entry

    def confirm(self, besides: Collection[int] = ()) -> None:
        """Somebody may have deleted or edited any slice: each is to be applied again, but these."""
        self._to_confirm = set(range(MOST_SLICES)) - set(besides)

    @property
    def differs(self) -> bool:
        """Whether any slice is not as the API server has acknowledged it."""
        return any(
            self._acknowledged.get(number) != wanted for number, wanted in enumerate(self.wanted)
        ) or bool(self.excess)

    @property
    def excess(self) -> list[int]:
        """Slices that are acknowledged and are to be no more."""
        return sorted(number for number in self._acknowledged if number >= len(self.wanted))

    def changed(self) -> list[int]:
        """The slices that are not as acknowledged, in the order in which to apply them.

        Those that evict the most pods come first.
        """
        found = [
            number
            for number, wanted in enumerate(self.wanted)
            if self._acknowledged.get(number) != wanted
        ]
        return sorted(found, key=lambda number: (-self._evictions(number), number))

    def to_confirm(self) -> int | None:
        """The next slice that is only to be confirmed; None if there is none."""
        return min((n for n in self._to_confirm if n < len(self.wanted)), default=None)

    def _evictions(self, number: int) -> int:
        """How many more devices have NoExecute than the API server knows of."""
        known = self._acknowledged.get(number)
        return _evicting(self.wanted[number]) - (_evicting(known) if known else 0)

    def acknowledge(
        self, number: int, applied: ResourceSlice
    ) -> list[tuple[PublishedDevice, tuple[Taint, ...]]]:
        """The API server has this; returns the devices whose taints it has not had before."""
        before = self._acknowledged.get(number)
        self._acknowledged[number] = applied
        self._to_confirm.discard(number)
        had = {entry.name: entry.taints for entry in before.spec.devices} if before else {}
        return [
            (self._devices[entry.name], entry.taints)
            for entry in applied.spec.devices
            if entry.name in self._devices and entry.taints != had.get(entry.name, ())
        ]

    def forget(self, number: int) -> None:
        """The API server has no such slice any longer."""
        self._acknowledged.pop(number, None)

    def forget_all(self) -> None:
        """The API server has none."""
        self._acknowledged.clear()
        self._to_confirm.clear()

    def refuse(self, sent: ResourceSlice, indices: Iterable[int]) -> list[str]:
        """The API server does not take these devices of a slice; returns their names."""
        devices = sent.spec.devices
        refused = [devices[index] for index in indices if index < len(devices)]
        for entry in refused:
            self._refused[entry.name] = _without_taints(entry)
        return [entry.name for entry in refused]


def _without_taints(entry: Entry) -> Entry:
    return msgspec.structs.replace(entry, taints=()) if entry.taints else entry


def _evicting(one: ResourceSlice) -> int:
    return sum(
        taint.effect is Effect.NO_EXECUTE for entry in one.spec.devices for taint in entry.taints
    )
