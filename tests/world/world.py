"""A node: hardware, a kubelet and the plugin; and the promise, which all of it is held to.

The promise: no container ever opens another device than the one it was given, and no port is with
two containers, but for the shares it has. And so that who refuses everything does not keep it: a
device that is fit, and that nobody has, is on offer.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.world.disk import Disk, Trouble
from tests.world.hardware import STICKS, Kernel
from tests.world.kubelet import CHECKPOINT, Container, Given, Kubelet, Runtime
from tests.world.plugin import Plugin
from tests.world.terms import LINKS, Terms
from usbplugin.custody.cdi import qualified_name
from usbplugin.discovery import AllPorts, IdentityMode, PortGone, PortPresent
from usbplugin.inventory.shares import device_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from tests.world.hardware import Socket, Stick, Tty
    from tests.world.kubelet import Node
    from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
    from usbplugin.discovery import DeviceNumber, Fact, Port
    from usbplugin.inventory import Device, HeldDevice

SOURCE = "udev"
ENOUGH = 40.0
"""Seconds after which nothing is waited for any longer, but for what is remembered."""


class World:
    """Everything there is."""

    make_plugin: type[Plugin] = Plugin

    def __init__(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="up-")
        self.root = Path(self._scratch.name)
        self.disk = Disk()
        self._disk_calls = self.disk.inserted()
        self.now = 100.0
        self.boots = 1
        self.kernel = Kernel(self._is_kept_open)
        self.kubelet = Kubelet(self.root)
        self.runtime = Runtime(self.kernel, self.root / "cdi")
        self.kubelet_answers = True
        self.plugin: Plugin | None = None
        self._touched: dict[str, None] = {}
        self._seen: dict[str, int] = {}
        self._settling: set[int] = set()
        self._question: tuple[float, list[HeldDevice]] | None = None
        self._told_apart: dict[str, frozenset[Stick]] = {}
        """By the ID that one of them has: sticks that the plugin has seen side by side."""
        self._told_apart_on_disk: dict[str, frozenset[Stick]] = {}
        self._went_by_place = False
        """Whether serials ever did not count: IDs of that time are kept after a reload."""
        self._disk_was_well = True

    def close(self) -> None:
        """Leave nothing behind."""
        if self.plugin:
            self.plugin.kill()
        self._disk_calls.close()
        self._scratch.cleanup()

    # Hardware, and what the source has heard of it.

    def plug(self, stick: Stick, socket: Socket, *, settles: bool) -> None:
        ttys = self.kernel.plug(stick, socket)
        if settles:
            self._settling |= {tty.life for tty in ttys}
        self._touch(ttys)

    def pull(self, stick: Stick) -> None:
        self._touch(self.kernel.pull(stick))

    def _touch(self, ttys: Sequence[Tty]) -> None:
        self._touched |= dict.fromkeys(tty.name for tty in ttys)

    def looks(self) -> list[list[Fact]]:
        """What the source finds at each of the names that it was told to look at."""
        found = [facts for name in self._touched if (facts := self._look(name))]
        self._touched.clear()
        return found

    def lose_events(self) -> None:
        """Nobody tells the source; only its next listing will."""
        self._touched.clear()

    def settle(self) -> None:
        """udevd has finished with all that is there."""
        self._touch([tty for tty in self.kernel.ttys if tty.life in self._settling])
        self._settling.clear()

    def _look(self, name: str) -> list[Fact]:
        tty = self.kernel.named(name)
        facts: list[Fact] = []
        if name in self._seen and (tty is None or tty.life != self._seen[name]):
            del self._seen[name]
            facts.append(PortGone(SOURCE, name))
        if tty is not None:
            self._seen[name] = tty.life
            facts.append(PortPresent(SOURCE, self._port(tty)))
        return facts

    def listing(self, reason: str) -> list[Fact]:
        """What the source finds when it looks at everything."""
        names = [*self._seen, *(tty.name for tty in self.kernel.ttys)]
        gone = [f for name in sorted(names) for f in self._look(name) if isinstance(f, PortGone)]
        self._touched.clear()
        return [*gone, AllPorts(SOURCE, tuple(map(self._port, self.kernel.ttys)), reason)]

    def _port(self, tty: Tty) -> Port:
        return self.kernel.port(tty, settled=tty.life not in self._settling)

    def _is_kept_open(self, number: DeviceNumber) -> bool:
        return any(number in one.kept_open for one in self.kubelet.containers)

    # The plugin's lives.

    def start(self, terms: Terms) -> None:
        """A new process; it knows what is on disk, what it sees, and what the kubelet says."""
        self._seen.clear()
        self.plugin = self.make_plugin(
            self.root,
            terms,
            self.kernel,
            self.runtime.number_behind,
            lambda: self.now,
            f"boot{self.boots}",
            self.root / CHECKPOINT,
        )
        self._disk_was_well = not self.disk.troubles
        held = self.kubelet.held() if self.kubelet_answers else None
        self.plugin.begin(self.listing("start"), held, self.now)
        if held is not None or self.kubelet.has_notes:
            self._all_are_known()
        self.observe()

    def kill(self) -> None:
        if self.plugin:
            self.plugin.kill()
            self._ended()

    def stop(self) -> None:
        if self.plugin:
            self.plugin.stop(self.kubelet.held() if self.kubelet_answers else None, self.now)
            self._ended()

    def _ended(self) -> None:
        self.plugin = None
        self._question = None
        self._told_apart = dict(self._told_apart_on_disk)

    def tell(self, facts: Sequence[Fact], *, killed: bool = False) -> None:
        """The source has found something; perhaps the plugin is killed over it."""
        if self.plugin and facts:
            self.plugin.tell(facts, abruptly=killed)
            self.observe()
            if killed:
                self.kill()

    def pass_time(self, seconds: float) -> None:
        """Time passes, and the plugin is woken when it wants to be."""
        end = self.now + seconds
        while self.plugin and self.plugin.wake is not None and self.plugin.wake <= end:
            self.now = max(self.now, self.plugin.wake)
            before = self.plugin.wake
            self.plugin.tell([])
            self.observe()
            if self.plugin.wake is not None:
                assert self.plugin.wake > before, "it wants to be woken for ever"
        self.now = end

    def ask(self) -> None:
        """The kubelet is asked who holds what; its answer is on the way."""
        if self.plugin:
            self._question = (self.now, self.kubelet.held())

    def hear(self) -> None:
        """The answer arrives."""
        if self.plugin and self._question:
            asked_at, held = self._question
            self._question = None
            self.plugin.hear(held, asked_at)
            named = {(one.resource, one.device_id) for one in held}
            for one in self.kubelet.containers:
                if one.is_of_a_claim:
                    continue  # that the kubelet names a claim does not prepare it
                one.is_known |= {(one.resource, listed_id) for listed_id in one.ids} <= named
            self.observe()

    def reboot(self, order: Sequence[tuple[Stick, Socket]], *, with_specs: bool) -> None:
        """All is down; then what is plugged in is found in that order.

        Args:
            order: What is plugged in where, as the kernel finds it.
            with_specs: Whether the directory of CDI specs outlives the boot.
        """
        self.kill()
        for one in self.kubelet.containers:
            one.end()
            one.believed = frozenset()
            one.has_known_numbers = True
        for stick in list(self.kernel.where):
            self.kernel.pull(stick)
        for name in (*LINKS, *([] if with_specs else ["cdi"])):
            shutil.rmtree(self.root / name, ignore_errors=True)
        self.boots += 1
        self.now = 20.0
        self._settling.clear()
        for stick, socket in order:
            self.kernel.plug(stick, socket)
        self._touched.clear()

    def lose_states(self) -> None:
        """The state directory is gone, while the plugin is not there."""
        shutil.rmtree(self.root / "states", ignore_errors=True)
        self._told_apart, self._told_apart_on_disk = {}, {}
        for one in self.kubelet.containers:
            one.is_known = False
            one.was_forgotten = True
            one.has_known_numbers = not one.runs
            # Which of two copies it was given, nobody knows any more.
            for given in one.given.values():
                given.copies |= set(filter(given.tty.stick.is_copy_of, STICKS))

    def _all_are_known(self) -> None:
        for one in self.kubelet.containers:
            one.is_known = True

    # Pods.

    def admit(self, resource: str, ids: Sequence[str], *, killed: bool) -> Container | None:
        """A pod that asks for these; None if the plugin refuses.

        Args:
            resource: Of which.
            ids: As the kubelet was told of them.
            killed: Whether the plugin is killed once it has answered.
        """
        if self.plugin is None:
            return None
        shares = next(o.shares for o in self.plugin.terms.offers if o.resource == resource)
        if self._is_behind({device_of(listed_id, shares) for listed_id in ids}):
            # The answer says then what the next facts make of it: what it leads to now is not what
            # is given, and the container is not started before they have come.
            return None
        answer = self.plugin.allocate(resource, ids, abruptly=killed)
        if killed:
            self.kill()
        if answer is None:
            return None
        nodes = self.runtime.nodes(answer)
        assert nodes, f"{ids} of {resource} were given, and lead nowhere:\n{answer}"
        listed = {device_of(listed_id, shares): listed_id for listed_id in ids}
        given = {}
        for node, device_id in _device_of_nodes(answer, resource, nodes, listed).items():
            tty = self.kernel.at(nodes[node])
            assert tty, f"{device_id} was given with a number that leads nowhere"
            given[node] = Given(tty, device_id, listed[device_id])
        assert {one.device_id for one in given.values()} == listed.keys()
        container = Container(self.kubelet.next_pod(), resource, tuple(ids), shares, answer, given)
        container.believed = frozenset(nodes.values())
        for one in given.values():
            self._check_unshared(container, one, one.tty, "was given")
        self.kubelet.admit(container)
        return container

    def _is_behind(self, device_ids: Collection[str]) -> bool:
        """Whether the plugin has not heard yet of what happened to these devices."""
        assert self.plugin
        devices = (device for device in self.plugin.devices if device.id in device_ids)
        return not all(
            self.kernel.is_unchanged(port) for device in devices for port in device.ports
        )

    def start_container(self, container: Container, *, keeps_open: bool) -> bool:
        """A container that does not run is to be started; whether it was."""
        container.end()
        if self.plugin is None or not self.plugin.serves(container.resource):
            return False  # the kubelet has nobody to ask
        may_start = self.plugin.pre_start(container.resource, container.ids)
        container.believed = frozenset()
        container.has_known_numbers = True
        if not may_start:
            return False
        nodes = self.runtime.nodes(container.answer)
        if nodes is None:
            return False
        for node, number in nodes.items():
            tty = self.kernel.at(number)
            assert node in container.given, f"{container} has got {tty} in addition"
            given = container.given[node]
            assert tty is not None, f"{container} has got {number}, which leads nowhere"
            assert given.is_meant(tty), f"{container} was given {given.tty}, and opens {tty}"
            self._check_unshared(container, given, tty, "was started with")
        assert nodes.keys() == container.given.keys(), f"{container} lacks a port"
        container.nodes = dict(nodes)
        container.believed = frozenset(nodes.values())
        container.kept_open = container.believed if keeps_open else frozenset()
        return True

    def _check_unshared(self, container: Container, given: Given, tty: Tty, what: str) -> None:
        """A container gets that port: others have it only as shares of the same."""
        with_it, shares = 1, container.shares
        for other in self.kubelet.containers:
            if other is container or not other.is_known:
                continue
            for node, theirs in other.given.items():
                runs_with_it = other.nodes.get(node) == tty.number
                holds_it = what == "was given" and theirs.is_of(tty)
                if not (holds_it or runs_with_it):
                    continue
                if not theirs.is_meant(tty):
                    assert not (runs_with_it and other.has_known_numbers), (
                        f"{container} {what} {tty}, which {other} can open, that was given"
                        f" {theirs.tty}"
                    )
                    continue
                assert other.terms(theirs) == container.terms(given), (
                    f"{container} {what} {tty}, which {other} has on other terms"
                )
                with_it, shares = with_it + 1, max(shares, other.shares)
        assert with_it <= shares, f"{tty} is with {with_it} containers"

    # The promise, at any moment.

    def observe(self) -> None:
        """What the plugin offers now is what it may offer."""
        if self.plugin is None:
            return
        self._see_copies()
        for device in self.plugin.offered:
            for tty in filter(None, map(self.behind, device.ports)):
                for container in self.kubelet.containers:
                    for node, given in container.given.items():
                        self._check_offer(device, tty, container, node, given)

    def _check_offer(
        self, device: Device, tty: Tty, container: Container, node: Node, given: Given
    ) -> None:
        if not container.is_known:
            return
        if container.nodes.get(node) == tty.number and container.has_known_numbers:
            assert given.is_meant(tty), (
                f"{device.id} is offered at {tty}, which {container} can open, that was given"
                f" {given.tty}"
            )
        if given.device_id == device.id and given.is_meant(tty) and container.has_known_numbers:
            number = container.nodes.get(node, tty.number)
            assert number == tty.number, f"{device.id} is offered, but {container} has {number}"
        if given.is_of(tty) and given.is_meant(tty):
            assert self.plugin
            offer = next(o for o in self.plugin.terms.offers if o.resource == device.resource)
            is_the_same = container.is_offered_as(device, offer)
            assert is_the_same, f"{device.id} is offered at {tty}, which {container} has"

    def behind(self, port: Port) -> Tty | None:
        """What the plugin takes that port for, if it is not mistaken."""
        return self.kernel.named(port.name) if self.kernel.is_unchanged(port) else None

    def _see_copies(self) -> None:
        """Which copies went by a serial that they share, and which were seen side by side."""
        assert self.plugin
        there = [
            (device, tty)
            for device in self.plugin.devices
            if device.health.is_there
            for tty in filter(None, map(self.behind, device.ports))
        ]
        self._see_who_is_taken_for_whom(there)
        for device, tty in there:
            others = {
                other.stick
                for _, other in there
                if other.stick is not tty.stick
                and other.stick.is_copy_of(tty.stick)
                and self._is_known_by_serial(other, tty)
            }
            if others:
                known = self._told_apart.get(device.id, frozenset())
                self._told_apart[device.id] = known | others | {tty.stick}
        listed = {device.id for device in self.plugin.devices}
        for device_id in self._told_apart.keys() - listed:
            del self._told_apart[device_id]
        rules = self.plugin.terms.rules
        self._went_by_place |= any(rule.identity is IdentityMode.LOCATION for rule in rules)
        if self.disk.is_well(self.root / "states"):
            self._told_apart_on_disk = dict(self._told_apart)

    def _see_who_is_taken_for_whom(self, there: Sequence[tuple[Device, Tty]]) -> None:
        for container in self.kubelet.containers:
            for given in container.given.values():
                given.was_replaced |= not given.is_by_serial and any(
                    given.is_meant(tty) and tty.stick is not given.tty.stick
                    for tty in self.kernel.ttys
                )
        for device, tty in there:
            known = self._told_apart.get(device.id, frozenset())
            for given in self._given(device.id):
                original = given.tty.stick
                # In the very same place, nothing tells one from the other.
                is_back = tty.socket is given.last_socket and not tty.socket.is_virtual
                if not tty.stick.is_copy_of(original):
                    continue
                if is_back or not {original, tty.stick} <= known:
                    given.copies.add(tty.stick)
                if tty.stick in given.copies:
                    given.last_socket = tty.socket

    def _given(self, device_id: str) -> Iterator[Given]:
        for container in self.kubelet.containers:
            for given in container.given.values():
                if given.device_id == device_id and given.is_by_serial:
                    yield given

    def _is_known_by_serial(self, *ttys: Tty) -> bool:
        """Whether the plugin compares the serials of these with each other's."""
        assert self.plugin
        rules = []
        for tty in ttys:
            port = self.kernel.port(tty)
            rules.append(next((r for r in self.plugin.terms.rules if r.matches(port)), None))
        rule = rules[0]
        if rule is None or any(other != rule for other in rules):
            return False
        serial = ttys[0].stick.serial
        return rule.identity is IdentityMode.SERIAL or (
            rule.identity is IdentityMode.AUTO and serial not in ("", "0001")
        )

    def check_that_what_is_fit_is_offered(self) -> None:
        """All is told, time passes, disks are well: nothing is held back for ever."""
        assert self.plugin
        assert not self.disk.troubles
        self.settle()
        self.tell(self.listing("period"))
        self.pass_time(ENOUGH)
        self.ask()
        self.hear()
        self.pass_time(1.0)
        self.plugin.look()
        self.observe()
        offered = {port.name: device for device in self.plugin.offered for port in device.ports}
        numbers = {number for one in self.kubelet.containers for number in one.believed}
        if not all(one.has_known_numbers and one.is_known for one in self.kubelet.containers):
            return
        for tty in self.kernel.ttys:
            port = self.kernel.port(tty)
            rule = next((rule for rule in self.plugin.terms.rules if rule.matches(port)), None)
            if rule is None or not self._is_free(tty, numbers):
                continue
            device = offered.get(tty.name)
            assert device, f"{tty} is not offered: {self._shown()}"
            assert device.resource == rule.name
            if tty.stick.is_unique and not self._went_by_place:
                head = f"usb-{tty.stick.vendor}:{tty.stick.product}-{tty.stick.serial}"
                assert device.id.startswith(head), f"{tty} is known as {device.id}"
        self._check_files()
        for container in self.kubelet.containers:
            if not container.runs and self._can_start(container):
                started = self.start_container(container, keeps_open=False)
                assert started, f"{container} cannot be started: {self._shown()}"

    def _can_start(self, container: Container) -> bool:
        """Whether what a container was given is where it was, and nobody else can open it."""
        assert self.plugin
        if container.was_forgotten or not self.plugin.serves(container.resource):
            return False
        links = f"{self.root / self.plugin.terms.links}/"
        if not all(device.host_path.startswith(links) for device in container.answer.devices):
            return False
        there = {(tty.life, tty.index): tty.number for tty in self.kernel.ttys}
        numbers = {there.get((one.tty.life, one.tty.index)) for one in container.given.values()}
        others = (one for one in self.kubelet.containers if one is not container)
        taken = {number for one in others for number in one.believed}
        return None not in numbers and taken.isdisjoint(numbers)

    def _is_free(self, tty: Tty, numbers: set[DeviceNumber]) -> bool:
        """Whether nobody has anything of that whole device, for all that anybody can know."""
        whole = [other for other in self.kernel.ttys if other.stick is tty.stick]
        return not any(
            other.number in numbers or given.may_be_of(other)
            for other in whole
            for one in self.kubelet.containers
            for given in one.given.values()
        ) and not any(other.number in numbers for other in whole)

    def _check_files(self) -> None:
        """Nothing is left of devices that are forgotten."""
        if self.plugin is None or not self._disk_was_well:
            return
        known = {device.id for device in self.plugin.devices}
        states = {path.stem for path in (self.root / "states").glob("*")}
        links = {path.name for path in (self.root / self.plugin.terms.links).glob("[!.]*")}
        assert states <= known, f"states are left of {states - known}"
        assert links <= known, f"links are left of {links - known}"

    def spoil(self, directory: str, trouble: Trouble) -> None:
        """From now on, a directory cannot be written to; so something may be left in it."""
        self.disk.spoil(self.root / directory, trouble)
        self._disk_was_well = False

    def _shown(self) -> str:
        assert self.plugin
        return "; ".join(
            f"{d.resource} {d.id} {d.health.value} {d.nodes} {d.reason}"
            for d in self.plugin.devices
        )


def _device_of_nodes(
    answer: v1beta1.ContainerAllocateResponse,
    resource: str,
    nodes: Mapping[Node, DeviceNumber],
    device_ids: Mapping[str, str],
) -> Mapping[Node, str]:
    """Of which device each node is, by the names in an answer."""
    if len(device_ids) == 1:
        return dict.fromkeys(nodes, next(iter(device_ids)))
    of_path = {
        device.container_path: Path(device.host_path).parent.name for device in answer.devices
    }
    of_name = {qualified_name(resource, device_id): device_id for device_id in device_ids}
    return {node: of_path.get(node[0]) or of_name[node[0]] for node in nodes}
