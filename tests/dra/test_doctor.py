"""``usbplugin doctor`` on a node with ``front: dra``: each thing that may be missing or wrong."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

import pytest

from tests.apiserver import status as answer
from tests.dra.node import GPS, DraNode, config
from usbplugin.config import Config
from usbplugin.doctor import Grade, Node
from usbplugin.doctor.dra import check_claims, check_dra

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from usbplugin.doctor import Check, Finding

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def node() -> AsyncIterator[DraNode]:
    async with DraNode() as node:
        node.plug("ttyUSB0", "GPS-A7")
        yield node


async def found(check: Check, node: DraNode, wanted: Config | None = None) -> Finding:
    """What doctor finds, in a thread: it has an event loop of its own."""
    if not node.places.cdi_dir.exists():
        node.places.cdi_dir.mkdir()
    about = Node(config() if wanted is None else wanted, node.places)
    return await asyncio.to_thread(check, about)


async def until(grade: Grade, check: Check, node: DraNode) -> Finding:
    """Look until it is so: the kubelet is asked who holds what once a second at most."""
    for _ in range(100):
        if (finding := await found(check, node)).grade is grade:
            return finding
        await asyncio.sleep(0.1)
    raise AssertionError(f"it is not {grade} in 10 s")


async def test_all_is_well(node: DraNode) -> None:
    finding = await found(check_dra, node)
    assert finding.grade is Grade.OK, finding
    assert node.api.slices == {}  # it was a dry run


async def test_who_does_not_use_it_is_asked_for_nothing(node: DraNode) -> None:
    assert (await found(check_dra, node, Config())).grade is Grade.OK
    assert not node.api.asked


async def test_a_node_without_a_name(node: DraNode) -> None:
    node.places = dataclasses.replace(node.places, node_name="")
    finding = await found(check_dra, node)
    assert (finding.grade, "--node-name" in finding.remedy) == (Grade.FAIL, True)


async def test_a_missing_directory(node: DraNode) -> None:
    node.places = dataclasses.replace(node.places, registry_dir=node.root / "nowhere")
    finding = await found(check_dra, node)
    assert finding.grade is Grade.FAIL
    assert "nowhere" in finding.found


@pytest.mark.parametrize(
    ("code", "remedy"), [(401, "token"), (403, "ClusterRole"), (404, "1.34"), (422, "component")]
)
async def test_each_refusal_has_its_remedy(node: DraNode, code: int, remedy: str) -> None:
    node.api.interfere = lambda asked: answer(code, "no") if asked.method == "PATCH" else None
    finding = await found(check_dra, node)
    assert finding.grade is Grade.FAIL
    assert f"{code}: no" in finding.found
    assert remedy in finding.remedy


async def test_a_token_of_another_node_is_refused_by_the_policy(node: DraNode) -> None:
    node.api.tokens = dict.fromkeys(node.api.tokens, "node-2")
    finding = await found(check_dra, node)
    assert finding.grade is Grade.FAIL
    assert "ValidatingAdmissionPolicy" in finding.found


async def test_an_api_server_that_is_away(node: DraNode) -> None:
    await node.api.stop()
    finding = await found(check_dra, node)
    assert (finding.grade, "NetworkPolicy" in finding.remedy) == (Grade.FAIL, True)


async def test_feature_gates_that_are_off(node: DraNode) -> None:
    node.api.gates = set()
    finding = await found(check_dra, node)
    assert finding.grade is Grade.WARN
    assert finding.found == "the API server does not keep allowMultipleAllocations, taints"
    assert "DRADeviceTaints" in finding.remedy


async def test_when_it_is_safe_to_uncordon_a_migrated_node(node: DraNode) -> None:
    node.api.allocatable["usbplugin/serial"] = "2"
    finding = await found(check_dra, node)
    assert (finding.grade, "2 usbplugin/serial" in finding.found) == (Grade.WARN, True)
    node.api.allocatable["usbplugin/serial"] = "0"
    assert (await found(check_dra, node)).grade is Grade.OK


async def test_claims_that_nobody_holds(node: DraNode) -> None:
    async with node.driver():
        await node.until_published(GPS)
        container = await node.run(GPS, name="roof")
        finding = await until(Grade.OK, check_claims, node)
        assert finding.found == "1 claim prepared"
        node.kubelet.dra.forget(container.claim)
        finding = await until(Grade.WARN, check_claims, node)
        assert "default/roof" in finding.found


async def test_claims_that_are_left_when_the_front_was_switched_off(node: DraNode) -> None:
    async with node.driver():
        await node.until_published(GPS)
        await node.run(GPS)
    finding = await found(check_claims, node, Config())
    assert finding.grade is Grade.WARN
    assert "1 claim is still prepared" in finding.found
    assert "Terminating" in finding.remedy
