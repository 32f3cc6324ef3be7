"""One resource has one front: switching a node from one to the other, and back."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from tests.dra.node import GPS, MODEM, DraNode
from tests.node import SERIAL
from usbplugin.custody.claims import ClaimedDevices
from usbplugin.dra.names import device_name
from usbplugin.inventory import Health
from usbplugin.virtual import UnexpectedAdmissionError
from usbplugin.virtual.dra import PrepareError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def node() -> AsyncIterator[DraNode]:
    async with DraNode() as node:
        node.plug("ttyUSB0", "GPS-A7")
        node.plug("ttyUSB1", "MODEM-B3")
        yield node


def say(file: Path, front: str) -> None:
    text = f"front: {front}\nevictAfter: 0s\nresources: [{{name: {SERIAL}}}]\n"
    temporary = file.with_suffix(".new")
    temporary.write_text(text)
    temporary.rename(file)


async def test_what_the_device_plugin_gave_no_claim_can_have(node: DraNode) -> None:
    file = node.root / "config.yaml"
    say(file, "device-plugin")
    async with node.agent(config_file=str(file)) as agent:
        await node.kubelet.wait_healthy(SERIAL, {GPS, MODEM})
        assert agent._dra.front is None
        container = await node.kubelet.run_container(SERIAL, device_ids=[GPS])
        await node.until_held(agent, GPS)

        say(file, "dra")
        await node.until_published(GPS, MODEM)
        assert not node.kubelet.resource(SERIAL).connected
        await node.until(
            lambda: ("held-elsewhere", "NoSchedule") in node.api.taints(device_name(GPS))
        )
        with pytest.raises(PrepareError, match="contested"):
            await node.run(GPS, name="too-soon")
        await node.run(MODEM, name="free")

        container.remove()
        await agent._holders.ask()
        await node.until(lambda: node.api.taints(device_name(GPS)) == [])
        await node.run(GPS, name="now")


async def test_what_a_claim_has_the_device_plugin_does_not_give(node: DraNode) -> None:
    file = node.root / "config.yaml"
    say(file, "dra")
    async with node.agent(config_file=str(file)) as agent:
        await node.until_published(GPS, MODEM)
        container = await node.run(GPS)

        say(file, "device-plugin")
        await node.kubelet.wait_healthy(SERIAL, {MODEM})
        assert set(node.kubelet.resource(SERIAL).devices) == {GPS, MODEM}
        with pytest.raises(UnexpectedAdmissionError, match="claim default/claim"):
            await node.kubelet.run_container(SERIAL, device_ids=[GPS])
        await node.until(
            lambda: (
                node.api.devices.keys() == {device_name(GPS)}
                and ("draining", "NoSchedule") in node.api.taints(device_name(GPS))
            )
        )
        assert not node.api.evicting, "its pod is to end when it wants to"
        with pytest.raises(PrepareError, match="claims may not have"):
            await node.run(MODEM, name="late")

        await node.dra.remove(container)
        await node.kubelet.wait_healthy(SERIAL, {GPS, MODEM})
        await node.until(lambda: not node.api.slices and not node.dra.drivers)
        await node.until(lambda: agent._dra.front is None)

        say(file, "dra")
        await node.until_published(GPS, MODEM)
        await node.run(GPS, name="again")


async def test_claims_of_an_earlier_life_are_drained_by_the_device_plugin(node: DraNode) -> None:
    async with node.driver():
        await node.until_published(GPS, MODEM)
        container = await node.run(GPS)
    async with node.agent():
        await node.kubelet.wait_healthy(SERIAL, {MODEM})
        await node.until(lambda: bool(node.dra.drivers))
        await node.dra.remove(container)
        await node.kubelet.wait_healthy(SERIAL, {GPS, MODEM})


async def test_without_an_api_server_claims_are_drained_all_the_same(node: DraNode) -> None:
    async with node.driver():
        await node.until_published(GPS, MODEM)
        container = await node.run(GPS)
    node.places = dataclasses.replace(node.places, node_name="")
    async with node.agent():
        await node.kubelet.wait_healthy(SERIAL, {MODEM})
        await node.until(lambda: bool(node.dra.drivers))
        await node.dra.remove(container)
        await node.kubelet.wait_healthy(SERIAL, {GPS, MODEM})
        await node.until(lambda: not node.dra.drivers)


async def test_without_a_nodes_name_there_is_no_front_and_it_says_so(node: DraNode) -> None:
    async with node.serve("--front", "dra") as process:
        assert await process.wait(within=10) == 2
        assert "set --node-name" in process.log()


async def test_a_front_that_nobody_asked_for_is_not_there(node: DraNode) -> None:
    async with node.agent() as agent:
        await node.kubelet.wait_healthy(SERIAL, {GPS, MODEM})
        assert agent._dra.front is None
        assert not node.api.asked
        assert isinstance(agent.custody.claimed, ClaimedDevices)
        assert all(device.health is Health.READY for device in agent.custody.devices)
