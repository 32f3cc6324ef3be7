"""The kubelet's side of what can go wrong, row by row of docs/architecture.md."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import threading
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.apiserver import Answer
from tests.dra.node import GPS, MODEM, DraNode, config
from usbplugin.discovery import DirectorySource
from usbplugin.dra.names import device_name
from usbplugin.dra.reaper import Reaper
from usbplugin.virtual.dra import ClaimOfPod, PrepareError, UnresolvableCdiError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.apiserver import Asked
    from usbplugin.agent import Agent
    from usbplugin.discovery import Fact, Port, Source
    from usbplugin.dra.preparer import Preparer

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
async def node() -> AsyncIterator[DraNode]:
    async with DraNode() as node:
        node.plug("ttyUSB0", "GPS-A7")
        yield node


class Silent:
    """A source that has not listed its ports yet."""

    name = "silent"

    def __init__(self) -> None:
        self.may_end = threading.Event()

    def run(self, post: Callable[[Fact], None]) -> None:
        self.may_end.wait()

    def scan(self) -> tuple[Port, ...]:
        return ()

    def stop(self) -> None:
        self.may_end.set()


def preparer(agent: Agent) -> Preparer:
    assert agent._dra._parts is not None
    return agent._dra._parts.preparer


def reaper(node: DraNode, agent: Agent, patience: float) -> Reaper:
    made = preparer(agent)
    return Reaper(made, agent.custody, made._reader, agent._holders.ask, patience)


async def test_nothing_is_published_before_every_source_is_heard(node: DraNode) -> None:
    async with node.driver():
        await node.until_published(GPS)
        await node.run(GPS)
    (spec,) = node.specs()
    written = os.stat(node.places.cdi_dir / spec).st_mtime_ns
    node.api.asked.clear()
    sources: list[Source] = [DirectorySource(node.device_dir), Silent()]
    async with node.run_agent(sources, config()):
        await node.until(lambda: bool(node.dra.drivers))
        await asyncio.sleep(0.3)
        assert node.api.count("PATCH") == 0
        assert node.api.taints(device_name(GPS)) == []
        assert os.stat(node.places.cdi_dir / spec).st_mtime_ns == written


async def test_without_an_api_server_it_serves_and_publishes_later(node: DraNode) -> None:
    async with node.driver():
        await node.until_published(GPS)
        container = await node.run(GPS)
    await node.api.stop()
    node.api.slices.clear()
    async with node.driver():
        node.bus.unplug("ttyUSB0")
        await node.until(lambda: node.specs() == [])
        node.bus.replug("ttyUSB0")
        await node.until(lambda: bool(node.specs()))
        container.start()
        await node.api.start()
        await node.until_published(GPS)


async def test_an_api_server_that_is_away_refuses_what_is_new_and_nothing_else(
    node: DraNode,
) -> None:
    node.plug("ttyUSB1", "MODEM-B3")
    async with node.driver():
        await node.until_published(GPS, MODEM)
        container = await node.run(GPS)
        await node.api.stop()
        with pytest.raises(PrepareError, match="API server"):
            await node.run(MODEM, name="new")
        claim = container.claim
        node.dra.forget(claim)
        again = await node.dra.prepare(claim.namespace, claim.name, claim.uid)
        assert again.devices == claim.devices


async def test_a_restarted_kubelet_finds_us_and_its_wipe_is_mended(node: DraNode) -> None:
    async with node.driver():
        await node.until_published(GPS)
        container = await node.run(GPS)
        await node.kubelet.stop()
        await node.kubelet.start()
        assert not node.api.slices, "that is what a kubelet does"
        await node.until_published(GPS)
        assert len(node.claim_files()) == 1
        container.start()
        assert len(node.dra.prepare_seconds) == 1, "running pods are not prepared again"


async def test_the_next_prepare_completes_what_was_killed_in_the_middle(node: DraNode) -> None:
    async with node.driver():
        await node.until_published(GPS)
        container = await node.run(GPS)
        claim = container.claim
        node.dra.forget(claim)
    (spec,) = node.specs()
    (node.places.cdi_dir / spec).unlink()  # killed between file and spec
    async with node.driver():
        await node.until_published(GPS)
        await node.dra.run_container(claim.namespace, claim.name, claim.uid)
        assert node.specs() == [spec]


async def test_of_prepare_and_unprepare_at_once_the_later_one_decides(node: DraNode) -> None:
    async with node.driver():
        await node.until_published(GPS)
        reference = node.allocate(GPS)
        node.api.delay = lambda asked: 0.3 if "resourceclaims" in asked.path else 0.0
        preparing = asyncio.create_task(node.dra.prepare(*reference))
        await node.api.until(lambda: node.api.count("GET", "/apis") == 1)
        await node.dra.unprepare(ClaimOfPod(*reference, "usbplugin", ()))
        await preparing
        assert (node.claim_files(), node.specs()) == ([], [])


async def test_a_prepare_in_flight_is_answered_before_we_go(node: DraNode) -> None:
    async with node.serve_dra() as process:
        await node.until_published(GPS)
        node.api.delay = lambda asked: 1.0 if "resourceclaims" in asked.path else 0.0
        preparing = asyncio.create_task(node.run(GPS))
        await node.api.until(lambda: node.api.count("GET", "/apis") == 1)
        process.signal(signal.SIGTERM)
        container = await preparing
        assert container.running
        assert await process.wait(within=10) == 0
        assert not os.listdir(node.places.registry_dir)


async def test_to_unprepare_what_is_unknown_succeeds(node: DraNode) -> None:
    async with node.driver():
        await node.until_published(GPS)
        await node.dra.unprepare(ClaimOfPod("default", "gone", "uid-1", "usbplugin", ()))
        await node.dra.unprepare(ClaimOfPod("default", "odd", "../../etc", "usbplugin", ()))


async def test_a_claim_that_nobody_unprepares_is_forgotten_once_it_is_certainly_gone(
    node: DraNode,
) -> None:
    async with node.driver() as agent:
        await node.until_published(GPS)
        container = await node.run(GPS)
        looks = reaper(node, agent, patience=0.05)

        async def look_twice() -> None:
            for _ in range(2):
                await agent._holders.ask()
                await looks.look()
                await asyncio.sleep(0.1)

        await look_twice()
        assert node.claim_files(), "a pod has it"
        node.dra.forget(container.claim)
        await look_twice()
        assert node.claim_files(), "the API server says it is there"
        del node.api.claims["default", "claim"]
        await node.api.stop()
        await look_twice()
        assert node.claim_files(), "nobody says that it is gone"
        await node.api.start()
        await look_twice()
        assert (node.claim_files(), node.specs()) == ([], [])


async def test_a_device_that_is_still_anothers_is_waited_for(node: DraNode) -> None:
    async with node.driver() as agent:
        await node.until_published(GPS)
        first = await node.run(GPS, name="first")
        preparer(agent)._patience = 0.4
        with pytest.raises(PrepareError, match="still prepared for claim default/first"):
            await node.run(GPS, name="second")
        assert len(node.claim_files()) == 1
        preparer(agent)._patience = 10.0
        waiting = asyncio.create_task(node.run(GPS, name="third"))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await node.dra.remove(first)
        assert (await waiting).running


@pytest.mark.parametrize("evict_after", ["5s", "never"])
async def test_what_is_unplugged_before_prepare_evicts_at_once(
    node: DraNode, evict_after: str
) -> None:
    async with node.driver(evict_after):
        await node.until_published(GPS)
        node.bus.unplug("ttyUSB0")
        await node.until(lambda: node.api.taints(device_name(GPS)) == [("unplugged", "NoSchedule")])
        with pytest.raises(PrepareError, match="is unplugged"):
            await node.run(GPS)
        await node.until(lambda: node.api.evicting == {device_name(GPS)}, 2.0)
        node.bus.replug("ttyUSB0")
        await node.until(lambda: node.api.taints(device_name(GPS)) == [])
        await node.run(GPS, name="after")


async def test_an_unplugging_that_no_event_tells_of_yet_is_seen(node: DraNode) -> None:
    async with node.driver() as agent:
        await node.until_published(GPS)

        async def problem(devices: object) -> str:
            return "the node has just stopped being that device"

        agent.custody.grant_problem = problem  # type: ignore[method-assign]
        with pytest.raises(PrepareError, match="just stopped"):
            await node.run(GPS)
        assert node.claim_files() == []


async def test_what_is_not_known_here_becomes_a_ghost_for_a_while(node: DraNode) -> None:
    stranger = device_name(MODEM)
    settings = msgspec.structs.replace(config(), retention="1s")
    async with node.agent(settings):
        await node.until_published(GPS)
        with pytest.raises(PrepareError, match="is unknown on this node"):
            await node.run(names=(stranger,))
        await node.until(lambda: node.api.evicting == {stranger})
        await node.until(lambda: node.api.devices.keys() == {device_name(GPS)}, 5.0)


async def test_a_ghost_ends_when_the_device_comes(node: DraNode) -> None:
    async with node.driver():
        await node.until_published(GPS)
        with pytest.raises(PrepareError):
            await node.run(MODEM)
        await node.until(lambda: node.api.evicting == {device_name(MODEM)})
        node.plug("ttyUSB1", "MODEM-B3")
        await node.until(lambda: not node.api.evicting)
        await node.run(MODEM, name="better")


async def test_renumbered_while_prepared_it_is_displaced_and_its_spec_is_true(
    node: DraNode,
) -> None:
    async with node.driver("5s"):
        await node.until_published(GPS)
        container = await node.run(GPS)
        before = container.nodes
        node.bus.unplug("ttyUSB0")
        await node.until(lambda: node.specs() == [])
        node.plug("ttyUSB0", "OTHER-1")
        node.bus.plug("ttyUSB3", node.descriptors("GPS-A7"))
        await node.until(lambda: ("displaced", "NoExecute") in node.api.taints(device_name(GPS)))
        container.start()
        assert list(container.nodes) == ["/dev/ttyUSB3"] != list(before)


async def test_the_numbers_of_a_container_that_restarted_by_itself_are_its_own(
    node: DraNode,
) -> None:
    async with node.driver("never"):
        await node.until_published(GPS)
        container = await node.run(GPS)
        node.bus.unplug("ttyUSB0")
        node.plug("ttyUSB1", "OTHER-1")  # takes the number
        node.bus.plug("ttyUSB3", node.descriptors("GPS-A7"))
        await node.until(lambda: ("displaced", "NoSchedule") in node.api.taints(device_name(GPS)))
        container.start()
        (uid,) = node.claim_files()
        file = msgspec.json.decode((node.places.claims_dir / f"{uid}.json").read_bytes())
        assert file["devices"][0]["may_have"]
    async with node.driver("never") as agent:
        await node.until(lambda: bool(node.dra.drivers))
        (holding,) = agent.custody.claimed.holdings(GPS)
        assert holding.grant is not None
        assert len(holding.grant.numbers) == 2


async def test_either_of_two_instances_may_prepare_and_the_other_one_unprepare(
    node: DraNode,
) -> None:
    async with node.driver(), node.driver():
        await node.until(lambda: len(node.dra.drivers) == 2)
        assert len(set(node.dra.sockets)) == 2
        container = await node.run(GPS)  # by the one that was found last
        node.dra._drivers.reverse()
        with pytest.raises(PrepareError, match="still prepared"):
            await node.run(GPS, name="rival")
        await node.dra.remove(container)
        assert (node.claim_files(), node.specs()) == ([], [])
        await node.run(GPS, name="next")
        node.dra._drivers.reverse()
        with pytest.raises(PrepareError, match="still prepared"):
            await node.run(GPS, name="another")


async def test_a_dead_instances_socket_is_removed(node: DraNode) -> None:
    async with node.serve_dra() as process:
        await node.until_published(GPS)
        (dead,) = os.listdir(node.places.registry_dir)
        process.signal(signal.SIGKILL)
        await process.wait(within=5)
    async with node.driver():
        await node.until(lambda: dead not in os.listdir(node.places.registry_dir))
        await node.until_published(GPS)


async def test_what_an_earlier_boot_left_is_gone_before_anybody_is_served(node: DraNode) -> None:
    async with node.driver():
        await node.until_published(GPS)
        container = await node.run(GPS)
    (uid,) = node.claim_files()
    file = node.places.claims_dir / f"{uid}.json"
    text = msgspec.json.decode(file.read_bytes())
    file.write_bytes(msgspec.json.encode({**text, "boot": "another-boot"}))
    stale = node.places.cdi_dir / "usbplugin-claim_some-uid.json"
    stale.write_text("{}")
    node.dra.forget(container.claim)
    async with node.driver():
        assert (node.claim_files(), node.specs()) == ([], [])
        await node.until_published(GPS)
        claim = container.claim
        await node.dra.run_container(claim.namespace, claim.name, claim.uid)


async def test_specs_that_somebody_deleted_are_back_at_the_next_look(node: DraNode) -> None:
    async with node.driver() as agent:
        await node.until_published(GPS)
        container = await node.run(GPS)
        shutil.rmtree(node.places.cdi_dir)
        with pytest.raises(UnresolvableCdiError):
            container.start()
        agent._look()
        container.start()


async def test_claims_whose_files_were_lost_are_recovered_from_the_kubelets_word(
    node: DraNode,
) -> None:
    async with node.driver():
        await node.until_published(GPS)
        container = await node.run(GPS)
    shutil.rmtree(node.places.claims_dir)
    shutil.rmtree(node.places.cdi_dir)
    async with node.driver() as agent:
        await node.until_published(GPS)
        looks = reaper(node, agent, patience=120)
        for _ in range(2):
            await agent._holders.ask()
            await looks.look()
        container.start()
        assert len(node.claim_files()) == 1
        preparer(agent)._patience = 0.1
        with pytest.raises(PrepareError, match="still prepared"):
            await node.run(GPS, name="rival")


async def test_a_claim_that_cannot_be_written_down_is_not_given(node: DraNode) -> None:
    node.state_dir.mkdir(exist_ok=True)
    node.places.claims_dir.write_text("in the way")
    async with node.driver():
        await node.until_published(GPS)
        with pytest.raises(PrepareError, match="prepared claims cannot be kept in"):
            await node.run(GPS)
        assert node.specs() == []
        node.places.claims_dir.unlink()
        await node.run(GPS, name="later")


async def test_a_spec_that_cannot_be_written_leaves_nothing_behind(node: DraNode) -> None:
    node.places.cdi_dir.write_text("in the way")
    async with node.driver():
        await node.until_published(GPS)
        with pytest.raises(PrepareError, match="CDI specs cannot be written"):
            await node.run(GPS)
        assert node.claim_files() == []
        node.places.cdi_dir.unlink()
        await node.run(GPS, name="later")


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (Answer(404), "is no more"),
        (Answer(403), "403"),
        (
            Answer(200, {"metadata": {"uid": "other", "namespace": "default", "name": "claim"}}),
            "another one has its name",
        ),
        (Answer(200, {"kind": "Nonsense"}), "cannot be understood"),
    ],
)
async def test_what_the_api_server_says_of_a_claim_is_not_taken_for_granted(
    node: DraNode, answer: Answer, text: str
) -> None:
    def interfere(asked: Asked) -> Answer | None:
        return answer if "resourceclaims" in asked.path else None

    async with node.driver():
        await node.until_published(GPS)
        node.api.interfere = interfere
        with pytest.raises(PrepareError, match=text):
            await node.run(GPS)
        assert node.claim_files() == []


async def test_a_deleted_socket_is_followed_by_a_new_one(node: DraNode) -> None:
    async with node.driver():
        await node.until_published(GPS)
        (name,) = os.listdir(node.places.registry_dir)
        (node.places.registry_dir / name).unlink()
        await node.until(lambda: len(node.dra.sockets) == 1 and node.dra.sockets[0].name != name)
        await node.run(GPS)
