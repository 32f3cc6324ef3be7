"""Health with state: retention and holders, flapping, displacement, groups, restarts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tests.support import all_ports, gone, present, usb_port
from usbplugin.discovery import Port, Readiness, Unit
from usbplugin.inventory import (
    Device,
    DeviceState,
    Grant,
    Health,
    HealthPolicy,
    HeldDevice,
    Inventory,
    ResourceRule,
    Selector,
    Update,
)
from usbplugin.status.rows import rows

if TYPE_CHECKING:
    from usbplugin.discovery import Fact

SERIAL = "usbplugin/serial"
POLICY = HealthPolicy()
A = "usb-0403:6001-A5069RR4-if00"
POD = HeldDevice(SERIAL, A, "default/gps/main")


class Replay:
    """An inventory with a clock that the test moves, and a disk."""

    def __init__(self, rule: ResourceRule = ResourceRule(SERIAL)) -> None:  # noqa: B008 -- frozen
        self.rule = rule
        self.now = 100.0
        self.disk: dict[str, DeviceState] = {}
        self.inventory = Inventory([rule], POLICY)

    def restart(self) -> None:
        """A new process reads what the last one remembered."""
        self.inventory = Inventory([self.rule], POLICY, self.disk.values(), self.now)

    def __call__(self, *facts: Fact) -> dict[str, Health]:
        return self._done(self.inventory.apply(facts, self.now))

    def wait(self, seconds: float) -> dict[str, Health]:
        self.now += seconds
        return self()

    def grant(self, device_id: str = A) -> None:
        device = self.device(device_id)
        paths = {port.slot: f"/run/usbplugin/{device_id}/{port.slot}" for port in device.ports}
        self._done(self.inventory.grant(device_id, paths, self.now))

    def start(self, device_id: str = A) -> dict[str, Health]:
        return self._done(self.inventory.started([(self.rule.name, device_id)], self.now))

    def end(self, device_id: str = A) -> dict[str, Health]:
        return self._done(self.inventory.ended([(self.rule.name, device_id)], self.now))

    def grants(self, device_id: str = A) -> tuple[Grant, ...]:
        state = self.inventory.state(device_id)
        assert state is not None
        return state.grants

    def hold(self, *held: HeldDevice) -> dict[str, Health]:
        return self._done(self.inventory.hold(held, self.now, self.now))

    def device(self, device_id: str = A) -> Device:
        device = self.inventory.find(device_id)
        assert device is not None
        return device

    def _done(self, update: Update) -> dict[str, Health]:
        for state in update.to_save:
            self.disk[state.id] = state
        for change in update.changes:
            if change.after is None:
                self.disk.pop(change.device.id, None)
        return {d.id: d.health for d in self.inventory.snapshot(SERIAL).devices}


def test_a_held_device_stays_listed_beyond_its_retention() -> None:
    replay = Replay()
    replay(present(usb_port()))
    replay.hold(POD)
    replay(gone(usb_port()))
    assert replay.wait(10 * POLICY.retention) == {A: Health.UNPLUGGED}
    assert replay.device().holders == ("default/gps/main",)
    assert replay.hold() == {}


def test_a_holder_alone_makes_a_device_known() -> None:
    replay = Replay()
    assert replay.hold(POD) == {A: Health.UNPLUGGED}
    assert replay.device().reason == "held by a pod, but not seen since the plugin started"
    assert replay(present(usb_port())) == {A: Health.DISPLACED}
    assert replay.device().reason == (
        "held by default/gps/main, but nobody knows what the container was given: delete the pod"
    )
    assert replay.hold() == {A: Health.READY}


def test_holders_of_other_resources_are_none_of_ours() -> None:
    assert Replay().hold(HeldDevice("vendor.com/gpu", "gpu0", "default/x/y")) == {}


def test_five_departures_in_a_minute_are_flapping() -> None:
    replay = Replay()
    for _ in range(POLICY.flaps - 1):
        replay(present(usb_port()))
        replay.now += 1
        replay(gone(usb_port()))
        replay.now += 1
    assert replay(present(usb_port())) == {A: Health.READY}
    replay(gone(usb_port()))
    assert replay(present(usb_port())) == {A: Health.FLAPPING}
    assert "was unplugged 5 times" in replay.device().reason
    assert replay.inventory.deadline == replay.now + POLICY.flap_quiet
    assert replay.wait(POLICY.flap_quiet - 1) == {A: Health.FLAPPING}
    assert replay.wait(1) == {A: Health.READY}
    assert replay.inventory.deadline is None


def test_flapping_ends_only_after_quiet() -> None:
    replay = Replay()
    for _ in range(POLICY.flaps):
        replay(present(usb_port()))
        replay(gone(usb_port()))
    replay(present(usb_port()))
    replay.wait(POLICY.flap_quiet - 1)
    replay(gone(usb_port()), present(usb_port()))
    assert replay.wait(2) == {A: Health.FLAPPING}
    assert replay.wait(POLICY.flap_quiet) == {A: Health.READY}


def test_slow_departures_are_not_flapping() -> None:
    replay = Replay()
    for _ in range(20):
        replay(present(usb_port()))
        replay.wait(POLICY.flap_window / 2)
        replay(gone(usb_port()))
    assert replay(present(usb_port())) == {A: Health.READY}


def moved() -> Port:
    return usb_port("ttyUSB3")


def displaced() -> Replay:
    replay = Replay()
    replay(present(usb_port()))
    replay.grant()
    replay.hold(POD)
    replay(gone(usb_port()))
    replay(present(moved()))
    return replay


def test_a_held_device_under_other_numbers_is_displaced_until_its_container_starts_anew() -> None:
    replay = displaced()
    assert replay.device().health is Health.DISPLACED
    assert replay.device().reason == (
        "/dev/ttyUSB3 is 188:3 now, its container has 188:0: restart the container"
    )
    replay.grant()
    assert replay() == {A: Health.READY}


def test_a_displaced_device_that_nobody_holds_any_more_is_ready() -> None:
    replay = displaced()
    replay.now += 60
    assert replay.hold() == {A: Health.READY}


def test_a_displaced_device_that_gets_its_old_number_back_is_ready() -> None:
    replay = displaced()
    replay(gone(moved()))
    assert replay(present(usb_port())) == {A: Health.READY}


def test_right_after_allocate_the_kubelets_no_does_not_count_yet() -> None:
    replay = Replay()
    replay(present(usb_port()))
    replay.hold()
    replay.grant()
    replay.now += POLICY.holder_grace / 2
    replay.hold()
    replay(gone(usb_port()))
    assert replay(present(moved())) == {A: Health.DISPLACED}
    replay.now += POLICY.holder_grace
    assert replay.hold() == {A: Health.READY}


def test_without_a_kubelet_to_ask_nothing_is_displaced() -> None:
    """For nobody would tell when the pod is gone, and the device would never be usable again."""
    replay = Replay()
    replay(present(usb_port()))
    replay.grant()
    replay(gone(usb_port()))
    assert replay(present(moved())) == {A: Health.READY}


def test_without_pre_start_nothing_is_displaced() -> None:
    replay = Replay(ResourceRule(SERIAL, checks_starts=False))
    replay(present(usb_port()))
    replay.grant()
    replay.hold(POD)
    replay(gone(usb_port()))
    assert replay(present(moved())) == {A: Health.READY}


def test_a_container_that_had_ended_before_is_not_displaced() -> None:
    replay = Replay()
    replay(present(usb_port()))
    replay.grant()
    replay.hold(POD)
    replay(gone(usb_port()))
    replay.inventory.ended([(SERIAL, A)], replay.now)
    assert replay(present(moved())) == {A: Health.READY}
    assert replay.grants()[0].ports["if00"].path == f"/run/usbplugin/{A}/if00"


def test_the_swap() -> None:
    """Two held devices come back under each other's numbers."""
    one, other = usb_port("ttyUSB0", serial="ONE"), usb_port("ttyUSB1", serial="TWO", location="2")
    ids = ["usb-0403:6001-ONE-if00", "usb-0403:6001-TWO-if00"]
    replay = Replay()
    replay(present(one), present(other))
    for device_id in ids:
        replay.grant(device_id)
    replay.hold(*(HeldDevice(SERIAL, device_id, f"default/{device_id}/main") for device_id in ids))
    replay(gone(one), gone(other))
    swapped = (
        msgspec.structs.replace(one, name="ttyUSB1", node="/dev/ttyUSB1", number=other.number),
        msgspec.structs.replace(other, name="ttyUSB0", node="/dev/ttyUSB0", number=one.number),
    )
    health = replay(*map(present, swapped))
    # Each one's container may open the other, so neither may start before the other one has ended.
    assert health == dict.fromkeys(ids, Health.CONTESTED)
    assert replay.device(ids[0]).reason == (
        f"default/{ids[1]}/main was given {ids[1]} with the number 188:1, and may open it: restart"
        " that container or delete its pod"
    )
    assert replay.end(ids[0]) == {ids[0]: Health.CONTESTED, ids[1]: Health.DISPLACED}
    assert replay.start(ids[1]) == {ids[0]: Health.READY, ids[1]: Health.READY}
    assert replay.start(ids[0]) == {ids[0]: Health.READY, ids[1]: Health.READY}


def test_the_swap_is_seen_over_a_restart_of_the_plugin() -> None:
    replay = Replay()
    replay(present(usb_port()))
    replay.grant()
    replay.hold(POD)
    replay.restart()
    replay(all_ports(moved()))
    assert replay.hold(POD) == {A: Health.DISPLACED}


def test_an_unplugged_device_is_remembered_over_a_restart_of_the_plugin() -> None:
    replay = Replay()
    replay(present(usb_port()))
    replay(gone(usb_port()))
    replay.now += 60
    replay.restart()
    assert replay(all_ports()) == {A: Health.UNPLUGGED}
    assert replay.wait(POLICY.retention - 60) == {}
    assert replay.disk == {}


def test_twins_keep_their_ids_over_a_restart_while_the_first_is_away() -> None:
    one = usb_port("ttyUSB0", serial="SAME", location="1")
    two = usb_port("ttyUSB1", serial="SAME", location="2")
    replay = Replay()
    replay(present(one))
    replay(present(two))
    before = replay()
    replay(gone(one))
    replay.restart()
    replay(all_ports(two))
    assert replay(present(one)) == before
    assert replay.device("usb-0403:6001-SAME-if00").nodes == ("/dev/ttyUSB0",)


MODEM_RULE = ResourceRule(SERIAL, unit=Unit.USB_DEVICE)
MODEM = "usb-1e0e:9001-0123ABCD"
PORTS = [
    usb_port(
        f"ttyUSB{number}",
        serial="0123ABCD",
        vendor_id="1e0e",
        product_id="9001",
        interface=number + 2,
    )
    for number in range(4)
]


def modem() -> Replay:
    replay = Replay(MODEM_RULE)
    replay(*map(present, PORTS))
    replay.wait(POLICY.group_settle)
    return replay


def test_a_modem_is_one_device_once_its_ports_have_settled() -> None:
    replay = Replay(MODEM_RULE)
    for port in reversed(PORTS):
        assert replay(present(port)) == {}
        replay.now += 0.1
    assert replay() == {}
    assert replay.wait(POLICY.group_settle) == {MODEM: Health.READY}
    assert replay.device(MODEM).nodes == tuple(f"/dev/ttyUSB{n}" for n in range(4))


def test_a_modem_that_lacks_a_port_is_incomplete() -> None:
    replay = modem()
    assert replay(gone(PORTS[2])) == {MODEM: Health.INCOMPLETE}
    assert "if04 (/dev/ttyUSB2) of its 4 ports are missing" in replay.device(MODEM).reason
    assert replay(present(PORTS[2])) == {MODEM: Health.READY}


def test_a_modem_that_returns_is_ready_when_all_its_ports_are() -> None:
    replay = modem()
    assert replay(*map(gone, PORTS)) == {MODEM: Health.UNPLUGGED}
    for port in PORTS[:-1]:
        assert replay(present(port)) == {MODEM: Health.INCOMPLETE}
    assert replay(present(PORTS[-1])) == {MODEM: Health.READY}


def test_a_modem_that_returns_with_fewer_ports_is_taken_as_it_is_in_time() -> None:
    replay = modem()
    replay(*map(gone, PORTS))
    replay(*map(present, PORTS[:2]))
    assert replay.wait(POLICY.group_patience - 1) == {MODEM: Health.INCOMPLETE}
    assert replay.wait(1) == {MODEM: Health.READY}
    assert len(replay.device(MODEM).ports) == 2


def test_but_not_while_somebody_holds_it() -> None:
    replay = modem()
    replay.hold(HeldDevice(SERIAL, MODEM, "default/modem/main"))
    replay(*map(gone, PORTS))
    replay(*map(present, PORTS[:2]))
    assert replay.wait(10 * POLICY.group_patience) == {MODEM: Health.INCOMPLETE}


def test_two_modems_of_one_serial_are_two_devices() -> None:
    replay = modem()
    copies = [
        msgspec.structs.replace(
            port,
            name=f"ttyUSB{number + 4}",
            number=usb_port(f"ttyUSB{number + 4}").number,
            usb=port.usb and msgspec.structs.replace(port.usb, location="0000:00:14.0-9"),
        )
        for number, port in enumerate(PORTS)
    ]
    replay(*map(present, copies))
    health = replay.wait(POLICY.group_settle)
    assert health == {MODEM: Health.READY, "usb-1e0e:9001-at-0000:00:14.0-9": Health.READY}
    assert {len(d.ports) for d in replay.inventory.snapshot(SERIAL).devices} == {4}


def test_a_displaced_port_displaces_the_modem() -> None:
    replay = modem()
    replay.grant(MODEM)
    replay.hold(HeldDevice(SERIAL, MODEM, "default/modem/main"))
    replay(gone(PORTS[3]))
    far = msgspec.structs.replace(PORTS[3], name="ttyUSB9", number=usb_port("ttyUSB9").number)
    assert replay(present(far)) == {MODEM: Health.DISPLACED}


def test_new_rules_keep_what_is_known() -> None:
    replay = Replay()
    replay(present(usb_port("ttyUSB0")), present(usb_port("ttyUSB1", serial="B")))
    replay(gone(usb_port("ttyUSB1", serial="B")))
    zigbee = ResourceRule("usbplugin/zigbee", (Selector(serial="A50*"),))
    successor = replay.inventory.reconfigured([zigbee, replay.rule], POLICY, replay.now)
    successor.apply([all_ports(usb_port("ttyUSB0"))], replay.now)
    assert {d.id: d.health for d in successor.snapshot("usbplugin/zigbee").devices} == {
        A: Health.READY
    }
    assert {d.id: d.health for d in successor.snapshot(SERIAL).devices} == {
        "usb-0403:6001-B-if00": Health.UNPLUGGED
    }


def test_rules_that_give_other_ids_leave_nothing_of_the_old_ones() -> None:
    replay = Replay()
    replay(present(usb_port()))
    successor = replay.inventory.reconfigured([MODEM_RULE], POLICY, replay.now)
    successor.apply([all_ports(usb_port())], replay.now)
    successor.apply([], replay.now + POLICY.group_settle)
    (device,) = successor.snapshot(SERIAL).devices
    assert device.id == "usb-0403:6001-A5069RR4"


def test_new_rules_publish_what_a_resource_has_lost_and_nothing_else() -> None:
    replay = Replay()
    replay(present(usb_port()))
    before = replay.device()
    replay.now += 5
    other = ResourceRule("usbplugin/other")
    same = replay.inventory.reconfigured([replay.rule, other], POLICY, replay.now)
    assert same.apply([all_ports(usb_port())], replay.now) == Update()
    assert same.snapshot(SERIAL).devices == (before,), "it is ready for as long as it was"
    moved = replay.inventory.reconfigured([other, replay.rule], POLICY, replay.now)
    update = moved.apply([all_ports(usb_port())], replay.now)
    assert {snapshot.resource: len(snapshot.devices) for snapshot in update.snapshots} == {
        "usbplugin/other": 1,
        SERIAL: 0,
    }
    nobodys = ResourceRule(SERIAL, (Selector(serial="NONE"),))
    lost = replay.inventory.reconfigured([nobodys], POLICY, replay.now)
    (change,) = lost.apply([all_ports(usb_port())], replay.now).changes
    assert (change.device.id, change.after) == (A, None)
    assert lost.snapshot(SERIAL).devices == ()


def test_who_holds_a_device_under_its_old_resource_keeps_it_from_the_new_one() -> None:
    replay = Replay()
    replay(present(usb_port()))
    replay.grant()
    replay.hold(POD)
    zigbee = ResourceRule("usbplugin/zigbee")
    successor = replay.inventory.reconfigured([zigbee], POLICY, replay.now)
    successor.apply([all_ports(usb_port())], replay.now)
    successor.hold([POD], replay.now, replay.now)
    (device,) = successor.snapshot("usbplugin/zigbee").devices
    assert device.health is Health.CONTESTED
    assert device.reason == (
        f"default/gps/main holds it as usbplugin/serial {A}; free once that pod is gone"
    )
    replay.now += POLICY.holder_grace
    successor.hold([], replay.now, replay.now)
    (device,) = successor.snapshot("usbplugin/zigbee").devices
    assert device.health is Health.READY


def test_a_complete_modem_stays_over_a_reload() -> None:
    replay = modem()
    before = replay.device(MODEM)
    successor = replay.inventory.reconfigured([replay.rule], POLICY, replay.now)
    assert successor.apply([all_ports(*PORTS)], replay.now) == Update()
    assert successor.find(MODEM) == before


def test_a_modem_that_moves_is_one_device_in_whatever_order_its_ports_come() -> None:
    replay = modem()
    replay(*map(gone, PORTS))
    moved = [
        msgspec.structs.replace(
            port, usb=port.usb and msgspec.structs.replace(port.usb, location="0000:00:14.0-9")
        )
        for port in PORTS
    ]
    for port in reversed(moved):
        replay(present(port))
    assert replay.wait(POLICY.group_patience) == {MODEM: Health.READY}


def test_until_the_kubelet_has_said_who_holds_what_the_memory_counts() -> None:
    replay = Replay()
    replay(present(usb_port()))
    replay.grant()
    far = msgspec.structs.replace(usb_port(), name="ttyUSB7", number=usb_port("ttyUSB7").number)
    restarted = Inventory(
        [replay.rule], POLICY, replay.disk.values(), replay.now, holders_can_tell=True
    )
    restarted.apply([all_ports(far)], replay.now)
    (device,) = restarted.snapshot(SERIAL).devices
    assert device.health is Health.DISPLACED
    assert restarted.awaits_holders
    restarted.hold([], replay.now, replay.now)
    (device,) = restarted.snapshot(SERIAL).devices
    assert device.health is Health.READY


def departures(replay: Replay, *moments: float) -> dict[str, Health]:
    """It is pulled at each of these seconds, and is back at once."""
    start = replay.now
    replay(present(usb_port()))
    for moment in moments:
        replay.now = start + moment
        replay(gone(usb_port()))
        replay(present(usb_port()))
    return replay()


def test_departures_count_as_long_as_the_window_lasts_and_no_longer() -> None:
    window = POLICY.flap_window
    assert departures(Replay(), 0, 15, 30, 45, window - 0.5) == {A: Health.FLAPPING}
    assert departures(Replay(), 0, 15, 30, 45, window) == {A: Health.READY}


def test_of_many_departures_only_the_latest_count() -> None:
    hours = [3600.0 * hour for hour in range(10)]
    assert departures(Replay(), *hours, *(hours[-1] + n for n in range(1, 4))) == {A: Health.READY}
    assert departures(Replay(), *hours, *(hours[-1] + n for n in range(1, 5))) == {
        A: Health.FLAPPING
    }


def test_quiet_has_to_last_as_long_as_it_is_said_to() -> None:
    replay = Replay()
    departures(replay, 0, 1, 2, 3, 4)
    assert replay.wait(POLICY.flap_quiet - 0.5) == {A: Health.FLAPPING}
    assert replay.wait(0.5) == {A: Health.READY}


def test_a_device_that_has_been_quiet_begins_anew() -> None:
    """Its old departures are within the window still, and count no more."""
    replay = Replay()
    departures(replay, 0, 1, 2, 3, 4)
    assert replay.wait(POLICY.flap_quiet) == {A: Health.READY}
    assert departures(replay, 0, 1, 2, 3) == {A: Health.READY}
    assert departures(replay, 4) == {A: Health.FLAPPING}


def test_a_device_flaps_on_though_its_departures_are_long_ago_if_it_was_never_quiet() -> None:
    replay = Replay()
    departures(replay, 0, 1, 2, 3, 4)
    for _ in range(4):
        replay.now += POLICY.flap_quiet - 1
        assert replay(gone(usb_port()), present(usb_port())) == {A: Health.FLAPPING}


def test_flapping_is_told_with_what_would_end_it() -> None:
    replay = Replay()
    departures(replay, 0, 1, 2, 3, 4)
    assert replay.device().reason == "was unplugged 5 times; usable after 30 s of quiet"


def test_the_ports_of_a_modem_do_not_count_as_departures_of_it() -> None:
    replay = modem()
    for _ in range(POLICY.flaps):
        replay(gone(PORTS[0]))
        assert replay(present(PORTS[0])) == {MODEM: Health.READY}


HELD_MODEM = HeldDevice(SERIAL, MODEM, "default/modem/main")


def touched(port: Port) -> Port:
    """udev has given it another link: nothing came, and nothing went."""
    return msgspec.structs.replace(port, links=("/dev/serial/by-id/usb-modem",))


def test_a_held_modem_waits_for_its_lost_port_however_long_and_whatever_else_happens() -> None:
    replay = modem()
    replay.grant(MODEM)
    replay.hold(HELD_MODEM)
    replay(gone(PORTS[2]))
    replay.wait(100 * POLICY.group_patience)
    assert replay(present(touched(PORTS[0]))) == {MODEM: Health.INCOMPLETE}
    assert "if04 (/dev/ttyUSB2) of its 4 ports are missing" in replay.device(MODEM).reason
    assert replay.inventory.deadline is None, "time alone changes nothing"
    assert replay(present(PORTS[2])) == {MODEM: Health.READY}
    assert len(replay.device(MODEM).ports) == 4


def test_a_modem_that_lost_a_port_is_taken_as_it_is_once_nobody_holds_it() -> None:
    replay = modem()
    replay.hold(HELD_MODEM)
    replay(gone(PORTS[2]))
    replay.now += POLICY.group_patience
    assert replay.hold() == {MODEM: Health.READY}
    assert replay.device(MODEM).nodes == ("/dev/ttyUSB0", "/dev/ttyUSB1", "/dev/ttyUSB3")


def test_patience_with_a_modem_begins_with_its_last_move() -> None:
    replay = modem()
    replay(gone(PORTS[2]))
    assert replay.inventory.deadline == replay.now + POLICY.group_patience
    replay.wait(POLICY.group_patience - 0.5)
    replay(gone(PORTS[1]))
    assert replay.wait(POLICY.group_patience - 0.5) == {MODEM: Health.INCOMPLETE}
    assert replay.wait(0.5) == {MODEM: Health.READY}
    assert replay.device(MODEM).nodes == ("/dev/ttyUSB0", "/dev/ttyUSB3")


def test_a_new_link_of_a_port_is_no_move_of_its_modem() -> None:
    replay = modem()
    replay(gone(PORTS[2]))
    replay.wait(POLICY.group_patience - 1)
    replay(present(touched(PORTS[0])))
    assert replay.wait(1) == {MODEM: Health.READY}


def test_a_modem_that_moves_is_one_device_also_if_its_first_port_comes_first() -> None:
    replay = modem()
    replay(*map(gone, PORTS))
    for port in PORTS:
        assert port.usb is not None
        usb = msgspec.structs.replace(port.usb, location="0000:00:14.0-9")
        replay(present(msgspec.structs.replace(port, usb=usb)))
    assert replay() == {MODEM: Health.READY}
    assert len(replay.device(MODEM).ports) == 4


def test_a_reload_takes_each_port_as_it_was_before_udevd_looked_at_it_again() -> None:
    replay = modem()
    settling = msgspec.structs.replace(PORTS[2], readiness=Readiness.SETTLING)
    new = usb_port("ttyACM0", serial="NEW", location="2", readiness=Readiness.SETTLING)
    replay(present(settling), present(new))
    ports = replay.inventory.ports
    assert ports["udev", "ttyUSB2"] == settling
    assert [replay.inventory.settled_port(key) for key in ports] == [*PORTS, new]


def test_retention_counts_from_the_unplugging_and_not_from_when_a_device_was_let_go() -> None:
    replay = Replay()
    replay(present(usb_port()))
    replay.hold(POD)
    replay(gone(usb_port()))
    unplugged_at = replay.now
    replay.now += 100
    replay.hold()
    assert replay.inventory.deadline == unplugged_at + POLICY.retention


def test_the_kubelet_is_asked_as_long_as_its_word_would_change_something() -> None:
    replay = Replay()

    def is_asked() -> bool:
        return replay.inventory.awaits_holders

    replay(present(usb_port()))
    assert not is_asked()
    replay.grant()
    assert is_asked(), "who has got it?"
    replay.now += POLICY.holder_grace
    replay.hold(POD)
    assert not is_asked()
    replay.grant()
    assert is_asked(), "perhaps one more has got it"
    replay.now += POLICY.holder_grace
    replay.hold(POD)
    replay(gone(usb_port()))
    assert is_asked(), "it is free once the pod is deleted"
    replay.hold()
    assert not is_asked()


def test_only_a_ready_device_may_be_allocated_and_some_others_are_there_for_who_has_them() -> None:
    assert [health for health in Health if health.is_usable] == [Health.READY]
    there = {health for health in Health if health.is_there}
    assert there == {
        Health.READY,
        Health.FLAPPING,
        Health.CONTESTED,
        Health.DISPLACED,
        Health.RETIRED,
    }


def test_a_stick_that_goes_at_each_start_of_its_container_is_no_bad_cable() -> None:
    """Its application resets it; the kernel gives it the other number as long as one is open."""
    replay = displaced()
    assert replay.device().reason.endswith("restart the container"), "once is chance"
    there, other = moved(), usb_port()
    for _ in range(POLICY.flaps - 2):
        replay.start()
        replay.now += 1
        replay(gone(there))
        there, other = other, there
        assert replay(present(there)) == {A: Health.DISPLACED}
        assert "the application resets it: turn that off" in replay.device().reason
        replay.grant()
    replay(gone(there))
    assert replay(present(there)) == {A: Health.FLAPPING}
    assert "the application resets it" in replay.device().reason


def test_a_device_that_nobody_holds_is_reset_by_nobody() -> None:
    replay = Replay()
    for _ in range(POLICY.flaps):
        replay(present(usb_port()))
        replay(gone(usb_port()))
    assert replay(present(usb_port())) == {A: Health.FLAPPING}
    assert "application" not in replay.device().reason


BOOTLOADER_RULE = ResourceRule(SERIAL, settle=10.0)


def test_a_new_device_is_listed_once_it_has_stayed_for_its_resources_settle() -> None:
    replay = Replay(BOOTLOADER_RULE)
    assert replay(present(usb_port())) == {}
    assert replay.inventory.deadline == replay.now + 10
    (row,) = rows([], replay.inventory.ports.values(), [BOOTLOADER_RULE])
    assert row["reason"] == "new: listed once it has stayed for 10 s"
    assert replay.wait(9.9) == {}
    assert replay.wait(0.1) == {A: Health.READY}
    assert replay(gone(usb_port())) == {A: Health.UNPLUGGED}
    assert replay(present(usb_port())) == {A: Health.READY}, "it is known"
    replay(gone(usb_port()))
    replay.restart()
    assert replay(present(usb_port())) == {A: Health.READY}, "so it is after a restart"


def test_a_bootloader_that_shows_itself_for_some_seconds_leaves_nothing_behind() -> None:
    replay = Replay(BOOTLOADER_RULE)
    bootloader = usb_port(serial="", product_id="0036")
    replay(present(usb_port()))
    replay.wait(10)
    replay.grant()
    replay.hold(POD)
    for _ in range(2):
        replay(gone(usb_port()))
        assert replay(present(bootloader)) == {A: Health.UNPLUGGED}
        assert replay.wait(9) == {A: Health.UNPLUGGED}
        assert replay(gone(bootloader)) == {A: Health.UNPLUGGED}
        assert replay(present(usb_port())) == {A: Health.READY}
    assert replay.wait(20) == {A: Health.READY}
