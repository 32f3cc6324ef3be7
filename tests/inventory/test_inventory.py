from __future__ import annotations

import msgspec
import pytest

from tests.support import all_ports, gone, present, usb_port
from usbplugin.discovery import Fact, IdentityMode, Port, Readiness, Unit
from usbplugin.inventory import (
    Device,
    DeviceState,
    Grant,
    GrantedPort,
    Health,
    HealthPolicy,
    HeldDevice,
    Inventory,
    ResourceRule,
    Selector,
)
from usbplugin.inventory.inventory import MOST_ABSENT

SERIAL = "usbplugin/serial"
RETENTION = HealthPolicy().retention


class Replay:
    """An inventory with a clock that the test moves."""

    def __init__(self, *rules: ResourceRule) -> None:
        self.inventory = Inventory(rules or (ResourceRule(SERIAL),))
        self.now = 100.0

    def __call__(self, *facts: Fact) -> dict[str, Health]:
        self.inventory.apply(facts, self.now)
        return self.health()

    def health(self, resource: str = SERIAL) -> dict[str, Health]:
        return {d.id: d.health for d in self.inventory.snapshot(resource).devices}

    def device(self, device_id: str) -> Device:
        device = self.inventory.find(device_id)
        assert device is not None
        return device


A = "usb-0403:6001-A5069RR4-if00"


def test_a_settled_port_is_listed_ready() -> None:
    assert Replay()(present(usb_port())) == {A: Health.READY}


def test_a_port_is_not_listed_before_udevd_is_done() -> None:
    replay = Replay()
    assert replay(present(usb_port(readiness=Readiness.SETTLING))) == {}
    assert replay(present(usb_port())) == {A: Health.READY}


def test_where_no_udevd_confirms_a_port_is_listed_all_the_same() -> None:
    assert Replay()(present(usb_port(readiness=Readiness.UNCONFIRMED))) == {A: Health.READY}


def test_udevd_at_work_again_does_not_take_a_device_away() -> None:
    replay = Replay()
    replay(present(usb_port()))
    assert replay(present(usb_port(readiness=Readiness.SETTLING))) == {A: Health.READY}


def test_an_unplugged_device_stays_listed_with_its_reason() -> None:
    replay = Replay()
    replay(present(usb_port()))
    assert replay(gone(usb_port())) == {A: Health.UNPLUGGED}
    assert replay.device(A).reason == "/dev/ttyUSB0 is gone"


def test_a_device_that_comes_and_goes_in_one_batch_is_never_listed() -> None:
    replay = Replay()
    update = replay.inventory.apply([present(usb_port()), gone(usb_port())], 1.0)
    assert update.snapshots == ()
    assert update.changes == ()
    assert replay.health() == {}


def test_a_replug_under_another_name_is_the_same_device() -> None:
    replay = Replay()
    replay(present(usb_port("ttyUSB0")))
    replay(gone(usb_port("ttyUSB0")))
    assert replay(present(usb_port("ttyUSB5", location="0000:00:14.0-3"))) == {A: Health.READY}
    assert replay.device(A).ports[0].node == "/dev/ttyUSB5"


def test_a_replug_within_one_batch_is_no_change_of_health() -> None:
    replay = Replay()
    replay(present(usb_port("ttyUSB0")))
    replay(gone(usb_port("ttyUSB0")), present(usb_port("ttyUSB1")))
    assert replay.health() == {A: Health.READY}
    assert replay.device(A).ports[0].node == "/dev/ttyUSB1"


def test_a_listing_removes_what_it_does_not_name() -> None:
    replay = Replay()
    replay(present(usb_port("ttyUSB0")), present(usb_port("ttyUSB1", serial="B")))
    health = replay(all_ports(usb_port("ttyUSB1", serial="B"), reason="overflow"))
    assert health == {A: Health.UNPLUGGED, "usb-0403:6001-B-if00": Health.READY}


def test_a_listing_of_one_source_says_nothing_of_another() -> None:
    replay = Replay()
    replay(present(usb_port()))
    assert replay(all_ports(source="directory:/x")) == {A: Health.READY}


def test_another_device_under_a_name_whose_loss_went_unseen() -> None:
    replay = Replay()
    replay(present(usb_port("ttyUSB0")))
    health = replay(present(usb_port("ttyUSB0", serial="B", location="0000:00:14.0-2")))
    assert health == {A: Health.UNPLUGGED, "usb-0403:6001-B-if00": Health.READY}


def test_a_node_that_is_not_what_sysfs_says_is_broken() -> None:
    replay = Replay()
    fault = "/dev/ttyUSB0 is not a character device"
    assert replay(present(usb_port(fault=fault))) == {A: Health.BROKEN}
    assert replay.device(A).reason == fault
    assert replay(present(usb_port())) == {A: Health.READY}
    assert replay.device(A).reason == ""


ONE = usb_port("ttyUSB0", serial="SAME", location="0000:00:14.0-1")
TWO = usb_port("ttyUSB1", serial="SAME", location="0000:00:14.0-2")
BY_SERIAL = "usb-0403:6001-SAME-if00"
AT_ONE = "usb-0403:6001-at-0000:00:14.0-1-if00"
AT_TWO = "usb-0403:6001-at-0000:00:14.0-2-if00"


def holders(replay: Replay) -> dict[str, str]:
    return {
        d.id: d.ports[0].usb.location
        for d in replay.inventory.snapshot(SERIAL).devices
        if d.ports[0].usb
    }


def test_of_two_equal_serials_the_first_keeps_the_id() -> None:
    replay = Replay()
    replay(present(ONE))
    replay(present(TWO))
    assert holders(replay) == {BY_SERIAL: "0000:00:14.0-1", AT_TWO: "0000:00:14.0-2"}


def test_at_start_udevds_times_tell_who_was_first() -> None:
    later = msgspec.structs.replace(ONE, initialized_usec=2_000)
    earlier = msgspec.structs.replace(TWO, initialized_usec=1_000)
    replay = Replay()
    replay(all_ports(later, earlier))
    assert holders(replay) == {BY_SERIAL: "0000:00:14.0-2", AT_ONE: "0000:00:14.0-1"}


def test_twins_never_swap_their_ids_whichever_is_replugged() -> None:
    replay = Replay()
    replay(present(ONE), present(TWO))
    before = holders(replay)
    for first, second in ((ONE, TWO), (TWO, ONE)):
        replay(gone(ONE), gone(TWO))
        replay(present(first))
        replay(present(second))
        assert holders(replay) == before


def test_a_twin_does_not_take_over_while_the_first_is_away() -> None:
    replay = Replay()
    replay(present(ONE), present(TWO))
    replay(gone(ONE), gone(TWO))
    moved = msgspec.structs.replace(
        TWO, usb=TWO.usb and msgspec.structs.replace(TWO.usb, location="0000:00:14.0-3")
    )
    replay(present(moved))
    health = replay.health()
    assert health[BY_SERIAL] is Health.UNPLUGGED
    assert health["usb-0403:6001-at-0000:00:14.0-3-if00"] is Health.READY


def test_a_device_without_serial_is_named_by_its_place() -> None:
    replay = Replay()
    replay(present(usb_port(serial="", location="0000:00:14.0-1")))
    replay(gone(usb_port()))
    health = replay(present(usb_port("ttyUSB4", serial="", location="0000:00:14.0-2")))
    assert health == {AT_ONE: Health.UNPLUGGED, AT_TWO: Health.READY}


def test_two_sources_that_see_one_character_device_list_it_once() -> None:
    replay = Replay()
    replay(present(usb_port()))
    copy = usb_port(origin="/somewhere")
    assert replay(present(copy, source="directory:/somewhere")) == {A: Health.READY}
    replay(gone(usb_port()))
    assert replay(present(copy, source="directory:/somewhere")) == {A: Health.READY}


def test_an_unplugged_device_is_forgotten_in_time() -> None:
    replay = Replay()
    replay(present(usb_port()))
    deadlines = [replay.inventory.deadline]
    replay(gone(usb_port()))
    deadlines.append(replay.inventory.deadline)
    replay.now += RETENTION - 1
    assert replay() == {A: Health.UNPLUGGED}
    replay.now += 1
    assert replay() == {}
    deadlines.append(replay.inventory.deadline)
    assert deadlines == [None, 100.0 + RETENTION, None]


def test_a_device_that_invents_serials_does_not_fill_the_memory() -> None:
    replay = Replay()
    for number in range(MOST_ABSENT + 50):
        replay.now += 1
        replay(present(usb_port(serial=f"S{number}X")))
    health = replay.health()
    assert len(health) == MOST_ABSENT + 1
    assert f"usb-0403:6001-S{MOST_ABSENT + 49}X-if00" in health


def test_the_first_resource_that_matches_takes_the_port() -> None:
    zigbee = ResourceRule("usbplugin/zigbee", (Selector(vendor="10c4", product="ea60"),))
    replay = Replay(zigbee, ResourceRule(SERIAL))
    replay(
        present(usb_port("ttyUSB0", vendor_id="10c4", product_id="ea60")),
        present(usb_port("ttyUSB1")),
    )
    assert list(replay.health("usbplugin/zigbee")) == ["usb-10c4:ea60-A5069RR4-if00"]
    assert list(replay.health()) == [A]


def test_a_port_that_no_resource_selects_is_not_listed() -> None:
    replay = Replay(ResourceRule(SERIAL, (Selector(vendor="10c4"),)))
    assert replay(present(usb_port())) == {}
    assert list(replay.inventory.ports.values()) == [usb_port()]


def test_only_resources_that_changed_get_a_new_snapshot() -> None:
    acm = ResourceRule("usbplugin/acm", (Selector(node="/dev/ttyACM*"),))
    replay = Replay(acm, ResourceRule(SERIAL))
    update = replay.inventory.apply([present(usb_port())], 1.0)
    assert [snapshot.resource for snapshot in update.snapshots] == [SERIAL]
    assert replay.inventory.apply([present(usb_port())], 2.0).snapshots == ()


def test_a_snapshot_finds_its_devices_by_id() -> None:
    replay = Replay()
    replay(present(usb_port()))
    snapshot = replay.inventory.snapshot(SERIAL)
    assert snapshot.by_id[A] is snapshot.devices[0]


def test_changes_tell_before_and_after() -> None:
    replay = Replay()

    def step(*facts: Fact) -> list[tuple[Health | None, Health | None]]:
        changes = replay.inventory.apply(facts, replay.now).changes
        return [(change.before, change.after) for change in changes]

    assert step(present(usb_port())) == [(None, Health.READY)]
    assert step(gone(usb_port())) == [(Health.READY, Health.UNPLUGGED)]
    replay.now += RETENTION
    assert step() == [(Health.UNPLUGGED, None)]


def test_identity_by_location_for_a_resource_that_asks_for_it() -> None:
    replay = Replay(ResourceRule(SERIAL, identity=IdentityMode.LOCATION))
    assert list(replay(present(usb_port()))) == [AT_ONE]


def test_a_bare_directory_entry_is_named_by_its_place() -> None:
    def entry(directory: str) -> Port:
        return msgspec.structs.replace(usb_port(), usb=None, origin=directory)

    replay = Replay()
    ids = replay(
        present(entry("/a"), source="directory:/a"),
        present(
            msgspec.structs.replace(entry("/b"), number=usb_port("ttyUSB9").number),
            source="directory:/b",
        ),
    )
    assert len(ids) == 2


@pytest.mark.parametrize("restarted", [False, True])
def test_a_twin_that_was_forgotten_is_not_taken_for_the_one_that_is_remembered(
    restarted: bool,  # noqa: FBT001 -- parametrized
) -> None:
    one, other = usb_port("ttyUSB0", location="1"), usb_port("ttyUSB1", location="2")
    replay = Replay()
    replay(present(one))
    replay.inventory.hold([HeldDevice(SERIAL, A, "default/pod/main")], replay.now, replay.now)
    replay(present(other))
    replay(gone(other))
    replay.now += RETENTION + 1
    assert replay(gone(one)) == {A: Health.UNPLUGGED}
    if restarted:
        states = [state_of(replay.inventory, A)]
        replay.inventory = Inventory((ResourceRule(SERIAL),), states=states, now=replay.now)
    replay.now += 1
    assert replay(present(other)) == {
        A: Health.UNPLUGGED,
        "usb-0403:6001-at-2-if00": Health.READY,
    }


def test_a_device_is_seen_under_a_new_name_before_its_old_one_is_known_to_be_gone() -> None:
    old, new = usb_port("ttyUSB0"), usb_port("ttyUSB5")
    for facts in ([all_ports(old, new)], [present(new), present(old)]):
        replay = Replay()
        replay(present(old))
        assert replay(*facts) == {A: Health.READY}
        assert replay(gone(old)) == {A: Health.READY}
        assert replay.device(A).nodes == ("/dev/ttyUSB5",)


def test_two_names_for_one_place_do_not_take_turns() -> None:
    replay = Replay()
    first, second = usb_port("ttyUSB0"), usb_port("ttyUSB5")
    replay(all_ports(first, second))
    for _ in range(20):
        update = replay.inventory.apply([all_ports(first, second, reason="period")], replay.now)
        assert update.changes == ()
        assert replay.device(A).nodes == ("/dev/ttyUSB5",)
    assert replay(all_ports(first)) == {A: Health.READY}
    assert replay.device(A).nodes == ("/dev/ttyUSB0",)


def copies(number: int, serial: str = "SAME") -> Port:
    """One of many devices that show the same serial, each in a place of its own."""
    return usb_port(f"ttyUSB{number}", serial=serial, location=f"0000:00:14.0-{number}")


def test_a_serial_that_two_devices_have_shown_identifies_neither_from_then_on() -> None:
    replay = Replay()
    replay(present(copies(1)), present(copies(2)))
    replay(gone(copies(1)), gone(copies(2)))
    replay(present(copies(3)))
    assert {name for name, health in replay.health().items() if health is Health.READY} == {
        "usb-0403:6001-at-0000:00:14.0-3-if00"
    }


def test_a_serial_shared_with_what_was_forgotten_identifies_nobody_after_a_restart() -> None:
    replay = Replay()
    memory: dict[str, DeviceState] = {}

    def step(*facts: Fact) -> None:
        for state in replay.inventory.apply(facts, replay.now).to_save:
            memory[state.id] = state

    step(present(copies(1)))
    step(present(copies(2)))
    step(gone(copies(2)))
    replay.now += RETENTION
    step()
    assert list(replay.health()) == [BY_SERIAL], "the other is forgotten"
    replay.inventory = Inventory(
        (ResourceRule(SERIAL),), states=[memory[BY_SERIAL]], now=replay.now
    )
    assert replay(all_ports(copies(2))) == {BY_SERIAL: Health.UNPLUGGED, AT_TWO: Health.READY}


def state_of(inventory: Inventory, device_id: str) -> DeviceState:
    state = inventory.state(device_id)
    assert state is not None
    return state


def test_a_serial_that_the_memory_has_of_two_devices_identifies_neither() -> None:
    """An earlier version did not write down that a serial is shared."""
    replay = Replay()
    replay(present(copies(1)), present(copies(2)))
    states = [
        msgspec.structs.replace(state_of(replay.inventory, name), has_twin=False)
        for name in (BY_SERIAL, AT_TWO)
    ]
    replay.inventory = Inventory((ResourceRule(SERIAL),), states=states, now=replay.now)
    assert replay(present(copies(3))) == {
        BY_SERIAL: Health.UNPLUGGED,
        AT_TWO: Health.UNPLUGGED,
        "usb-0403:6001-at-0000:00:14.0-3-if00": Health.READY,
    }


def test_a_serial_of_one_device_alone_identifies_it_whatever_others_are_remembered() -> None:
    replay = Replay()
    replay(present(copies(1)), present(copies(2, serial="OTHER")))
    replay(gone(copies(1)), gone(copies(2, serial="OTHER")))
    assert replay(present(copies(3)))[BY_SERIAL] is Health.READY


DIRECTORY = "directory:/somewhere"


def test_a_number_that_a_port_no_longer_has_may_be_one_of_another_source() -> None:
    replay = Replay()
    replay(present(usb_port("ttyUSB0")))
    replay(present(usb_port("ttyUSB0", number=usb_port("ttyUSB9").number)))
    entry = usb_port("ttyUSB1", serial="B", location="2", number=usb_port("ttyUSB0").number)
    assert replay(present(entry, source=DIRECTORY)) == {
        A: Health.READY,
        "usb-0403:6001-B-if00": Health.READY,
    }


def test_a_number_is_not_given_up_by_a_port_that_has_lost_it_to_another_one() -> None:
    one, other = usb_port("ttyUSB0"), usb_port("ttyUSB1", serial="B", location="2")
    replay = Replay()
    replay(present(one), present(other))
    swapped = [
        msgspec.structs.replace(one, number=other.number),
        msgspec.structs.replace(other, number=one.number),
    ]
    before = replay(*map(present, swapped))
    for port in swapped:
        copy = msgspec.structs.replace(port, name="ttyACM7", usb=None, origin="/somewhere")
        assert replay(present(copy, source=DIRECTORY)) == before, "it is listed already"
        replay(gone(copy, source=DIRECTORY))


def test_what_two_sources_show_is_taken_from_the_other_one_when_the_first_has_lost_it() -> None:
    replay = Replay()
    replay(present(usb_port()))
    copy = usb_port("ttyUSB5", number=usb_port().number, origin="/somewhere")
    replay(all_ports(copy, source=DIRECTORY))
    replay(gone(usb_port()))
    assert replay(all_ports(copy, source=DIRECTORY, reason="period")) == {A: Health.READY}
    assert replay.device(A).nodes == ("/dev/ttyUSB5",)


def unplugged(replay: Replay, serials: list[str]) -> None:
    """Devices that were here together, and were pulled one after the other."""
    ports = {
        serial: usb_port(f"ttyUSB{number}", serial=serial, location=f"1.{number}")
        for number, serial in enumerate(sorted(serials))
    }
    replay(*map(present, ports.values()))
    for serial in serials:
        replay.now += 1
        replay(gone(ports[serial]))


SERIALS = [f"S{number:03}X" for number in range(MOST_ABSENT)]


def remembered(replay: Replay) -> set[str]:
    return {name.split("-")[2] for name in replay.health()}


def test_as_many_unplugged_devices_as_fit_are_all_remembered() -> None:
    replay = Replay()
    unplugged(replay, SERIALS)
    assert remembered(replay) == {*SERIALS}


def test_what_was_unplugged_first_is_forgotten_first_whenever_it_was_plugged_in() -> None:
    replay = Replay()
    unplugged(replay, ["S998X", "S999X", *reversed(SERIALS)])
    assert remembered(replay) == {*SERIALS}


def test_what_somebody_holds_is_not_forgotten_though_it_was_unplugged_first() -> None:
    replay = Replay()
    held = HeldDevice(SERIAL, "usb-0403:6001-S998X-if00", "default/pod/main")
    replay.inventory.hold([held], replay.now, replay.now)
    unplugged(replay, ["S998X", "S999X", *SERIALS])
    assert remembered(replay) == {"S998X", *SERIALS}
    replay.now += 1
    replay.inventory.hold([], replay.now, replay.now)
    assert remembered(replay) == {*SERIALS}


def test_devices_that_are_there_are_never_too_many() -> None:
    replay = Replay()
    ports = [
        usb_port(f"ttyUSB{number}", serial=f"S{number}X", location=f"1.{number}")
        for number in range(MOST_ABSENT + 10)
    ]
    assert len(replay(*map(present, ports))) == MOST_ABSENT + 10


SAVED = DeviceState(A, SERIAL, (usb_port(),), absent_since=0.0)


def test_a_device_of_before_a_restart_is_of_the_first_resource_that_matches_it() -> None:
    rules = (ResourceRule("a/first"), ResourceRule(SERIAL))
    inventory = Inventory(rules, states=[SAVED])
    inventory.apply([], 1.0)
    assert [len(inventory.snapshot(rule.name).devices) for rule in rules] == [1, 0]


def test_a_device_of_before_a_restart_goes_to_who_matches_it_where_its_resource_has_gone() -> None:
    inventory = Inventory((ResourceRule("a/first"),), states=[SAVED])
    inventory.apply([], 1.0)
    assert [device.id for device in inventory.snapshot("a/first").devices] == [A]


def test_what_was_never_granted_is_forgotten_in_time_though_the_kubelet_never_answers() -> None:
    inventory = Inventory((ResourceRule(SERIAL),), states=[SAVED], holders_can_tell=True)
    inventory.apply([], RETENTION - 1)
    assert inventory.find(A) is not None
    inventory.apply([], RETENTION + 1)
    assert inventory.find(A) is None


def test_another_plugins_device_among_those_held_hides_none_of_ours() -> None:
    replay = Replay()
    replay(present(usb_port()))
    held = [HeldDevice("a/gpu", "GPU-0", "default/x/main"), HeldDevice(SERIAL, A, "default/y/main")]
    replay.inventory.hold(held, replay.now, replay.now)
    assert replay.device(A).holders == ("default/y/main",)


def test_a_number_that_is_at_another_name_before_its_loss_was_heard_of_hides_nothing() -> None:
    replay = Replay()
    replay(present(usb_port("ttyUSB0")))
    number = usb_port("ttyUSB0").number
    other = msgspec.structs.replace(usb_port("ttyUSB9", serial="B", location="2"), number=number)
    assert replay(present(other))["usb-0403:6001-B-if00"] is Health.READY


BY_LOCATION = ResourceRule(SERIAL, identity=IdentityMode.LOCATION)


def test_by_location_a_new_stick_takes_the_place_of_a_broken_one_whose_serial_others_have() -> None:
    replay = Replay(BY_LOCATION)
    replay(present(usb_port("ttyUSB0", serial="0001", location="1")))
    replay(present(usb_port("ttyUSB1", serial="0001", location="2")))
    replay(gone(usb_port("ttyUSB0")))
    health = replay(present(usb_port("ttyUSB0", serial="NEW42", location="1")))
    ids = {f"usb-0403:6001-at-{place}-if00" for place in ("1", "2")}
    assert health == dict.fromkeys(ids, Health.READY)


def test_by_location_a_modem_that_replaces_another_one_stays_in_one_piece() -> None:
    rule = ResourceRule(SERIAL, identity=IdentityMode.LOCATION, unit=Unit.USB_DEVICE)

    def modem(serial: str, place: str, first: int) -> list[Port]:
        return [
            usb_port(f"ttyUSB{first + n}", serial=serial, location=place, interface=n)
            for n in range(3)
        ]

    replay = Replay(rule)
    other = modem("0001", "2", 3)
    for ports in ([*modem("0001", "1", 0), *other], other, [*other, *modem("NEW42", "1", 0)]):
        replay(all_ports(*ports))
        replay.now += 30
        replay()
    assert replay.health() == dict.fromkeys(
        ("usb-0403:6001-at-1", "usb-0403:6001-at-2"), Health.READY
    )


def test_an_absent_device_is_compared_by_its_descriptors_before_its_id_is_taken() -> None:
    grant = Grant(SERIAL, A, {"if00": GrantedPort(None, f"/run/usbplugin/{A}/if00")})
    stranger = DeviceState(A, SERIAL, (usb_port(serial="ANOTHER"),), (grant,), absent_since=0.0)
    inventory = Inventory((ResourceRule(SERIAL),), states=[stranger], holders_can_tell=True)
    inventory.apply([present(usb_port())], 1.0)
    health = {device.id: device.health for device in inventory.snapshot(SERIAL).devices}
    assert health.pop(A) is Health.UNPLUGGED
    assert list(health.values()) == [Health.READY]


def test_the_ports_of_a_device_are_in_the_order_of_their_numbers() -> None:
    ports = []
    for number in range(12):
        port = usb_port(f"ttyUSB{number}", serial="MOXA16")
        assert port.usb is not None
        usb = msgspec.structs.replace(port.usb, port_number=number)
        ports.append(msgspec.structs.replace(port, usb=usb))
    replay = Replay(ResourceRule(SERIAL, unit=Unit.USB_DEVICE))
    replay(all_ports(*ports[::-1]))
    replay.now += 5
    replay()
    (device,) = replay.inventory.snapshot(SERIAL).devices
    assert device.nodes == tuple(f"/dev/ttyUSB{number}" for number in range(12))
