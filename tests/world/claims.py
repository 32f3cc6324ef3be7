"""The world with a second front in it: resources whose devices are given out by claims.

There is no scheduler: a claim is allocated whatever is published and free, and the plugin decides.
Who restarts a container with a claim asks nobody: it gets what the CDI specs say at that moment.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.world.kubelet import Container, Given
from tests.world.plugin import Plugin
from tests.world.world import World
from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.dra.claims import ClaimStore
from usbplugin.dra.contracts import ClaimRef
from usbplugin.dra.names import device_name
from usbplugin.dra.preparer import Preparer
from usbplugin.dra.specs import ClaimSpecs
from usbplugin.errors import ClaimError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.world.hardware import Tty
    from usbplugin.custody import Offer
    from usbplugin.discovery import DeviceNumber
    from usbplugin.inventory import Device

NODE = "node"
NOBODYS = ClaimRef("", "", "")


class ClaimPlugin(Plugin):
    """The plugin with both fronts."""

    bodies: dict[ClaimRef, bytes]
    """What the API server says of claims."""

    def __init__(self, root: Path, *rest: object) -> None:
        super().__init__(root, *rest)  # type: ignore[arg-type]
        self.bodies = {}
        boot = rest[-2]
        assert isinstance(boot, str)
        self.preparer = Preparer(
            self.custody,
            ClaimStore(root / "claims"),
            ClaimSpecs(root / "cdi"),
            self,
            NODE,
            boot,
            patience=0.0,
        )
        self.custody.claimed.precede(self.preparer.make_true)
        self.reconfigured()

    async def claim(self, ref: ClaimRef) -> bytes:
        return self.bodies[ref]

    def take_up(self) -> None:
        self.preparer.begin()

    def opened(self) -> None:
        self.preparer.attend()

    def looked(self) -> None:
        self.preparer.look()

    def reconfigured(self) -> None:
        self.preparer.offer(offer for offer in self.terms.offers if offer.by_claim)

    @property
    def offered(self) -> list[Device]:
        by_claim = [
            device
            for offer in self.terms.offers
            if offer.by_claim
            for device in self.custody.snapshot(offer.resource).devices
            if device.health.is_usable
        ]
        return [*super().offered, *by_claim]

    def free_for_claims(self, resource: str) -> list[Device]:
        """What the scheduler may allocate."""
        (offer,) = [offer for offer in self.terms.offers if offer.resource == resource]
        return [
            device
            for device in self.custody.snapshot(resource).devices
            if device.health.is_usable
            and sum(1 for one in self.custody.claimed.holdings(device.id) if one.claim)
            < offer.shares
        ]

    def prepare(
        self, ref: ClaimRef, *, abruptly: bool = False
    ) -> v1beta1.ContainerAllocateResponse | None:
        """What containers with the claim get; None if it is refused."""

        async def prepare() -> v1beta1.ContainerAllocateResponse | None:
            try:
                _, given = await self.preparer.prepare(ref)
            except ClaimError:
                return None
            answer = v1beta1.ContainerAllocateResponse()
            for _, names in given:
                for name in names:
                    answer.cdi_devices.add(name=name)
            return answer

        return self.run(prepare, abruptly=abruptly)

    def unprepare(self, ref: ClaimRef) -> bool:
        """Whether the claim has nothing any longer."""

        async def unprepare() -> bool:
            try:
                await self.preparer.unprepare(ref)
            except ClaimError:
                return False
            return True

        return self.run(unprepare)


@dataclass(eq=False)
class ClaimPod(Container):
    """A container that has a claim of one device."""

    ref: ClaimRef = NOBODYS
    of: str = ""
    """The resource that its device was of."""

    @property
    def is_of_a_claim(self) -> bool:
        return True

    def is_offered_as(self, device: Device, offer: Offer) -> bool:
        ours = all(given.device_id == device.id for given in self.given.values())
        return offer.by_claim and self.of == device.resource and ours

    def terms(self, given: Given) -> tuple[object, ...]:
        return ("claim", self.of, given.device_id, self.shares > 1)


class BothFronts(World):
    """A node on which some resources are given out by claims."""

    make_plugin = ClaimPlugin

    def __init__(self) -> None:
        super().__init__()
        self.bodies: dict[ClaimRef, bytes] = {}
        self.to_unprepare: list[ClaimRef] = []
        """Of pods that have gone while the plugin was not there: the kubelet tries again."""

    @property
    def driver(self) -> ClaimPlugin | None:
        assert self.plugin is None or isinstance(self.plugin, ClaimPlugin)
        if self.plugin is not None:
            self.plugin.bodies = self.bodies
        return self.plugin

    def admit_with_claim(self, resource: str, device: Device, *, killed: bool) -> ClaimPod | None:
        """A pod with a claim that was allocated this device; None if it cannot be prepared."""
        if (driver := self.driver) is None or self._is_behind({device.id}):
            return None
        pod = self.kubelet.next_pod()
        ref = ClaimRef(f"uid-of-{pod}", "default", pod)
        name = device_name(device.id)
        self.bodies[ref] = _body(ref, name)
        answer = driver.prepare(ref, abruptly=killed)
        if killed:
            self.kill()
        if answer is None:
            self.to_unprepare.append(ref)
            return None
        nodes = self.runtime.nodes(answer)
        assert nodes, f"{device.id} of {resource} was given, and leads nowhere"
        given = {}
        for node, number in nodes.items():
            tty = self.kernel.at(number)
            assert tty, f"{device.id} was given with a number that leads nowhere"
            given[node] = Given(tty, device.id, name)
        (offer,) = [one for one in driver.terms.offers if one.resource == resource]
        container = ClaimPod(
            pod,
            f"claim default/{pod}",
            (name,),
            offer.shares,
            answer,
            given,
            ref=ref,
            of=resource,
        )
        container.believed = frozenset(nodes.values())
        for one in given.values():
            self._check_unshared(container, one, one.tty, "was given")
        self.kubelet.admit(container)
        return container

    def start_container(self, container: Container, *, keeps_open: bool) -> bool:
        if not isinstance(container, ClaimPod):
            return super().start_container(container, keeps_open=keeps_open)
        container.end()
        ids = {given.device_id for given in container.given.values()}
        # While the plugin is away, and in the milliseconds before it hears of an unplugging, a
        # container may be started with numbers that are old: nobody can help that.
        if self.driver is None or self._is_behind(ids) or not self._is_prepared(container):
            return False
        nodes = self.runtime.nodes(container.answer)
        if nodes is None:
            return False
        for node, number in nodes.items():
            tty = self.kernel.at(number)
            given = container.given.get(node)
            assert given is not None, f"{container} has got {tty} in addition"
            assert tty is not None, f"{container} has got {number}, which leads nowhere"
            assert given.is_meant(tty), f"{container} was given {given.tty}, and opens {tty}"
            self._check_unshared(container, given, tty, "was started with")
        container.nodes = dict(nodes)
        container.believed |= frozenset(nodes.values())
        container.kept_open = frozenset(nodes.values()) if keeps_open else frozenset()
        return True

    def _is_prepared(self, pod: ClaimPod) -> bool:
        """After a reboot, the kubelet has claims prepared again before it starts anything."""
        if pod.is_known:
            return True
        driver = self.driver
        assert driver
        answer = driver.prepare(pod.ref)
        nodes = self.runtime.nodes(answer) if answer is not None else None
        if answer is None or nodes is None:
            return False
        for node, number in nodes.items():
            if node not in pod.given:
                # It has grown by a port: what it was given first is what it is compared with.
                driver.unprepare(pod.ref)
                return False
            tty = self.kernel.at(number)
            assert tty
            pod.given[node].tty = tty if pod.given[node].is_meant(tty) else pod.given[node].tty
        pod.answer = answer
        pod.is_known = True
        # The device may be another resource's by now.
        (prepared,) = driver.preparer.claims[pod.ref.uid].devices
        pod.of = prepared.resource
        (pod.shares,) = (o.shares for o in driver.terms.offers if o.resource == pod.of)
        pod.believed = frozenset(nodes.values())
        for one in pod.given.values():
            self._check_unshared(pod, one, one.tty, "was given")
        return True

    def observe(self) -> None:
        """As ever; and what a spec tells now, a container may have been restarted with."""
        for one in self.kubelet.containers:
            if isinstance(one, ClaimPod) and one.is_known:
                one.believed |= frozenset((self.runtime.nodes(one.answer) or {}).values())
        super().observe()

    def delete(self, container: Container) -> None:
        """A pod is deleted; a claim of its own with it."""
        self.kubelet.delete(container)
        if isinstance(container, ClaimPod):
            self.to_unprepare.append(container.ref)
            self.unprepare()

    def unprepare(self) -> None:
        """The kubelet has claims unprepared whose pods have gone."""
        if driver := self.driver:
            self.to_unprepare = [ref for ref in self.to_unprepare if not driver.unprepare(ref)]
            self.observe()

    def check_that_what_is_fit_is_offered(self) -> None:
        self.unprepare()
        super().check_that_what_is_fit_is_offered()

    def reboot(self, order: Sequence[object], *, with_specs: bool) -> None:
        super().reboot(order, with_specs=with_specs)  # type: ignore[arg-type]
        for one in self.kubelet.containers:
            if isinstance(one, ClaimPod):
                one.is_known = False

    def _all_are_known(self) -> None:
        for one in self.kubelet.containers:
            if not isinstance(one, ClaimPod):
                one.is_known = True

    def lose_states(self) -> None:
        known = {one: one.is_known for one in self.kubelet.containers if isinstance(one, ClaimPod)}
        super().lose_states()
        for one, was_known in known.items():  # what claims have is in files of their own
            one.is_known, one.has_known_numbers = was_known, True

    def _is_free(self, tty: Tty, numbers: set[DeviceNumber]) -> bool:
        """Numbers that a claim's spec may have told in passing count as taken.

        So do those that the device plugin's containers may have of what claims are given by now:
        a kubelet that has nobody to ask may start them all the same.
        """
        assert self.driver
        claimed = self.driver.custody.claimed
        by_claim = {offer.resource for offer in self.driver.terms.offers if offer.by_claim}
        taken = {
            number
            for device in self.driver.custody.devices
            for one in claimed.holdings(device.id)
            if (one.claim or device.resource in by_claim) and one.grant is not None
            for number in one.grant.numbers
        }
        return super()._is_free(tty, numbers | taken)

    def _can_start(self, container: Container) -> bool:
        return not isinstance(container, ClaimPod) and super()._can_start(container)


def _body(ref: ClaimRef, name: str) -> bytes:
    result = {"request": "tty", "driver": "usbplugin", "pool": NODE, "device": name}
    return json.dumps(
        {
            "metadata": {"uid": ref.uid, "namespace": ref.namespace, "name": ref.name},
            "status": {"allocation": {"devices": {"results": [result]}}},
        }
    ).encode()
