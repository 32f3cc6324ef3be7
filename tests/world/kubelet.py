"""Pods and their containers, what the kubelet notes and replays, and what runtimes make of it."""

from __future__ import annotations

import base64
import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.world.hardware import STICKS
from usbplugin.discovery import DeviceNumber
from usbplugin.inventory import HeldDevice
from usbplugin.inventory.shares import share_ids

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from tests.world.hardware import Kernel, Stick, Tty
    from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
    from usbplugin.custody import Offer
    from usbplugin.inventory import Device

    Node = tuple[str, int]
    """A device node in a container: its path, or the CDI name that it is from, and which one."""

CHECKPOINT = "kubelet_internal_checkpoint"

_BY_SERIAL = re.compile(r"usb-[0-9a-f]{4}:[0-9a-f]{4}-(?!at-|once-)")


@dataclass(eq=False)
class Given:
    """The hardware that a container was given, as the world knows it."""

    tty: Tty
    device_id: str
    listed_id: str
    copies: set[Stick] = field(default_factory=set)
    """Those that went by its serial before anybody could know better, and itself."""

    was_replaced: bool = False
    """Whether something else has been plugged in where it was given by its place."""

    def __post_init__(self) -> None:
        self.copies.add(self.tty.stick)
        self.last_socket = self.tty.socket

    @property
    def is_by_serial(self) -> bool:
        return _BY_SERIAL.match(self.device_id) is not None

    def is_meant(self, tty: Tty) -> bool:
        """Whether a container that was given this may open that."""
        if tty.stick.ttys[tty.index] != self.tty.stick.ttys[self.tty.index]:
            return False
        return tty.stick in self.copies if self.is_by_serial else self._is_in_its_place(tty)

    def is_of(self, tty: Tty) -> bool:
        """Whether that is a port of the hardware that was given, as anybody can tell."""
        if tty.stick is not self.tty.stick:
            return False
        if self.is_by_serial:
            # One that has copies is not recognised in another socket.
            is_plain = not any(map(tty.stick.is_copy_of, set(STICKS) - {tty.stick}))
            return is_plain or tty.life == self.tty.life
        return self._is_in_its_place(tty) and not self.was_replaced

    def may_be_of(self, tty: Tty) -> bool:
        """Whether that looks like a port of the hardware that was given."""
        if self.is_by_serial:
            return tty.stick.is_copy_of(self.tty.stick)
        return self._is_in_its_place(tty)

    def _is_in_its_place(self, tty: Tty) -> bool:
        if self.tty.socket.is_virtual:  # no place at all: only this plugging-in counts
            return tty.life == self.tty.life
        model = (self.tty.stick.vendor, self.tty.stick.product)
        return (
            tty.socket is self.tty.socket
            and (
                tty.stick.vendor,
                tty.stick.product,
            )
            == model
        )


@dataclass(eq=False)
class Container:
    """A container of a pod that was admitted."""

    pod: str
    resource: str
    ids: tuple[str, ...]
    shares: int
    answer: v1beta1.ContainerAllocateResponse
    given: dict[Node, Given]
    nodes: dict[Node, DeviceNumber] = field(default_factory=dict)
    """What it runs with; nothing if it does not run."""
    kept_open: frozenset[DeviceNumber] = frozenset()
    believed: frozenset[DeviceNumber] = frozenset()
    """The numbers that it may have for all that anybody but itself can know."""
    is_known: bool = True
    """Whether the plugin can know of it at all."""
    was_forgotten: bool = False
    """Whether the plugin has once lost all that it knew of it."""
    has_known_numbers: bool = True
    """Whether the plugin can know with which numbers it runs."""

    @property
    def is_of_a_claim(self) -> bool:
        """Whether a claim gave it what it has, and not the device plugin."""
        return False

    def is_offered_as(self, device: Device, offer: Offer) -> bool:
        """Whether what it has is what is offered: then others may have the rest of the shares."""
        listed = share_ids(device.id, offer.shares)
        is_of_it = self.resource == device.resource and not offer.by_claim
        return is_of_it and any(one.listed_id in listed for one in self.given.values())

    def terms(self, given: Given) -> tuple[object, ...]:
        """On what terms it has something."""
        # How many containers share it may change, but not whether it is shared at all.
        return (self.resource, given.device_id, self.shares > 1)

    @property
    def runs(self) -> bool:
        return bool(self.nodes)

    def end(self) -> None:
        """It ends, and so closes all that it had open."""
        self.nodes = {}
        self.kept_open = frozenset()

    def __repr__(self) -> str:
        return f"{self.pod}[{self.resource} {', '.join(self.ids)}]"


class Kubelet:
    """Whom it has admitted, and what it has noted. It never changes an answer."""

    def __init__(self, directory: Path) -> None:
        self.containers: list[Container] = []
        self._gone: list[Container] = []
        self._checkpoint = directory / CHECKPOINT
        self._count = 0

    def next_pod(self) -> str:
        self._count += 1
        return f"pod{self._count}"

    def held(self) -> list[HeldDevice]:
        """What PodResources answers."""
        return [
            HeldDevice(one.resource, listed_id, f"default/{one.pod}/main")
            for one in self.containers
            for listed_id in one.ids
        ]

    def free(self, resource: str, healthy: Iterable[str]) -> list[str]:
        """The IDs of a resource that a pod could be given."""
        taken = {i for one in self.containers if one.resource == resource for i in one.ids}
        return [listed_id for listed_id in healthy if listed_id not in taken]

    def admit(self, container: Container) -> None:
        """A pod is admitted; its answer is noted, and those of pods that have gone are dropped."""
        self.containers.append(container)
        self._gone.clear()
        self.note()

    def delete(self, container: Container) -> None:
        """A pod is deleted. Its entry stays for the time being."""
        container.end()
        self.containers.remove(container)
        self._gone.append(container)

    def lose_notes(self) -> None:
        """Somebody has deleted the checkpoint."""
        self._checkpoint.unlink(missing_ok=True)

    @property
    def has_notes(self) -> bool:
        return self._checkpoint.exists()

    def note(self) -> None:
        """Write the checkpoint."""
        noted = (one for one in (*self._gone, *self.containers) if not one.is_of_a_claim)
        entries = [_entry(one) for one in noted] or None
        data: dict[str, object] = {"PodDeviceEntries": entries, "RegisteredDevices": {}}
        self._checkpoint.write_text(json.dumps({"Data": data, "Checksum": 0}))


def _entry(container: Container) -> dict[str, object]:
    return {
        "PodUID": f"uid-of-{container.pod}",
        "ContainerName": "main",
        "ResourceName": container.resource,
        "DeviceIDs": {"-1": list(container.ids)},
        "AllocResp": base64.b64encode(container.answer.SerializeToString()).decode(),
    }


class Runtime:
    """Follows links and reads CDI specs, as container runtimes do when a container starts."""

    def __init__(self, kernel: Kernel, cdi: Path) -> None:
        self._kernel = kernel
        self._cdi = cdi

    def number_behind(self, path: str) -> DeviceNumber | None:
        """The number of the node that a path leads to, if it leads to one."""
        with suppress(OSError):  # it is no link
            path = os.readlink(path)
        return self._kernel.number_behind(path)

    def nodes(
        self, answer: v1beta1.ContainerAllocateResponse
    ) -> Mapping[Node, DeviceNumber] | None:
        """The nodes that a container gets by an answer; None if it cannot be started."""
        found: dict[Node, DeviceNumber] = {}
        for device in answer.devices:
            number = self.number_behind(device.host_path)
            if number is None:
                return None
            found[device.container_path, 0] = number
        for one in answer.cdi_devices:
            numbers = self._injected(one.name)
            if numbers is None:
                return None
            found |= {(one.name, index): number for index, number in enumerate(numbers)}
        return found

    def _injected(self, name: str) -> Sequence[DeviceNumber] | None:
        """The numbers that the specs tell for a CDI device; None if they name no such one."""
        kind, _, device_name = name.partition("=")
        for path in sorted(self._cdi.glob("*.json")):
            spec = json.loads(path.read_bytes())
            for device in spec["devices"] if spec["kind"] == kind else ():
                if device["name"] == device_name:
                    nodes = device["containerEdits"]["deviceNodes"]
                    return [DeviceNumber(node["major"], node["minor"]) for node in nodes]
        return None
