"""Who holds a device under other terms, or its numbers: nobody else is given it meanwhile."""

from __future__ import annotations

import msgspec
import pytest

from tests.support import all_ports, gone, present, usb_port
from usbplugin.discovery import DeviceNumber, IdentityMode, Port, Unit
from usbplugin.inventory import (
    DeviceState,
    Grant,
    GrantedPort,
    Health,
    HealthPolicy,
    HeldDevice,
    Inventory,
    ResourceRule,
    Selector,
    Update,
)

SERIAL, OTHER = "usbplugin/serial", "usbplugin/other"
A = "usb-0403:6001-A5069RR4-if00"
AT_ITS_PLACE = "usb-0403:6001-at-0000:00:14.0-1-if00"
WHOLE = "usb-0403:6001-A5069RR4"
PLAIN = ResourceRule(SERIAL)
POD = "default/gps/main"


class Node:
    """An inventory, its disk, and a kubelet whose word on holders always counts."""

    def __init__(self, *rules: ResourceRule, boot: str = "first") -> None:
        self.boot = boot
        self.now = 100.0
        self.ports: dict[str, Port] = {}
        self.held: dict[tuple[str, str], str] = {}
        self.disk: dict[str, DeviceState] = {}
        self.restart(*rules)

    def restart(self, *rules: ResourceRule, boot: str = "") -> None:
        """A new process, perhaps with other rules or after a reboot."""
        self.boot = boot or self.boot
        states = list(self.disk.values())
        self.inventory = Inventory(
            rules, HealthPolicy(), states, self.now, holders_can_tell=True, boot=self.boot
        )

    def reload(self, *rules: ResourceRule) -> None:
        self.inventory = self.inventory.reconfigured(rules, HealthPolicy(), self.now)
        self.list()

    def list(self) -> None:
        self._done(self.inventory.apply([all_ports(*self.ports.values())], self.now))

    def settle(self) -> None:
        """Time passes until a device of several ports is complete."""
        self.now += 5
        self._done(self.inventory.apply([], self.now))

    def plug(self, port: Port) -> None:
        self.ports[port.name] = port
        self._done(self.inventory.apply([present(port)], self.now))

    def pull(self, port: Port) -> None:
        del self.ports[port.name]
        self._done(self.inventory.apply([gone(port)], self.now))

    def give(self, listed_id: str = A, pod: str = POD, device_id: str = "") -> None:
        """A pod is given what the kubelet knows as ``listed_id``."""
        device = self.inventory.find(device_id or listed_id)
        assert device is not None
        assert device.health is Health.READY, device
        paths = {port.slot: f"/run/{device.id}/{port.slot}" for port in device.ports}
        self._done(self.inventory.grant(device.id, paths, self.now, [listed_id]))
        self.held[device.resource, listed_id] = pod
        self.ask()

    def take(self, listed_id: str = A, resource: str = SERIAL) -> None:
        """The pod is gone."""
        del self.held[resource, listed_id]
        self.ask()

    def start(self, listed_id: str = A, resource: str = SERIAL) -> None:
        self._done(self.inventory.started([(resource, listed_id)], self.now))

    def end(self, listed_id: str = A, resource: str = SERIAL) -> None:
        self._done(self.inventory.ended([(resource, listed_id)], self.now))

    def ask(self) -> None:
        self.now += 10
        held = [HeldDevice(*key, pod) for key, pod in self.held.items()]
        self._done(self.inventory.hold(held, self.now, self.now))

    def grants(self, device_id: str = A) -> tuple[Grant, ...]:
        state = self.inventory.state(device_id)
        assert state is not None
        return state.grants

    @property
    def health(self) -> dict[str, Health]:
        return {device.id: device.health for device in self.inventory.devices}

    def is_there(self, device_id: str) -> bool:
        return device_id in self.health and self.health[device_id].is_there

    def reason(self, device_id: str = A) -> str:
        device = self.inventory.find(device_id)
        assert device is not None
        return device.reason

    def _done(self, update: Update) -> None:
        for state in update.to_save:
            self.disk[state.id] = state
        for change in update.changes:
            if change.after is None:
                self.disk.pop(change.device.id, None)


def held(*rules: ResourceRule) -> Node:
    node = Node(*rules or (PLAIN,))
    node.plug(usb_port())
    node.give()
    return node


OTHER_TERMS = [
    pytest.param((ResourceRule(OTHER),), {A: Health.CONTESTED}, id="name"),
    pytest.param((ResourceRule(SERIAL, shares=3),), {A: Health.CONTESTED}, id="shares"),
    pytest.param(
        (ResourceRule(SERIAL, identity=IdentityMode.LOCATION),),
        {A: Health.RETIRED, AT_ITS_PLACE: Health.CONTESTED},
        id="identity",
    ),
    pytest.param(
        (ResourceRule(SERIAL, unit=Unit.USB_DEVICE),),
        {A: Health.RETIRED, WHOLE: Health.CONTESTED},
        id="unit",
    ),
    pytest.param(
        (ResourceRule(SERIAL, (Selector(serial="NONE"),)),), {A: Health.RETIRED}, id="selectors"
    ),
    pytest.param(
        (ResourceRule(OTHER, (Selector(serial="A*"),)), PLAIN), {A: Health.CONTESTED}, id="order"
    ),
    pytest.param(
        (ResourceRule(OTHER, identity=IdentityMode.LOCATION),),
        {A: Health.RETIRED, AT_ITS_PLACE: Health.CONTESTED},
        id="name and identity",
    ),
]


@pytest.mark.parametrize("is_restart", [False, True], ids=["reload", "restart"])
@pytest.mark.parametrize(("rules", "expected"), OTHER_TERMS)
def test_other_terms_free_nothing_that_a_pod_holds(
    rules: tuple[ResourceRule, ...], expected: dict[str, Health], *, is_restart: bool
) -> None:
    node = held()
    if is_restart:
        node.restart(*rules)
        node.list()
        assert Health.READY not in node.health.values(), "the kubelet has not been asked yet"
        node.settle()
        assert Health.READY not in node.health.values()
        node.ask()
    else:
        node.reload(*rules)
        assert Health.READY not in node.health.values()
        node.settle()
    assert node.health == expected
    for device_id, health in expected.items():
        if health is Health.CONTESTED:
            assert node.reason(device_id) == (
                f"{POD} holds it as {SERIAL} {A}; free once that pod is gone"
            )
    node.take()
    after = Node(*rules)
    after.plug(usb_port())
    after.settle()
    assert node.health == after.health


@pytest.mark.parametrize(("rules", "expected"), OTHER_TERMS)
def test_what_a_mistake_has_changed_is_as_before_once_it_is_mended(
    rules: tuple[ResourceRule, ...], expected: dict[str, Health]
) -> None:
    node = held()
    before = node.inventory.find(A)
    node.reload(*rules)
    node.settle()
    assert node.health == expected
    node.now += 60
    node.reload(PLAIN)
    after = node.inventory.find(A)
    assert before is not None
    assert after is not None
    assert after == msgspec.structs.replace(before, since=after.since)
    assert node.health == {A: Health.READY}
    (grant,) = node.grants()
    assert (grant.key, grant.ports["if00"].path) == ((SERIAL, A), f"/run/{A}/if00")


def test_a_device_that_is_not_offered_any_longer_says_what_becomes_of_it() -> None:
    node = held()
    node.reload(ResourceRule(SERIAL, (Selector(serial="NONE"),)))
    assert node.reason() == "its pod may go on using it; the configuration offers it no longer"
    node.reload(ResourceRule(OTHER, identity=IdentityMode.LOCATION))
    assert node.reason() == (
        "its pod may go on using it until its container ends, for its resource is no more; the"
        f" configuration offers it as {OTHER} {AT_ITS_PLACE}"
    )


def test_a_device_that_is_not_offered_any_longer_is_followed_over_its_replug() -> None:
    node = held()
    node.reload(ResourceRule(SERIAL, identity=IdentityMode.LOCATION))
    node.pull(usb_port())
    assert node.health == {A: Health.UNPLUGGED, AT_ITS_PLACE: Health.UNPLUGGED}
    node.plug(usb_port("ttyUSB4"))
    assert node.health == {A: Health.DISPLACED, AT_ITS_PLACE: Health.CONTESTED}
    node.start()
    assert node.health == {A: Health.RETIRED, AT_ITS_PLACE: Health.CONTESTED}
    node.pull(usb_port("ttyUSB4"))
    elsewhere = usb_port("ttyUSB5", location="0000:00:14.0-7")
    node.plug(elsewhere)
    node.start()
    moved_to = "usb-0403:6001-at-0000:00:14.0-7-if00"
    assert (node.health[A], node.health[moved_to]) == (Health.RETIRED, Health.CONTESTED)


def test_fewer_shares_wait_for_all_that_are_more() -> None:
    node = Node(ResourceRule(SERIAL, shares=3))
    node.plug(usb_port())
    for share in (0, 2):
        node.give(f"{A}.{share}", f"default/pod{share}/main", A)
    node.reload(ResourceRule(SERIAL, shares=2))
    assert node.health == {A: Health.CONTESTED}
    assert (
        node.reason() == f"default/pod2/main holds it as {SERIAL} {A}.2; free once that pod is gone"
    )
    assert node.inventory.devices[0].also_listed == (f"{A}.2",)
    node.take(f"{A}.2")
    assert node.health == {A: Health.READY}
    node.reload(PLAIN)
    assert node.health == {A: Health.CONTESTED}
    node.take(f"{A}.0")
    assert node.health == {A: Health.READY}


def test_more_shares_contest_nothing() -> None:
    node = Node(ResourceRule(SERIAL, shares=2))
    node.plug(usb_port())
    node.give(f"{A}.1", device_id=A)
    node.reload(ResourceRule(SERIAL, shares=4))
    assert node.health == {A: Health.READY}


def test_numbers_that_a_container_runs_with_are_not_free_because_its_device_is_gone() -> None:
    node = held()
    node.pull(usb_port())
    newcomer = usb_port(serial="NEW", location="0000:00:14.0-2")
    node.plug(newcomer)
    new = "usb-0403:6001-NEW-if00"
    assert node.health == {A: Health.UNPLUGGED, new: Health.CONTESTED}
    assert node.reason(new) == (
        f"{POD} was given {A} with the number 188:0, and may open it: restart that container or"
        " delete its pod"
    )
    node.end()
    assert node.health == {A: Health.UNPLUGGED, new: Health.READY}


def test_numbers_are_free_once_their_pod_is_gone_or_its_container_runs_with_others() -> None:
    new = "usb-0403:6001-NEW-if00"
    for is_gone in (False, True):
        node = held()
        node.pull(usb_port())
        node.plug(usb_port(serial="NEW", location="0000:00:14.0-2"))
        node.plug(usb_port("ttyUSB1"))
        assert node.health == {A: Health.DISPLACED, new: Health.CONTESTED}
        if is_gone:
            node.take()
        else:
            node.start()
        assert node.health == {A: Health.READY, new: Health.READY}


def test_numbers_mean_nothing_after_a_reboot() -> None:
    node = held()
    node.restart(PLAIN, boot="second")
    node.ports = {}
    node.plug(usb_port(serial="NEW", location="0000:00:14.0-2"))
    node.plug(usb_port("ttyUSB1"))
    node.ask()
    assert node.health == {A: Health.READY, "usb-0403:6001-NEW-if00": Health.READY}


def test_a_number_of_a_pty_is_nobody_elses() -> None:
    node = Node(PLAIN)
    pty = DeviceNumber(136, 0)
    node.plug(usb_port(number=pty))
    node.give()
    node.pull(usb_port())
    node.plug(usb_port(serial="NEW", location="0000:00:14.0-2", number=pty))
    assert node.health["usb-0403:6001-NEW-if00"] is Health.READY


def test_where_starts_are_not_checked_every_number_since_may_be_in_use() -> None:
    node = Node(ResourceRule(SERIAL, checks_starts=False))
    node.plug(usb_port())
    node.give()
    node.pull(usb_port())
    node.plug(usb_port("ttyUSB1"))
    node.pull(usb_port("ttyUSB1"))
    for name in ("ttyUSB0", "ttyUSB1"):
        newcomer = usb_port(name, serial="NEW", location="0000:00:14.0-2")
        node.plug(newcomer)
        assert node.health["usb-0403:6001-NEW-if00"] is Health.CONTESTED
        node.pull(newcomer)


def twins() -> tuple[Port, Port]:
    return (
        usb_port("ttyUSB0", serial="SAME", location="0000:00:14.0-1"),
        usb_port("ttyUSB1", serial="SAME", location="0000:00:14.0-4"),
    )


@pytest.mark.parametrize("is_alone", [False, True], ids=["both", "the other one alone"])
def test_twins_do_not_swap_over_a_reboot(*, is_alone: bool) -> None:
    node = Node(PLAIN)
    one, other = twins()
    node.plug(one)
    node.plug(other)
    first, second = "usb-0403:6001-SAME-if00", "usb-0403:6001-at-0000:00:14.0-4-if00"
    node.give(first, "default/one/main")
    node.give(second, "default/other/main")
    node.restart(PLAIN, boot="second")
    node.ports = {}
    node.plug(msgspec.structs.replace(other, name="ttyUSB0", node="/dev/ttyUSB0"))
    if not is_alone:
        node.plug(msgspec.structs.replace(one, name="ttyUSB1", node="/dev/ttyUSB1"))
    node.ask()
    found = {d.id: [p.usb.location for p in d.ports if p.usb] for d in node.inventory.devices}
    assert found == {first: ["0000:00:14.0-1"], second: ["0000:00:14.0-4"]}
    assert node.health[first] is (Health.UNPLUGGED if is_alone else Health.READY)
    assert node.health[second] is Health.READY


def test_a_held_device_of_which_nobody_knows_what_was_given_is_refused() -> None:
    node = Node(PLAIN)
    node.plug(usb_port())
    node.held[SERIAL, A] = POD
    node.ask()
    assert node.health == {A: Health.DISPLACED}
    assert node.reason() == (
        f"held by {POD}, but nobody knows what the container was given: delete the pod"
    )
    node.take()
    assert node.health == {A: Health.READY}


@pytest.mark.parametrize(
    ("rule", "listed_id"),
    [
        (ResourceRule(OTHER), A),
        (ResourceRule(OTHER, identity=IdentityMode.LOCATION), A),
        (ResourceRule(OTHER, unit=Unit.USB_DEVICE), A),
        (ResourceRule(OTHER), WHOLE),
        (ResourceRule(OTHER), AT_ITS_PLACE),
        (ResourceRule(OTHER), f"{A}.2"),
    ],
)
def test_what_is_held_as_something_that_nothing_else_is_known_of_is_given_to_nobody(
    rule: ResourceRule, listed_id: str
) -> None:
    node = Node(rule)
    node.plug(usb_port())
    node.held[SERIAL, listed_id] = POD
    node.ask()
    assert Health.READY not in node.health.values()
    assert Health.CONTESTED in node.health.values()
    node.pull(usb_port())
    node.plug(usb_port("ttyUSB3"))
    assert Health.READY not in node.health.values()
    node.take(listed_id)
    assert list(node.health.values()) in ([Health.READY], [])
    node.now += 5
    node.list()
    assert list(node.health.values()) == [Health.READY]


def test_the_kubelets_own_notes_say_what_was_given() -> None:
    node = Node(PLAIN)
    node.plug(usb_port())
    ports = {"if00": GrantedPort(None, "/old/links/if00", (DeviceNumber(188, 0),))}
    node.inventory.learn([Grant(SERIAL, A, ports, is_unsure=True)], node.now)
    node.held[SERIAL, A] = POD
    node.ask()
    assert node.health == {A: Health.DISPLACED}
    assert node.reason() == (
        f"held by {POD}, but nobody knows which device numbers the container has: restart it"
    )
    node.start()
    assert node.health == {A: Health.READY}
    (grant,) = node.grants()
    assert grant.ports == {"if00": GrantedPort(DeviceNumber(188, 0), "/old/links/if00")}


def test_numbers_that_are_guessed_are_kept_from_others() -> None:
    node = Node(PLAIN)
    ports = {"if00": GrantedPort(None, "/old/links/if00", (DeviceNumber(188, 0),))}
    node.inventory.learn([Grant(SERIAL, A, ports, is_unsure=True)], node.now)
    node.held[SERIAL, A] = POD
    node.ask()
    node.plug(usb_port(serial="NEW", location="0000:00:14.0-2"))
    node.plug(usb_port("ttyUSB1"))
    assert node.health == {A: Health.DISPLACED, "usb-0403:6001-NEW-if00": Health.CONTESTED}
    node.start()
    assert set(node.health.values()) == {Health.READY}


def test_the_kubelets_notes_decide_on_paths_and_not_on_numbers_that_we_know() -> None:
    node = held()
    told = Grant(SERIAL, A, {"if00": GrantedPort(DeviceNumber(188, 9), "/old/links/if00")})
    node.inventory.learn([told], node.now)
    (grant,) = node.grants()
    assert grant.ports == {"if00": GrantedPort(DeviceNumber(188, 0), "/old/links/if00")}
    assert node.health == {A: Health.READY}


def test_notes_of_a_pod_that_has_gone_are_dropped_with_the_kubelets_first_word() -> None:
    node = Node(PLAIN)
    node.plug(usb_port())
    node.inventory.learn([Grant(SERIAL, A, {"if00": GrantedPort(None, "/x")})], node.now)
    node.ask()
    assert node.grants() == ()


def test_notes_of_other_plugins_are_none_of_ours() -> None:
    node = Node(PLAIN)
    grants = [Grant("vendor.com/gpu", name, {}) for name in ("gpu0", "GPU-7e1a", "../x", "")]
    node.inventory.learn(grants, node.now)
    assert node.health == {}


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (0, 1, 3, 2)])
def test_two_resources_may_share_the_interfaces_of_a_device(order: tuple[int, ...]) -> None:
    rules = (
        ResourceRule("x/gps", (Selector(interface=2),), unit=Unit.USB_DEVICE),
        ResourceRule("x/modem", unit=Unit.USB_DEVICE),
    )
    ports = [usb_port(f"ttyUSB{n}", serial="M", interface=n) for n in range(4)]
    node = Node(*rules)
    for number in order:
        node.plug(ports[number])
        node.now += 0.1
    node.now += 10
    node.list()
    slots = {d.resource: [p.slot for p in d.ports] for d in node.inventory.devices}
    assert slots == {"x/gps": ["if02"], "x/modem": ["if00", "if01", "if03"]}
    assert len(node.health) == 2


LOCATION = ResourceRule(SERIAL, identity=IdentityMode.LOCATION)


def stick(place: int, name: str = "ttyUSB0", serial: str = "SAME") -> Port:
    return usb_port(name, serial=serial, location=f"0000:00:14.0-{place}")


def test_a_stick_that_moved_is_no_twin_of_itself() -> None:
    node = Node(LOCATION)
    node.plug(stick(1))
    node.reload(PLAIN)
    node.pull(stick(1))
    node.plug(stick(2))
    by_serial = "usb-0403:6001-SAME-if00"
    node.give(by_serial)
    for place in (3, 4, 1, 5):
        node.pull(next(iter(node.ports.values())))
        node.now += 8000
        node.plug(stick(place))
        assert node.health[by_serial] is Health.READY
        assert Health.READY not in {h for name, h in node.health.items() if name != by_serial}
    node.restart(PLAIN)
    node.list()
    node.ask()
    assert node.health[by_serial] is Health.READY


TWINS_APART = [
    pytest.param(
        (
            ResourceRule(SERIAL, (Selector(location="*-1*"),)),
            ResourceRule(OTHER, unit=Unit.USB_DEVICE),
        ),
        id="two units",
    ),
    pytest.param((ResourceRule(SERIAL, (Selector(location="*-1*"),)),), id="one selected"),
]


@pytest.mark.parametrize("is_restarted", [False, True])
@pytest.mark.parametrize("rules", TWINS_APART)
def test_twins_are_seen_whatever_resource_they_are_of(
    rules: tuple[ResourceRule, ...], *, is_restarted: bool
) -> None:
    node = Node(*rules)
    one, other = stick(1), stick(2, "ttyUSB1")
    node.plug(one)
    first = "usb-0403:6001-SAME-if00"
    node.give(first)
    node.plug(other)
    node.pull(one)
    node.pull(other)
    if is_restarted:
        node.restart(*rules, boot="second")
        node.ask()
    node.plug(stick(11, "ttyUSB3"))
    assert node.health[first] is Health.UNPLUGGED, "it may be the other one, and it is"


def test_twins_that_were_seen_under_other_terms_are_twins_still() -> None:
    node = held()
    twin = usb_port("ttyUSB1", location="0000:00:14.0-9")
    node.reload(LOCATION)
    node.plug(twin)
    node.pull(twin)
    node.pull(usb_port())
    node.now += 8000
    node.list()
    node.reload(PLAIN)
    node.plug(msgspec.structs.replace(twin, usb=usb_port(location="0000:00:14.0-8").usb))
    assert node.health[A] is Health.UNPLUGGED


@pytest.mark.parametrize(
    "rules",
    [
        (LOCATION,),
        (ResourceRule(SERIAL, unit=Unit.USB_DEVICE),),
        (ResourceRule(OTHER),),
        (ResourceRule(OTHER, (Selector(serial=""),), unit=Unit.USB_DEVICE), PLAIN),
    ],
)
def test_of_two_that_hold_one_port_by_now_only_one_runs(rules: tuple[ResourceRule, ...]) -> None:
    node = Node(PLAIN)
    one, other = stick(1, serial="ONE"), stick(2, "ttyUSB1", serial="")
    node.plug(one)
    node.plug(other)
    by_serial, by_place = "usb-0403:6001-ONE-if00", "usb-0403:6001-at-0000:00:14.0-2-if00"
    node.give(by_serial, "default/one/main")
    node.give(by_place, "default/other/main")
    node.pull(one)
    node.pull(other)
    node.end(by_place)
    node.plug(stick(2, "ttyUSB2", serial="ONE"))
    node.start(by_serial)
    node.reload(*rules)
    node.settle()
    both = [device_id for device_id in (by_serial, by_place) if node.is_there(device_id)]
    for device_id in both:
        key = (SERIAL, device_id)
        rival = node.inventory.conflict(device_id, [key])
        assert ("default/one/main may have it open" in rival) is (device_id == by_place)


def test_a_container_with_two_devices_is_no_rival_of_itself() -> None:
    node = Node(PLAIN)
    one, other = stick(1, serial="ONE"), stick(2, "ttyUSB1", serial="TWO")
    ids = ["usb-0403:6001-ONE-if00", "usb-0403:6001-TWO-if00"]
    for port, device_id in zip((one, other), ids, strict=True):
        node.plug(port)
        node.give(device_id)
    node.pull(one)
    node.pull(other)
    node.plug(stick(1, "ttyUSB1", serial="ONE"))
    node.plug(stick(2, "ttyUSB0", serial="TWO"))
    keys = [(SERIAL, device_id) for device_id in ids]
    assert [node.inventory.conflict(device_id, keys) for device_id in ids] == ["", ""]
    assert all(node.inventory.conflict(device_id, []) for device_id in ids)


def test_what_a_cdi_name_tells_is_no_news() -> None:
    rule = ResourceRule(SERIAL, unit=Unit.USB_DEVICE)
    node = Node(rule)
    ports = [usb_port(f"ttyUSB{n}", serial="M", interface=n) for n in range(2)]
    for port in ports:
        node.plug(port)
    node.settle()
    modem = "usb-0403:6001-M"
    node.inventory.grant(modem, {"if00": "", "if01": ""}, node.now)
    node.held[SERIAL, modem] = POD
    node.ask()
    before = node.grants(modem)
    node.inventory.learn([Grant(SERIAL, modem, {"": GrantedPort(None, "")})], node.now)
    assert node.grants(modem) == before
    assert [port.number for grant in before for port in grant.ports.values()] == [
        (188, 0),
        (188, 1),
    ]


def test_a_cdi_name_of_which_no_ports_were_known_has_them_from_its_start() -> None:
    rule = ResourceRule(SERIAL, unit=Unit.USB_DEVICE)
    node = Node(rule)
    for number in range(2):
        node.plug(usb_port(f"ttyUSB{number}", serial="M", interface=number))
    node.settle()
    modem = "usb-0403:6001-M"
    told = Grant(SERIAL, modem, {"": GrantedPort(None, "")}, is_unsure=True)
    node.inventory.learn([told], node.now)
    node.held[SERIAL, modem] = POD
    node.ask()
    assert node.health == {modem: Health.DISPLACED}
    node.start(modem)
    assert node.health == {modem: Health.READY}
    (grant,) = node.grants(modem)
    assert grant.ports == {
        "if00": GrantedPort(DeviceNumber(188, 0), ""),
        "if01": GrantedPort(DeviceNumber(188, 1), ""),
    }


def test_numbers_that_version_0_1_noted_end_with_the_boot() -> None:
    ports = {"if00": GrantedPort(DeviceNumber(188, 0), f"/run/{A}/if00")}
    node = Node(PLAIN)
    node.disk[A] = DeviceState(A, SERIAL, (usb_port(),), (Grant(SERIAL, A, ports),))
    node.held[SERIAL, A] = POD
    node.restart(PLAIN)
    node.plug(usb_port())
    node.ask()
    assert node.health == {A: Health.READY}
    node.pull(usb_port())
    node.restart(PLAIN, boot="second")
    node.plug(usb_port("ttyUSB1"))
    node.plug(usb_port(serial="NEW", location="0000:00:14.0-2"))
    node.ask()
    assert set(node.health.values()) == {Health.READY}


def test_the_notes_of_a_share_keep_the_numbers_that_version_0_1_noted() -> None:
    rule = ResourceRule(SERIAL, shares=2)
    ports = {"if00": GrantedPort(DeviceNumber(188, 0), f"/run/{A}/if00")}
    node = Node(rule)
    grant = Grant(SERIAL, A, ports, is_of_all_shares=True)
    node.disk[A] = DeviceState(A, SERIAL, (usb_port(),), (grant,))
    node.restart(rule)
    node.plug(usb_port("ttyUSB1"))
    guess = {"if00": GrantedPort(None, f"/run/{A}/if00", (DeviceNumber(188, 1),))}
    node.inventory.learn([Grant(SERIAL, f"{A}.0", guess, is_unsure=True)], node.now)
    node.held[SERIAL, f"{A}.0"] = POD
    node.ask()
    assert node.health == {A: Health.DISPLACED}
    assert "/dev/ttyUSB1 is 188:1 now, its container has 188:0" in node.reason()


def test_who_was_given_a_makeshift_id_keeps_the_device_under_its_better_one() -> None:
    node = Node(LOCATION)
    one, other = stick(1, serial="ONE"), stick(1, "ttyUSB1", serial="TWO")
    node.plug(one)
    node.plug(other)  # in the same place, for the loss of the first one is not heard of yet
    place = "usb-0403:6001-at-0000:00:14.0-1-if00"
    (makeshift,) = set(node.health) - {place}
    node.give(makeshift)
    node.pull(one)
    node.pull(other)
    node.now += 8000
    node.list()
    node.plug(stick(1, "ttyUSB4", serial="TWO"))
    assert node.health == {place: Health.CONTESTED, makeshift: Health.DISPLACED}
    node.start(makeshift)
    node.restart(LOCATION)
    node.list()
    node.ask()
    assert node.health == {place: Health.CONTESTED, makeshift: Health.RETIRED}
    node.take(makeshift)
    assert node.health == {place: Health.READY}


def test_a_way_out_is_named_that_is_one() -> None:
    newcomer = usb_port(serial="NEW", location="0000:00:14.0-2")
    for rules, way_out in (
        ((PLAIN,), "restart that container or delete its pod"),
        ((ResourceRule(SERIAL, checks_starts=False),), "delete that pod"),
        ((ResourceRule(OTHER),), "delete that pod"),
    ):
        node = held()
        node.reload(*rules)
        node.pull(usb_port())
        node.plug(newcomer)
        assert node.reason("usb-0403:6001-NEW-if00").endswith(f"may open it: {way_out}")


def test_a_held_device_that_has_lost_a_port_for_good_has_a_way_out() -> None:
    node = Node(ResourceRule(SERIAL, unit=Unit.USB_DEVICE))
    ports = [usb_port(f"ttyUSB{n}", serial="M", interface=n) for n in range(2)]
    for port in ports:
        node.plug(port)
    node.settle()
    node.give("usb-0403:6001-M")
    node.pull(ports[1])
    assert node.reason("usb-0403:6001-M") == (
        "if01 (/dev/ttyUSB1) of its 2 ports are missing; if they are gone for good, delete the pod"
    )
    node.take("usb-0403:6001-M")
    node.now += 20
    node.list()
    assert node.health == {"usb-0403:6001-M": Health.READY}


def test_a_freed_number_is_news_to_a_device_that_is_not_offered_any_longer() -> None:
    node = Node(PLAIN)
    one, other = stick(1, serial="ONE"), stick(2, "ttyUSB1", serial="TWO")
    ids = ["usb-0403:6001-ONE-if00", "usb-0403:6001-TWO-if00"]
    for port, device_id in zip((one, other), ids, strict=True):
        node.plug(port)
        node.give(device_id, f"default/{device_id}/main")
    node.reload(ResourceRule(SERIAL, (Selector(serial="ONE"),)))
    node.pull(one)
    node.pull(other)
    node.end(ids[1])
    node.plug(stick(2, "ttyUSB0", serial="TWO"))
    assert node.health[ids[1]] is Health.CONTESTED
    node.take(ids[0])
    assert node.health[ids[1]] is Health.RETIRED


def test_what_version_0_1_wrote_of_a_device_holds_for_each_of_its_shares() -> None:
    rule = ResourceRule(SERIAL, shares=2)
    ports = {"if00": GrantedPort(DeviceNumber(188, 0), f"/run/{A}/if00")}
    grant = Grant(SERIAL, A, ports, is_of_all_shares=True)
    node = Node(rule)
    node.disk[A] = DeviceState(A, SERIAL, (usb_port(),), (grant,))
    node.restart(rule)
    node.plug(usb_port())
    for share in range(2):
        node.held[SERIAL, f"{A}.{share}"] = f"default/pod{share}/main"
    node.ask()
    assert node.health == {A: Health.READY}
    assert [one.listed_id for one in node.grants()] == [f"{A}.0", f"{A}.1"]


def test_an_obstacle_on_disk_is_a_devices_reason_until_it_is_gone() -> None:
    node = Node(PLAIN)
    node.plug(usb_port())
    node.inventory.obstruct({A: "its link cannot be written: No space left"}, node.now)
    assert node.health == {A: Health.BROKEN}
    assert node.reason() == "its link cannot be written: No space left"
    node.reload(PLAIN)
    assert node.health == {A: Health.BROKEN}
    node.inventory.obstruct({A: "", "usb-0403:6001-NONE-if00": "unknown"}, node.now)
    assert node.health == {A: Health.READY}


def test_a_flapping_device_is_flapping_until_it_has_been_quiet_however_its_facts_come() -> None:
    node = Node(PLAIN)
    for _ in range(5):
        node.plug(usb_port())
        node.now += 1
        node.pull(usb_port())
        node.now += 1
    node.plug(usb_port())
    assert node.health == {A: Health.FLAPPING}
    node.pull(usb_port())
    assert node.health == {A: Health.UNPLUGGED}
    node.now += 25
    node.plug(usb_port())
    assert node.health == {A: Health.FLAPPING}
    node.now += 29
    node.list()
    assert node.health == {A: Health.FLAPPING}, "the departures are old, but it was not quiet"
    node.pull(usb_port())
    node.now += 30
    node.plug(usb_port())
    assert node.health == {A: Health.READY}, "it was quiet for long enough, if away"
