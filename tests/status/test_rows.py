"""Rows: every port that is there has one, with the reason if it is no device's."""

from __future__ import annotations

from tests.support import all_ports, gone, present, usb_port
from usbplugin.commands.table import scan
from usbplugin.discovery import Port, Post, Unit
from usbplugin.inventory import HealthPolicy, Inventory, ResourceRule, Selector
from usbplugin.status.rows import Row, rows

FTDI = ResourceRule("a/ftdi", (Selector(vendor="0403"),))
MODEM = ResourceRule("a/modem", unit=Unit.USB_DEVICE)
MODEM_PORTS = (usb_port("ttyUSB0", interface=0), usb_port("ttyUSB1", interface=1))


class Here:
    """A source that sees these ports."""

    name = "here"

    def __init__(self, *ports: Port) -> None:
        self._ports = ports

    def run(self, post: Post) -> None:
        raise NotImplementedError

    def scan(self) -> tuple[Port, ...]:
        return self._ports

    def stop(self) -> None:
        raise NotImplementedError


def shown(inventory: Inventory, rule: ResourceRule) -> list[Row]:
    return rows(inventory.snapshot(rule.name).devices, inventory.ports.values(), [rule])


def about(found: list[Row]) -> list[tuple[object, ...]]:
    return [(row["node"], row["health"], row["reason"]) for row in found]


def test_a_port_under_the_node_of_an_unplugged_device_is_shown() -> None:
    inventory = Inventory([FTDI])
    inventory.apply([all_ports(usb_port())], now=0.0)
    inventory.apply([gone(usb_port()), present(usb_port(vendor_id="10c4"))], now=1.0)
    assert about(shown(inventory, FTDI)) == [
        ("/dev/ttyUSB0", "unplugged", "/dev/ttyUSB0 is gone"),
        ("/dev/ttyUSB0", "", "no resource selects it"),
    ]


def test_a_port_under_the_node_of_a_missing_port_is_shown() -> None:
    rule = ResourceRule("a/modem", (Selector(vendor="0403"),), unit=Unit.USB_DEVICE)
    inventory = Inventory([rule])
    inventory.apply([all_ports(*MODEM_PORTS)], now=0.0)
    inventory.apply([], now=HealthPolicy().group_settle)
    inventory.apply([gone(MODEM_PORTS[1]), present(usb_port("ttyUSB1", vendor_id="10c4"))], now=2.0)
    missing = "if01 (/dev/ttyUSB1) of its 2 ports are missing"
    assert about(shown(inventory, rule)) == [
        ("/dev/ttyUSB0", "incomplete", missing),
        ("/dev/ttyUSB1", "incomplete", missing),
        ("/dev/ttyUSB1", "", "no resource selects it"),
    ]


def test_a_device_that_is_there_has_its_ports_once() -> None:
    broken = usb_port("ttyUSB1", serial="B", location="0-2", fault="/dev/ttyUSB1: wrong numbers")
    inventory = Inventory([FTDI])
    inventory.apply([all_ports(usb_port(), broken)], now=0.0)
    assert about(shown(inventory, FTDI)) == [
        ("/dev/ttyUSB0", "ready", ""),
        ("/dev/ttyUSB1", "broken", "/dev/ttyUSB1: wrong numbers"),
    ]


def test_ports_that_wait_for_their_siblings_say_so() -> None:
    inventory = Inventory([MODEM])
    inventory.apply([all_ports(*MODEM_PORTS)], now=0.0)
    waiting = "waiting for its device's other ports"
    assert about(shown(inventory, MODEM)) == [
        ("/dev/ttyUSB0", "", waiting),
        ("/dev/ttyUSB1", "", waiting),
    ]


def test_a_port_whose_number_another_source_has_says_so() -> None:
    for rule in (FTDI, MODEM):
        inventory = Inventory([rule])
        inventory.apply([all_ports(usb_port()), all_ports(usb_port("ttyUSB00"), source="b")], 0.0)
        inventory.apply([], now=HealthPolicy().group_settle)
        assert about(shown(inventory, rule)) == [
            ("/dev/ttyUSB0", "ready", ""),
            ("/dev/ttyUSB00", "", "another port has its device number"),
        ]


def test_a_port_whose_place_another_one_has_says_so() -> None:
    for rule in (FTDI, MODEM):
        inventory = Inventory([rule])
        inventory.apply([all_ports(usb_port("ttyUSB0"), usb_port("ttyUSB1"))], 0.0)
        inventory.apply([], now=HealthPolicy().group_settle)
        assert about(shown(inventory, rule)) == [
            ("/dev/ttyUSB1", "ready", ""),
            ("/dev/ttyUSB0", "", "another port is at its place"),
        ]


def test_a_scan_shows_a_device_of_several_ports_at_once() -> None:
    assert about(scan([Here(*MODEM_PORTS)], [MODEM])) == [
        ("/dev/ttyUSB0", "ready", ""),
        ("/dev/ttyUSB1", "ready", ""),
    ]
