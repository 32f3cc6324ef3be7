"""Any history of a node keeps the promise: see ``world``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.world.disk import Trouble
from tests.world.hardware import HUB, SOCKETS, STICKS
from tests.world.terms import Terms, terms
from tests.world.world import World

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.world.kubelet import Container

# By name, which is what a history that breaks the promise is printed with.
STICK = {stick.name: stick for stick in STICKS}
SOCKET = {socket.name: socket for socket in SOCKETS}

sticks = st.sampled_from(list(STICK))
sockets = st.sampled_from(list(SOCKET))
often = st.sampled_from([True, True, True, False])
seldom = st.sampled_from([False, False, False, False, True])


class Histories(RuleBasedStateMachine):
    """What happens to a node, in any order."""

    pre_start = True

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.terms = Terms()

    def teardown(self) -> None:
        self.world.close()

    @initialize(
        first=terms(),
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

    # Cables.

    @rule(what=sticks, where=sockets, settles=seldom, now=often)
    def plug(self, what: str, where: str, *, settles: bool, now: bool) -> None:
        """Into that socket, or by moving it there."""
        self._plug(what, where, settles=settles)
        if now:
            self._deliver()

    def _plug(self, what: str, where: str, *, settles: bool = False) -> None:
        world, stick, socket = self.world, STICK[what], SOCKET[where]
        if socket not in world.kernel.where.values():
            if stick in world.kernel.where:
                world.pull(stick)
            world.plug(stick, socket, settles=settles)

    @precondition(lambda self: self.world.kernel.where)
    @rule(data=st.data(), now=often)
    def pull(self, data: st.DataObject, *, now: bool) -> None:
        self.world.pull(STICK[data.draw(st.sampled_from(self._plugged))])
        if now:
            self._deliver()

    @precondition(lambda self: len(self.world.kernel.where) > 1)
    @rule(data=st.data(), now=often)
    def swap(self, data: st.DataObject, *, now: bool) -> None:
        """Two devices change places."""
        where = dict(self.world.kernel.where)
        first, second = map(STICK.__getitem__, data.draw(st.permutations(self._plugged))[:2])
        for stick in (first, second):
            self.world.pull(stick)
        self.world.plug(first, where[second], settles=False)
        self.world.plug(second, where[first], settles=False)
        if now:
            self._deliver(data.draw(st.permutations(range(6))))

    @precondition(lambda self: self.world.kernel.where)
    @rule(data=st.data(), now=often, whole=st.booleans())
    def power_cycle(self, data: st.DataObject, *, now: bool, whole: bool) -> None:
        """A hub, or the whole bus: all that is there comes back in any order."""
        back = {
            stick: socket
            for stick, socket in self.world.kernel.where.items()
            if whole or socket in HUB
        }
        for stick in back:
            self.world.pull(stick)
        for name in data.draw(st.permutations([stick.name for stick in back])):
            self.world.plug(STICK[name], back[STICK[name]], settles=False)
        if now:
            self._deliver()

    @property
    def _plugged(self) -> list[str]:
        return [stick.name for stick in self.world.kernel.where]

    # What the plugin hears of them.

    def _deliver(self, order: Sequence[int] = (), *, killed: bool = False) -> None:
        looks = self.world.looks()
        first = [looks[index] for index in order if index < len(looks)]
        rest = [look for index, look in enumerate(looks) if index not in order]
        self.world.tell([fact for look in (*first, *rest) for fact in look], killed=killed)

    @rule(
        how=st.sampled_from(["one by one", "together", "killed", "lost", "settled", "listed"]),
        order=st.permutations(range(6)),
    )
    def events(self, how: str, order: Sequence[int]) -> None:
        match how:
            case "one by one":
                for look in self.world.looks():
                    self.world.tell(look)
            case "lost":
                self.world.lose_events()
            case "listed":
                self.world.tell(self.world.listing("period"))
            case _:
                if how == "settled":
                    self.world.settle()
                self._deliver(order, killed=how == "killed")

    @rule(seconds=st.sampled_from([0.5, 1.5, 3.0, 12.0, 61.0, 4000.0]))
    def wait(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    # The kubelet and its pods.

    @rule(what=st.sampled_from(["ask", "hear", "ask and hear", "ask and hear", "falls silent"]))
    def pod_resources(self, what: str) -> None:
        self.world.kubelet_answers = what != "falls silent"
        if "ask" in what:
            self.world.ask()
        if "hear" in what:
            self.world.hear()

    @precondition(lambda self: self.world.plugin)
    @rule(data=st.data())
    def admit(self, data: st.DataObject) -> None:
        choice = data.draw(st.sampled_from(["first", "last", "preferred", "two", "killed"]))
        self._admit([choice])

    @precondition(lambda self: self.world.plugin)
    @rule(
        choices=st.lists(st.sampled_from(["first", "last", "preferred"]), min_size=1, max_size=3),
        keeps_open=st.booleans(),
    )
    def deploy(self, choices: Sequence[str], *, keeps_open: bool) -> None:
        self._admit(choices, keeps_open=keeps_open)

    def _admit(self, choices: Sequence[str], *, keeps_open: bool = False) -> None:
        """Pods for whatever resource has something free."""
        world = self.world
        for choice in choices:
            for one in self.terms.resources:
                if world.plugin is None:
                    return
                free = world.kubelet.free(one.name, world.plugin.healthy(one.name))
                size = 2 if choice == "two" else 1
                if len(free) < size:
                    continue
                if choice == "preferred":
                    ids = world.plugin.preferred(one.name, free, size)
                else:
                    ids = free[-size:] if choice == "last" else free[:size]
                container = world.admit(one.name, ids, killed=choice == "killed")
                if container:
                    world.start_container(container, keeps_open=keeps_open)
                    break

    def _container(self, data: st.DataObject) -> Container:
        pods = {one.pod: one for one in self.world.kubelet.containers}
        return pods[data.draw(st.sampled_from(list(pods)))]

    @precondition(lambda self: self.world.kubelet.containers)
    @rule(data=st.data(), keeps_open=st.booleans())
    def restart_container(self, data: st.DataObject, *, keeps_open: bool) -> None:
        container = self._container(data)
        self.world.start_container(container, keeps_open=keeps_open)

    @precondition(lambda self: self.world.kubelet.containers)
    @rule(only_those_that_do_not_run=st.booleans())
    def restart_containers(self, *, only_those_that_do_not_run: bool) -> None:
        for container in self.world.kubelet.containers:
            if not (only_those_that_do_not_run and container.runs):
                self.world.start_container(container, keeps_open=False)

    @precondition(lambda self: self.world.kubelet.containers)
    @rule(data=st.data(), how=st.sampled_from(["crashes", "is deleted", "is deleted"]))
    def end_of_container(self, data: st.DataObject, how: str) -> None:
        container = self._container(data)
        if how == "crashes":
            container.end()
        else:
            self.world.kubelet.delete(container)

    # The plugin's lives, and its operator.

    @precondition(lambda self: self.world.plugin)
    @rule(changed=terms())
    def reload(self, changed: Terms) -> None:
        assert self.world.plugin
        # Where links are is decided on the command line.
        self.terms = Terms(changed.resources, self.terms.links)
        self.world.plugin.reload(self.terms)
        self.world.observe()

    @precondition(lambda self: self.world.plugin)
    @rule(kindly=st.booleans())
    def stop(self, *, kindly: bool) -> None:
        if kindly:
            self.world.stop()
        else:
            self.world.kill()

    @rule(changed=st.none() | terms())
    def restart(self, changed: Terms | None) -> None:
        self.world.kill()
        self.terms = changed or self.terms
        self.world.start(self.terms)

    @rule(data=st.data(), with_specs=st.booleans(), starts=often)
    def reboot(self, data: st.DataObject, *, with_specs: bool, starts: bool) -> None:
        """Nothing of it, or all but some devices that come late, is there when the plugin looks."""
        where = self.world.kernel.where
        order = [
            (STICK[name], where[STICK[name]]) for name in data.draw(st.permutations(self._plugged))
        ]
        present = max(0, len(order) - data.draw(st.sampled_from([0, 0, 0, 1, 2])))
        self.world.reboot(order[:present], with_specs=with_specs)
        if starts:
            self.world.start(self.terms)
            for stick, socket in order[present:]:
                self.world.plug(stick, socket, settles=False)
                self._deliver()
            for container in self.world.kubelet.containers:
                self.world.start_container(container, keeps_open=False)

    # Losses.

    @rule(
        what=st.sampled_from(["states", "checkpoint", "disk", "disk"]),
        where=st.sampled_from(["links", "states", "cdi"]),
        trouble=st.sampled_from(Trouble),
    )
    def lose(self, what: str, where: str, trouble: Trouble) -> None:
        match what:
            case "states":
                if self.world.plugin is None:
                    self.world.lose_states()
            case "checkpoint":
                self.world.kubelet.lose_notes()
            case _:
                self.world.spoil(where, trouble)

    @precondition(lambda self: self.world.disk.troubles)
    @rule()
    def mend_disk(self) -> None:
        self.world.disk.troubles.clear()
        if self.world.plugin:
            self.world.plugin.look()
            self.world.observe()

    @precondition(lambda self: self.world.plugin and not self.world.disk.troubles)
    @rule()
    def what_is_fit_is_offered(self) -> None:
        self.world.check_that_what_is_fit_is_offered()

    @invariant()
    def nothing_is_offered_that_another_may_open(self) -> None:
        self.world.now += 0.1
        self.world.observe()


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    # The explore profile runs thousands.
    max_examples=settings().max_examples,
    stateful_step_count=40,
)
