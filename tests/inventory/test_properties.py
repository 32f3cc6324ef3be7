"""For any sequence of facts, what must always hold."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import all_ports, gone, present, usb_port
from usbplugin.discovery import Fact, Port, Readiness
from usbplugin.discovery.identity import ID_FORM
from usbplugin.discovery.port import printable
from usbplugin.inventory import Inventory, ResourceRule, Selector

ACM = "usbplugin/acm"
SERIAL = "usbplugin/serial"
RULES = (ResourceRule(ACM, (Selector(node="/dev/ttyACM*"),)), ResourceRule(SERIAL))

# Few values, so that collisions are the rule: equal serials, reused names, reused places.
serials = st.sampled_from(["", "0001", "SAME", "OTHER", "at-1", "X" * 126]) | st.binary(
    max_size=12
).map(printable)
names = st.sampled_from(["ttyUSB0", "ttyUSB1", "ttyUSB2", "ttyACM0", "ttyACM1"])


@st.composite
def ports(draw: st.DrawFn) -> Port:
    return usb_port(
        draw(names),
        serial=draw(serials),
        location=draw(st.sampled_from(["1", "2", "3", "2.1"])),
        interface=draw(st.sampled_from([0, 2])),
        readiness=draw(st.sampled_from(Readiness)),
        fault=draw(st.sampled_from(["", "", "", "it is a directory"])),
        initialized_usec=draw(st.integers(0, 3)),
    )


@st.composite
def facts(draw: st.DrawFn) -> Fact:
    match draw(st.sampled_from(["present", "present", "gone", "all"])):
        case "present":
            return present(draw(ports()))
        case "gone":
            return gone(usb_port(draw(names)))
        case _:
            listed = draw(st.lists(ports(), max_size=5, unique_by=lambda port: port.name))
            return all_ports(*listed)


Place = tuple[object, ...]


def place(port: Port) -> Place:
    """What is physically told apart: descriptors, interface, and where it is plugged in."""
    usb = port.usb
    assert usb is not None
    return (usb.vendor_id, usb.product_id, usb.serial, usb.interface, usb.location)


@settings(max_examples=300)
@given(batches=st.lists(st.lists(facts(), max_size=6), max_size=25))
def test_invariants(batches: list[list[Fact]]) -> None:
    inventory = Inventory(RULES)
    told_apart_by: set[object]
    names_of: dict[str, set[Place]] = defaultdict(set)
    for step, batch in enumerate(batches):
        inventory.apply(batch, float(step))
        devices = [d for rule in RULES for d in inventory.snapshot(rule.name).devices]
        ids = [device.id for device in devices]
        assert len(ids) == len(set(ids)), "an ID is listed twice"
        assert all(ID_FORM.fullmatch(device_id) and len(device_id) <= 63 for device_id in ids)

        here = {port.name: port for port in inventory.ports.values()}
        usable = [device for device in devices if device.health.is_usable]
        for device in usable:
            (port,) = device.ports
            assert port.name in here, "listed as healthy, and not present"
            assert place(here[port.name]) == place(port)
            assert not port.fault
            names_of[device.id].add(place(port))
        shown = [device.ports[0].name for device in usable]
        assert len(shown) == len(set(shown)), "one port is healthy under two IDs"

    for device_id, places in names_of.items():
        if "-at-" in device_id:
            told_apart_by = {location for *_, location in places}
        else:
            told_apart_by = {tuple(descriptors) for *descriptors, _ in places}
        assert len(told_apart_by) == 1, f"{device_id} named different devices"


@given(
    arrivals=st.lists(ports(), min_size=1, max_size=6, unique_by=lambda port: port.name),
    rounds=st.lists(st.permutations(range(6)), max_size=5),
)
def test_ids_are_stable_when_devices_return_to_their_places(
    arrivals: list[Port], rounds: list[list[int]]
) -> None:
    settled = {place(port): port for port in arrivals if port.readiness is not Readiness.SETTLING}
    # One device per place and interface, as the kernel would have it.
    by_place = {key[3:]: port for key, port in settled.items()}
    devices = list(by_place.values())
    inventory = Inventory((ResourceRule(SERIAL),))

    def ids() -> dict[Place, str]:
        return {place(d.ports[0]): d.id for d in inventory.snapshot(SERIAL).devices}

    inventory.apply([present(port) for port in devices], 0.0)
    first = ids()
    assert len(first) == len(devices)
    for step, order in enumerate(rounds):
        inventory.apply([gone(port) for port in devices], step + 0.3)
        for index in order:
            if index < len(devices):
                inventory.apply([present(devices[index])], step + 0.6)
        assert ids() == first
