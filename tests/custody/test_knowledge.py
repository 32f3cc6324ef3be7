"""What is known after something was lost, or somebody else wrote it: a real agent on a node."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.node import SERIAL, Node
from usbplugin.config import Config, Flapping, ResourceConfig
from usbplugin.discovery import IdentityMode
from usbplugin.inventory import Health
from usbplugin.kubelet.checkpoint import FILE_NAME
from usbplugin.virtual import CreateContainerConfigError, UnexpectedAdmissionError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(30)

GPS = "usb-0403:6001-GPS-A7-if00"
DOOR = "usb-0403:6001-DOOR-if00"


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with Node() as node:
        yield node


def config(**settings: object) -> Config:
    resource = ResourceConfig(name=SERIAL, **settings)  # type: ignore[arg-type]
    return Config(flapping=Flapping(times=60), resources=(resource,))


def checkpoint(node: Node) -> Path:
    return node.kubelet_dir / FILE_NAME


async def test_after_a_loss_of_all_state_the_kubelets_notes_tell_what_was_given(
    node: Node,
) -> None:
    node.plug("ttyUSB0", "GPS-A7")
    async with node.agent():
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        container = await node.kubelet.run_container(SERIAL)
    shutil.rmtree(node.places.state_dir)
    async with node.agent() as agent:
        await node.until_health(agent, GPS, Health.DISPLACED)
        await node.until_connected()
        await container.restart()
        await node.kubelet.wait_healthy(SERIAL, {GPS})


async def test_where_nothing_tells_what_was_given_the_container_does_not_start(
    node: Node,
) -> None:
    node.plug("ttyUSB0", "GPS-A7")
    async with node.agent():
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        container = await node.kubelet.run_container(SERIAL)
    shutil.rmtree(node.places.state_dir)
    checkpoint(node).unlink()
    async with node.agent() as agent:
        await node.until_health(agent, GPS, Health.DISPLACED)
        await node.until_connected()
        with pytest.raises(CreateContainerConfigError, match=r"nobody knows .* delete the pod"):
            await container.restart()
        container.remove()
        await node.kubelet.wait_healthy(SERIAL, {GPS})


async def test_a_kubelet_that_has_not_allocated_anything_yet_is_no_reason_to_complain(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    node.plug("ttyUSB0", "GPS-A7")
    for content, complaints in ((None, 0), ("not JSON", 1)):
        if content is not None:
            checkpoint(node).write_text(content)
        async with node.agent():
            await node.kubelet.wait_healthy(SERIAL, {GPS})
        said = [record for record in caplog.records if "checkpoint" in record.getMessage()]
        assert len(said) == complaints


async def test_a_path_that_the_kubelet_replays_is_checked_and_not_the_one_it_would_be_now(
    node: Node,
) -> None:
    gps, door = node.plug("ttyUSB0", "GPS-A7"), node.plug("ttyUSB1", "DOOR")
    async with node.agent():
        await node.kubelet.wait_healthy(SERIAL, {GPS, DOOR})
        container = await node.kubelet.run_container(SERIAL, device_ids=[GPS])
    # Cables are pulled while no plugin is there, and come back in the other order.
    keepers = [os.open(one.node, os.O_RDWR | os.O_NOCTTY) for one in (gps, door)]
    for name in ("ttyUSB0", "ttyUSB1"):
        node.bus.unplug(name)
    node.plug("ttyUSB1", "DOOR")
    node.plug("ttyUSB0", "GPS-A7")
    for keeper in keepers:
        os.close(keeper)
    node.places = replace(node.places, link_dir=node.root / "l2", state_dir=node.root / "s2")
    async with node.agent() as agent:
        await node.kubelet.wait_for(lambda: DOOR in node.kubelet.resource(SERIAL).healthy)
        await node.until_held(agent, GPS)
        with pytest.raises(CreateContainerConfigError, match=f"{node.link_dir}/{GPS}/if00, which"):
            await container.restart()


async def test_what_version_0_1_left_is_read(node: Node) -> None:
    node.plug("ttyUSB0", "GPS-A7")
    async with node.agent():
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        container = await node.kubelet.run_container(SERIAL)
    file = node.places.state_dir / f"{GPS}.json"
    state = json.loads(file.read_bytes())
    (grant,) = state.pop("grants")
    state |= {"handed_over": grant["ports"]}
    del state["boot"]
    (node.link_dir / GPS / "device.json").write_text(json.dumps(state))
    shutil.rmtree(node.places.state_dir)
    checkpoint(node).unlink()
    async with node.agent() as agent:
        await node.until_held(agent, GPS)
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        await container.restart()
        assert file.exists()


async def test_without_pod_resources_the_kubelets_notes_tell_who_holds_what(node: Node) -> None:
    node.places = replace(node.places, pod_resources=node.root / "none.sock")
    node.plug("ttyUSB0", "GPS-A7")
    async with node.agent():
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        container = await node.kubelet.run_container(SERIAL, pod="first")
    async with node.agent(config(identity=IdentityMode.LOCATION)) as agent:
        await node.until_health(agent, GPS, Health.RETIRED)
        await node.until_connected()
        assert node.kubelet.resource(SERIAL).healthy == frozenset()
        with pytest.raises(UnexpectedAdmissionError):
            await node.kubelet.run_container(SERIAL, pod="second")
        await container.restart()
        container.remove()
        await node.kubelet.wait_for(lambda: len(node.kubelet.resource(SERIAL).healthy) == 1)


async def test_a_renamed_resource_and_a_restart_before_the_kubelet_answers_free_nothing(
    node: Node,
) -> None:
    node.plug("ttyUSB0", "GPS-A7")
    async with node.agent():
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        await node.kubelet.run_container(SERIAL)
    node.places = replace(node.places, own_pod="system/usbplugin")  # so no answer counts yet
    renamed = Config(resources=(ResourceConfig(name="usbplugin/gps"),))
    async with node.agent(renamed) as agent:
        await node.until_health(agent, GPS, Health.CONTESTED)
        await node.kubelet.wait_for(lambda: "usbplugin/gps" in node.kubelet.resources)
        assert node.kubelet.resource("usbplugin/gps").healthy == frozenset()


async def test_a_container_restarts_though_its_device_is_of_another_resource_by_now(
    node: Node,
) -> None:
    port = node.plug("ttyUSB0", "GPS-A7")
    async with node.agent():
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        container = await node.kubelet.run_container(SERIAL)
    gps = ResourceConfig(name="usbplugin/gps")
    both = Config(flapping=Flapping(times=60), resources=(gps, ResourceConfig(name=SERIAL)))
    async with node.agent(both) as agent:
        await node.until_health(agent, GPS, Health.CONTESTED)
        await node.until_connected()
        await container.restart()
        assert os.readlink(container.mounts[0].host_path) == port.node


@pytest.mark.parametrize("is_held", [False, True])
async def test_a_spec_of_an_earlier_run_outlives_the_end_of_cdi_only_for_who_needs_it(
    node: Node, *, is_held: bool
) -> None:
    node.plug("ttyUSB0", "GPS-A7")
    spec = node.places.cdi_dir / "usbplugin_serial.json"
    theirs = node.places.cdi_dir / "vendor.json"
    async with node.serve(*flags(node, "cdi: true")) as process:
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        theirs.write_text('{"kind": "vendor.com/gpu", "devices": [{"name": "gpu0"}]}')
        container = await node.kubelet.run_container(SERIAL)
        process.signal(signal.SIGKILL)
        await process.wait(within=5)
    if not is_held:
        container.remove()
    assert spec.exists()
    async with node.serve(*flags(node, "cdi: false")):
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        assert spec.exists() is is_held
        assert theirs.exists()
        if is_held:
            await container.restart()


def flags(node: Node, text: str) -> list[str]:
    file = node.root / "config.yaml"
    file.write_text(f"resources: [{{name: {SERIAL}}}]\n{text}\n")
    return ["--config", str(file)]


async def test_a_signal_before_the_first_listing_removes_nothing(node: Node) -> None:
    node.plug("ttyUSB0", "GPS-A7")
    async with node.serve(*flags(node, "cdi: true")) as process:
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        await node.kubelet.run_container(SERIAL)
        process.signal(signal.SIGKILL)
        await process.wait(within=5)
    places = (node.link_dir, node.places.state_dir, node.places.cdi_dir)
    before = [sorted(place.rglob("*")) for place in places]
    for number in range(20_000):  # a listing that takes a while
        (node.device_dir / f"ttyUSB{number + 1}").symlink_to("/dev/full")
    await node.kubelet.stop()
    async with node.serve(*flags(node, "cdi: true")) as process:
        await process.wait_for_log("directory source running")
        process.signal(signal.SIGTERM)
        assert await process.wait(within=20) == 0
    after = [sorted(set(place.rglob("*")) - {node.link_dir / "usbplugin.sock"}) for place in places]
    assert after == [[p for p in paths if p.name != "usbplugin.sock"] for paths in before]
