"""Generated histories of cables, containers and restarts: nobody ever opens somebody else's device.

Nodes are real character devices that every machine has, so that links lead somewhere and device
numbers can be read; which of them a plugged device gets is up to the history, as to the kernel.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support import all_ports, gone, present, usb_port
from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.custody import CdiDirectory, Custody, LinkDirectory, Offer, StateStore
from usbplugin.deviceplugin import DevicePlugin
from usbplugin.discovery import DeviceNumber, Port, UsbInterface
from usbplugin.inventory import HealthPolicy, HeldDevice, ResourceRule, Selector

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc

SERIAL = "usbplugin/serial"
OTHER = "usbplugin/other"
NODES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
# Nothing here is about flapping or forgetting.
POLICY = HealthPolicy(flaps=10**6, retention=10**6, holder_grace=0.0)


@dataclass
class Physical:
    """A piece of hardware. One whose serial is its own may be plugged in anywhere."""

    serial: str
    home: str
    is_unique: bool
    place: str = ""
    node: str = ""

    def port(self) -> Port:
        number = DeviceNumber.of(os.stat(self.node).st_rdev)
        return usb_port(
            Path(self.node).name,
            node=self.node,
            number=number,
            usb=UsbInterface("0403", "6001", self.serial, location=self.place),
        )


@dataclass
class Container:
    """A container that was admitted: what it holds, and what the kubelet replays for it."""

    device_id: str
    hardware: Physical
    resource: str
    path: str
    runs_with: DeviceNumber | None = None
    holding: HeldDevice = field(init=False)


class AbortedError(Exception):
    """A call was refused."""


class Context:
    async def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        raise AbortedError(code, details)


class Histories(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.scratch = tempfile.TemporaryDirectory(prefix="up-")
        self.root = Path(self.scratch.name)
        self.hardware = [
            Physical("UNIQUE-1", "1", is_unique=True),
            Physical("UNIQUE-2", "2", is_unique=True),
            Physical("TWIN", "3", is_unique=False),
            Physical("TWIN", "4", is_unique=False),
            Physical("", "5", is_unique=False),
        ]
        self.containers: dict[str, Container] = {}
        self.count = 0
        self.resource_rules = [ResourceRule(SERIAL)]
        self.start_plugin()
        # The first time that a copy is seen, nothing can tell it from the original that moved.
        self.plug(2, "/dev/null", "")
        self.plug(3, "/dev/zero", "")

    def teardown(self) -> None:
        self.loop.close()
        self.scratch.cleanup()

    def start_plugin(self) -> None:
        def start() -> None:
            self.custody = Custody(
                self.resource_rules,
                [Offer(one.name) for one in self.resource_rules],
                POLICY,
                LinkDirectory(self.root),
                StateStore(self.root),
                CdiDirectory(self.root / "cdi"),
                lambda snapshot, noticed: None,
                lambda changes: None,
                lambda moment: None,
            )
            self.custody.apply([all_ports(*(one.port() for one in self.plugged))])
            self.tell_holders()
            self.custody.clean_up()

        self.run(start)

    def run(self, action: Callable[[], None]) -> None:
        async def inside() -> None:
            action()

        self.loop.run_until_complete(inside())

    @property
    def plugged(self) -> list[Physical]:
        return [one for one in self.hardware if one.node]

    def behind(self, path: str) -> Physical | None:
        """The hardware that opening ``path`` leads to."""
        node = os.path.realpath(path)
        return next((one for one in self.plugged if one.node == node), None)

    def tell_holders(self) -> None:
        self.custody.hold([one.holding for one in self.containers.values()], time.monotonic())

    def plugin(self, resource: str) -> DevicePlugin:
        return DevicePlugin(
            Offer(resource), self.custody.snapshot(resource), self.custody, lambda: None
        )

    @rule(which=st.integers(0, 4), node=st.sampled_from(NODES), place=st.sampled_from("67"))
    def plug(self, which: int, node: str, place: str) -> None:
        one = self.hardware[which]
        taken = {other.node for other in self.plugged} | {other.place for other in self.plugged}
        where = place if one.is_unique else one.home
        if one.node or node in taken or where in taken:
            return
        one.node, one.place = node, where
        self.run(lambda: self.custody.apply([present(one.port())]))

    @rule(which=st.integers(0, 4))
    def pull(self, which: int) -> None:
        one = self.hardware[which]
        if one.node:
            port = one.port()
            one.node = one.place = ""
            self.run(lambda: self.custody.apply([gone(port)]))

    @rule(first=st.integers(0, 4), second=st.integers(0, 4))
    def swap_nodes(self, first: int, second: int) -> None:
        """A hub's power cycle within one batch: two devices come back in the other order."""
        one, other = self.hardware[first], self.hardware[second]
        if one is other or not (one.node and other.node):
            return
        facts = [gone(one.port()), gone(other.port())]
        one.node, other.node = other.node, one.node
        facts_after = [present(other.port()), present(one.port())]
        self.run(lambda: self.custody.apply([*facts, *facts_after]))

    @rule(first=st.integers(0, 4), second=st.integers(0, 4))
    def swap_unseen(self, first: int, second: int) -> None:
        """The same while no event got through: only the next listing tells."""
        one, other = self.hardware[first], self.hardware[second]
        if one is other or not (one.node and other.node):
            return
        one.node, other.node = other.node, one.node
        ports = [one.port() for one in self.plugged]
        self.run(lambda: self.custody.apply([all_ports(*ports, reason="period")]))

    @rule()
    def restart_plugin(self) -> None:
        self.start_plugin()

    @rule()
    def ask_kubelet(self) -> None:
        self.run(self.tell_holders)

    @rule(split=st.booleans())
    def reload(self, *, split: bool) -> None:
        if not split and any(one.resource == OTHER for one in self.containers.values()):
            return  # its pods would be of a resource that is no more
        only_first = ResourceRule(OTHER, (Selector(serial="UNIQUE-1"),))
        self.resource_rules = [only_first] * split + [ResourceRule(SERIAL)]
        self.run(
            lambda: self.custody.reconfigure(
                self.resource_rules, [Offer(one.name) for one in self.resource_rules], POLICY
            )
        )

    @rule(data=st.data())
    def allocate(self, data: st.DataObject) -> None:
        held = {one.device_id for one in self.containers.values()}
        free = [
            device
            for device in self.custody.devices
            if device.health.is_usable and device.id not in held
        ]
        if not free:
            return
        device = data.draw(st.sampled_from(free))
        request = v1beta1.AllocateRequest(
            container_requests=[v1beta1.ContainerAllocateRequest(devices_ids=[device.id])]
        )
        answer = self.loop.run_until_complete(
            self.plugin(device.resource).Allocate(request, Context())  # type: ignore[arg-type]
        )
        (spec,) = answer.container_responses[0].devices
        hardware = self.behind(spec.host_path)
        assert hardware is not None
        self.count += 1
        container = Container(device.id, hardware, device.resource, spec.host_path)
        container.holding = HeldDevice(device.resource, device.id, f"default/pod{self.count}/main")
        self.containers[f"pod{self.count}"] = container
        self.start(f"pod{self.count}")

    @precondition(lambda self: self.containers)
    @rule(data=st.data())
    def restart_container(self, data: st.DataObject) -> None:
        self.start(data.draw(st.sampled_from(sorted(self.containers))))

    def start(self, name: str) -> None:
        container = self.containers[name]
        container.runs_with = None
        request = v1beta1.PreStartContainerRequest(devices_ids=[container.device_id])
        try:
            self.loop.run_until_complete(
                self.plugin(container.resource).PreStartContainer(request, Context())  # type: ignore[arg-type]
            )
        except AbortedError:
            return
        opened = self.behind(container.path)
        assert opened is container.hardware, "a container opened another one's device"
        container.runs_with = opened.port().number

    @precondition(lambda self: self.containers)
    @rule(data=st.data())
    def delete_pod(self, data: st.DataObject) -> None:
        del self.containers[data.draw(st.sampled_from(sorted(self.containers)))]

    @invariant()
    def an_allocated_id_means_the_same_hardware(self) -> None:
        for container in self.containers.values():
            device = next((d for d in self.custody.devices if d.id == container.device_id), None)
            if device is not None and device.health.is_there:
                assert self.behind(device.ports[0].node) is container.hardware

    @invariant()
    def links_lead_to_their_own_device_or_nowhere(self) -> None:
        devices = {device.id: device for device in self.custody.devices}
        for link in self.root.glob("*/if00"):
            found = self.behind(str(link))
            device = devices[link.parent.name]
            assert found is None or device.health.is_there
            if found is not None:
                assert found.node == device.ports[0].node

    @invariant()
    def a_container_that_runs_with_old_numbers_has_no_healthy_device(self) -> None:
        devices = {device.id: device for device in self.custody.devices}
        for container in self.containers.values():
            device = devices.get(container.device_id)
            if device is None or container.runs_with is None or not device.holders:
                continue
            if device.health.is_usable:
                assert container.hardware.port().number == container.runs_with


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    # The explore profile runs thousands.
    max_examples=settings().max_examples,
    stateful_step_count=60,
)
