"""Devices that move between sockets while nobody looks: each keeps its own ID.

The world here knows which device is behind a name. The inventory is told what a source would see,
a batch at a time, and is held to the world's truth whenever all has been told.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import all_ports, gone, present, usb_port
from usbplugin.discovery import Fact, Port, Readiness, Unit
from usbplugin.inventory import Health, HealthPolicy, Inventory, ResourceRule

RESOURCE = "usbplugin/serial"
SOCKETS = 6


@dataclass
class Stick:
    """A USB device with ``ports`` ports; one without a serial is known by its socket."""

    serial: str
    ports: int
    socket: int | None = None
    names: dict[str, int] = field(default_factory=dict)
    """Its ports' names, with their interface, while it is plugged in."""
    life: int = 0


class World:
    """What is really plugged in, and what a source that looks now can see of it."""

    def __init__(self, sticks: list[Stick], *, udevd: bool) -> None:
        self.sticks = sticks
        self._udevd = udevd
        self._lives = count(1)
        self._seen: dict[str, int] = {}
        self._touched: set[str] = set()

    def toggle(self, stick: Stick, socket: int) -> None:
        """Pull it out, or plug it in at that socket or the next free one."""
        if stick.socket is not None:
            self._touched |= stick.names.keys()
            stick.socket, stick.names = None, {}
            return
        taken = {one.socket for one in self.sticks}
        stick.socket = next(
            s % SOCKETS for s in range(socket, socket + SOCKETS) if s % SOCKETS not in taken
        )
        stick.life = next(self._lives)
        for interface in range(stick.ports):
            used = {name for one in self.sticks for name in one.names}
            name = next(name for n in count() if (name := f"ttyUSB{n}") not in used)
            stick.names[name] = interface
            self._touched.add(name)

    def looks(self, *, settled: bool) -> list[Fact]:
        """What a source finds that was told which names to look at: name by name."""
        facts: list[Fact] = []
        for name in sorted(self._touched):
            port = self._port(name, settled=settled)
            if name in self._seen and self._replaced(name):
                facts.append(gone(usb_port(name)))
            if port is not None:
                facts.append(present(port))
        if settled:
            self._touched.clear()
        self._remember()
        return facts

    def listing(self) -> list[Fact]:
        """What a source posts that looks at everything."""
        ports = [self._port(name, settled=True) for one in self.sticks for name in one.names]
        replaced = [gone(usb_port(name)) for name in sorted(self._seen) if self._replaced(name)]
        self._touched.clear()
        self._remember()
        return [*replaced, all_ports(*(port for port in ports if port is not None))]

    def behind(self, name: str) -> Stick | None:
        return next((one for one in self.sticks if name in one.names), None)

    def _replaced(self, name: str) -> bool:
        stick = self.behind(name)
        return stick is None or stick.life != self._seen[name]

    def _remember(self) -> None:
        self._seen = {name: one.life for one in self.sticks for name in one.names}

    def _port(self, name: str, *, settled: bool) -> Port | None:
        stick = self.behind(name)
        if stick is None:
            return None
        readiness = Readiness.UNCONFIRMED
        if self._udevd:
            readiness = Readiness.READY if settled else Readiness.SETTLING
        return usb_port(
            name,
            serial=stick.serial,
            location=f"pci-{stick.socket}",
            interface=stick.names[name],
            readiness=readiness,
            initialized_usec=stick.life if readiness is Readiness.READY else 0,
        )


def expected_ids(stick: Stick, unit: Unit) -> list[str]:
    head = f"usb-0403:6001-{stick.serial or f'at-pci-{stick.socket}'}"
    if unit is Unit.USB_DEVICE:
        return [head]
    return [f"{head}-if{interface:02d}" for interface in range(stick.ports)]


def hold_to_the_truth(inventory: Inventory, world: World, unit: Unit) -> None:
    ready = {
        device.id: device
        for device in inventory.snapshot(RESOURCE).devices
        if device.health is Health.READY
    }
    wanted = {
        device_id: stick
        for stick in world.sticks
        if stick.socket is not None
        for device_id in expected_ids(stick, unit)
    }
    assert ready.keys() == wanted.keys()
    for device_id, device in ready.items():
        assert all(world.behind(port.name) is wanted[device_id] for port in device.ports)


sticks = st.lists(st.sampled_from(["AAA", "BBB", "CCC", "", ""]), min_size=2, max_size=5).flatmap(
    lambda serials: st.tuples(
        *(
            st.builds(Stick, st.just(serial), st.sampled_from([1, 1, 2, 4]))
            for serial in {s: None for s in serials if s} or {"AAA": None}
        ),
        *(st.builds(Stick, st.just(""), st.sampled_from([1, 2])) for s in serials if not s),
    )
)
moves = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, 4), st.integers(0, SOCKETS - 1)), min_size=1, max_size=8),
        st.sampled_from(["look", "look", "two looks", "listing"]),
    ),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize("unit", Unit)
@given(found=sticks, history=moves, udevd=st.booleans())
def test_a_unique_serial_gets_its_own_id_wherever_it_is_plugged_in(
    unit: Unit,
    found: tuple[Stick, ...],
    history: list[tuple[list[tuple[int, int]], str]],
    udevd: bool,  # noqa: FBT001 -- drawn
) -> None:
    world = World(list(found), udevd=udevd)
    inventory = Inventory([ResourceRule(RESOURCE, unit=unit)], HealthPolicy(flaps=60))
    now = 0.0
    for plugs, kind in history:
        for index, socket in plugs:  # all of it before the source gets to look
            world.toggle(world.sticks[index % len(world.sticks)], socket)
        if kind == "two looks":
            inventory.apply(world.looks(settled=False), now := now + 1)
        facts = world.listing() if kind == "listing" else world.looks(settled=True)
        inventory.apply(facts, now := now + 1)
        inventory.apply([], now := now + 30)
        hold_to_the_truth(inventory, world, unit)
        inventory.apply(world.listing(), now := now + 30)
        inventory.apply([], now := now + 30)
        hold_to_the_truth(inventory, world, unit)


def test_two_sticks_that_swap_sockets_in_one_batch_are_no_twins() -> None:
    inventory = Inventory([ResourceRule(RESOURCE)])
    before = [
        usb_port("ttyUSB0", serial="AAA", location="1"),
        usb_port("ttyUSB1", serial="BBB", location="2"),
    ]
    after = [
        usb_port("ttyUSB0", serial="BBB", location="1"),
        usb_port("ttyUSB1", serial="AAA", location="2"),
    ]
    inventory.apply([all_ports(*before)], 0.0)
    inventory.apply([present(port) for port in after], 1.0)
    nodes = {device.id: device.nodes for device in inventory.snapshot(RESOURCE).devices}
    assert nodes == {
        "usb-0403:6001-AAA-if00": ("/dev/ttyUSB1",),
        "usb-0403:6001-BBB-if00": ("/dev/ttyUSB0",),
    }


def test_the_last_word_of_a_batch_on_a_name_counts() -> None:
    inventory, port = Inventory([ResourceRule(RESOURCE)]), usb_port("ttyUSB0", serial="AAA")
    inventory.apply([present(port), gone(port)], 0.0)
    assert inventory.ports == {}
    inventory.apply([gone(port), present(port)], 1.0)
    assert [d.health for d in inventory.snapshot(RESOURCE).devices] == [Health.READY]
    inventory.apply([present(port), all_ports()], 2.0)
    assert [d.health for d in inventory.snapshot(RESOURCE).devices] == [Health.UNPLUGGED]
