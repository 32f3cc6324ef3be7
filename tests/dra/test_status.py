"""What people and probes are told of claims, taints and slices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.apiserver import status as answer
from tests.dra.node import GPS, MODEM, DraNode
from usbplugin.commands.events import event_line
from usbplugin.commands.table import table
from usbplugin.status.client import Daemon
from usbplugin.virtual.dra import PrepareError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from usbplugin.agent import Agent
    from usbplugin.status.client import Document
    from usbplugin.status.dra import DraView

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def node() -> AsyncIterator[DraNode]:
    async with DraNode() as node:
        node.plug("ttyUSB0", "GPS-A7")
        node.plug("ttyUSB1", "MODEM-B3")
        yield node


@pytest.fixture
def daemon(node: DraNode) -> Daemon:
    return Daemon(node.places.control_socket)


async def parts_of(daemon: Daemon, path: str) -> dict[str, Document]:
    _, document = await daemon.get(path)
    assert isinstance(document, dict)
    return {part["name"]: part for part in document["parts"]}


def view_of(agent: Agent) -> DraView:
    found = agent.dra_view
    assert found is not None
    return found


async def test_ready_means_that_claims_can_be_prepared(node: DraNode, daemon: Daemon) -> None:
    async with node.driver() as agent:
        await node.until_published(GPS, MODEM)
        # The kubelet calls before it tells us so; the API server has the slices before we hear it.
        await node.until(lambda: view_of(agent).is_registered and view_of(agent).slices == 1)
        assert all(part["ok"] for part in (await parts_of(daemon, "/readyz")).values())
        ready = await parts_of(daemon, "/readyz")
        assert "session usbplugin/serial" not in ready
        assert ready["DRA front"]["detail"] == "registered; 1 ResourceSlice published"
        alive = await parts_of(daemon, "/healthz")
        assert {"DRA front", "DRA publisher", "DRA claims"} <= alive.keys()
        assert all(part["ok"] for part in alive.values())


async def test_an_absent_api_server_is_told_of_and_makes_nobody_unready(
    node: DraNode, daemon: Daemon
) -> None:
    node.api.interfere = lambda asked: answer(403, "no role") if asked.method == "PATCH" else None
    async with node.driver() as agent:
        await node.until(lambda: view_of(agent).is_registered)
        await node.until(lambda: "no role" in view_of(agent).problem)
        assert all(part["ok"] for part in (await parts_of(daemon, "/readyz")).values())
        detail = (await parts_of(daemon, "/readyz"))["DRA front"]["detail"]
        assert "answers 403: no role; see the ClusterRole" in str(detail)


async def test_list_shows_claims_holders_and_taints(node: DraNode, daemon: Daemon) -> None:
    async with node.driver():
        await node.until_published(GPS, MODEM)
        assert "CLAIM" not in table(await daemon.rows())
        await node.run(GPS, name="roof")
        node.bus.unplug("ttyUSB0")
        await node.until(lambda: bool(node.api.evicting))
        rows = {row["id"]: row for row in await daemon.rows()}
        assert rows[GPS]["claims"] == ["default/roof"]
        assert rows[GPS]["taints"] == ["unplugged:NoSchedule", "unplugged:NoExecute"]
        assert rows[MODEM]["claims"] == rows[MODEM]["taints"] == []
        shown = table(list(rows.values()))
        assert "default/roof" in shown
        assert "default/pod-of-roof/" in shown
        assert "unplugged:NoExecute" in shown


async def test_events_tell_the_story(node: DraNode, daemon: Daemon) -> None:
    async with node.driver():
        await node.until_published(GPS, MODEM)
        container = await node.run(GPS, name="roof")
        node.bus.unplug("ttyUSB0")
        await node.until(lambda: bool(node.api.evicting))
        with pytest.raises(PrepareError):
            await node.run(GPS, name="late")
        node.bus.replug("ttyUSB0")
        await node.until(lambda: not node.api.evicting)
        await node.dra.remove(container)
        past = await daemon.past()
    story = [event["event"] for event in past if event["device"] in (GPS, "")]
    wanted = ["published", "prepared", "tainted", "refused", "untainted", "unprepared"]
    assert [event for event in story if event in wanted] == wanted
    lines = {str(event["event"]): event_line(event) for event in past}
    assert f"prepared    {GPS}  (claim default/roof" in lines["prepared"]
    assert "unplugged:NoSchedule, unplugged:NoExecute" in lines["tainted"]
    assert f"claim default/late: {GPS} is unplugged" in lines["refused"]


async def test_what_was_prepared_before_a_restart_is_no_event(
    node: DraNode, daemon: Daemon
) -> None:
    async with node.driver():
        await node.until_published(GPS, MODEM)
        await node.run(GPS)
    async with node.driver():
        await node.until_published(GPS, MODEM)
        assert "prepared" not in {event["event"] for event in await daemon.past()}
        (row,) = (row for row in await daemon.rows() if row["id"] == GPS)
        assert row["claims"] == ["default/claim"]
