"""Any history of a node with both fronts keeps the promise: see ``claims``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from tests.world.claims import BothFronts
from tests.world.terms import EVERYTHING, SERIAL, Resource, Terms, terms
from tests.world.test_world import SOCKET, STICK, Histories, sockets, sticks

if TYPE_CHECKING:
    from collections.abc import Sequence


class HistoriesOfBothFronts(Histories):
    """What happens to it, in any order."""

    world: BothFronts

    def __init__(self) -> None:
        super().__init__()
        self.world.close()
        self.world = BothFronts()

    @initialize(
        first=terms(both_fronts=True),
        plugged=st.lists(st.tuples(sticks, sockets), min_size=2, max_size=6),
        pods=st.integers(0, 3),
    )
    def begin(self, first: Terms, plugged: Sequence[tuple[str, str]], pods: int) -> None:
        self.terms = first
        for what, where in plugged:
            self._plug(what, where)
        self.world.start(first)
        for _ in range(pods):
            self._admit(["first"])
            self._claim(killed=False)

    @precondition(lambda self: self.world.plugin)
    @rule(killed=st.sampled_from([False, False, False, True]))
    def claim(self, *, killed: bool) -> None:
        """A pod with a claim of whatever is free."""
        self._claim(killed=killed)

    def _claim(self, *, killed: bool) -> None:
        for one in self.terms.resources:
            driver = self.world.driver
            if driver is None or not one.by_claim:
                continue
            for device in driver.free_for_claims(one.name):
                container = self.world.admit_with_claim(one.name, device, killed=killed)
                if container is not None:
                    self.world.start_container(container, keeps_open=False)
                    return
                if self.world.driver is None:
                    return

    @precondition(lambda self: self.world.plugin)
    @rule(data=st.data())
    def claim_what_is_not_free(self, data: st.DataObject) -> None:
        """The scheduler may be late, or mistaken."""
        driver = self.world.driver
        assert driver
        known = driver.custody.devices
        if not known:
            return
        device = known[data.draw(st.integers(0, len(known) - 1))]
        if any(one.name == device.resource for one in self.terms.resources):
            self.world.admit_with_claim(device.resource, device, killed=False)

    @precondition(lambda self: self.world.kubelet.containers)
    @rule(data=st.data(), how=st.sampled_from(["crashes", "is deleted", "is deleted"]))
    def end_of_container(self, data: st.DataObject, how: str) -> None:
        container = self._container(data)
        if how == "crashes":
            container.end()
        else:
            self.world.delete(container)

    @rule()
    def the_kubelet_tries_again_to_unprepare(self) -> None:
        self.world.unprepare()

    @precondition(lambda self: self.world.plugin)
    @rule(changed=terms(both_fronts=True))
    def reload(self, changed: Terms) -> None:
        assert self.world.plugin
        self.terms = Terms(changed.resources, self.terms.links)
        self.world.plugin.reload(self.terms)
        self.world.observe()

    @rule(changed=st.none() | terms(both_fronts=True))
    def restart(self, changed: Terms | None) -> None:
        self.world.kill()
        self.terms = changed or self.terms
        self.world.start(self.terms)


def test_two_that_changed_places_evict_and_neither_container_is_restarted() -> None:
    world = BothFronts()
    try:
        gps, meter = STICK["gps"], STICK["meter"]
        one, other = list(SOCKET.values())[:2]
        world.plug(gps, one, settles=False)
        world.plug(meter, other, settles=False)
        world.start(Terms((Resource(SERIAL, EVERYTHING, by_claim=True),)))
        driver = world.driver
        assert driver
        pods = []
        for device in driver.free_for_claims(SERIAL):
            pod = world.admit_with_claim(SERIAL, device, killed=False)
            assert pod is not None
            assert world.start_container(pod, keeps_open=False)
            pods.append(pod)
        world.pull(gps)
        world.pull(meter)
        world.plug(meter, one, settles=False)
        world.plug(gps, other, settles=False)
        world.tell([fact for look in world.looks() for fact in look])
        assert all(device.has_moved for device in driver.devices), "both are evicted"
        first, second = pods
        assert not world.start_container(first, keeps_open=False), "the other one has its number"
        world.delete(second)
        assert world.start_container(first, keeps_open=False)
    finally:
        world.close()


TestHistoriesOfBothFronts = HistoriesOfBothFronts.TestCase
TestHistoriesOfBothFronts.settings = settings(
    max_examples=settings().max_examples,
    stateful_step_count=40,
)
