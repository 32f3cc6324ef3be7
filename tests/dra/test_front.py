"""The DRA front over real sockets: an embedded kubelet on one side, a small API server behind."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.dra.node import GPS, MODEM, DraNode
from usbplugin.dra.names import device_name
from usbplugin.virtual.dra import PrepareError, UnresolvableCdiError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def node() -> AsyncIterator[DraNode]:
    async with DraNode() as node:
        node.plug("ttyUSB0", "GPS-A7")
        yield node


async def test_a_claim_by_serial_from_plug_to_replug(node: DraNode) -> None:
    async with node.driver() as agent:
        await node.until_published(GPS)
        serial = node.api.devices[device_name(GPS)]["attributes"]["serial"]
        assert serial == {"string": "GPS-A7"}
        container = await node.run(GPS)
        assert list(container.nodes) == ["/dev/ttyUSB0"]
        assert container.envs["USBPLUGIN_SERIAL_IDS"] == GPS
        assert container.envs["USBPLUGIN_REQUEST_TTY_DEVICES"] == "/dev/ttyUSB0"
        (info,) = json.loads(container.envs["USBPLUGIN_SERIAL_INFO"])
        assert info["serial"] == "GPS-A7"
        await node.until(lambda: node.dra.health[("node-1", device_name(GPS))].is_healthy)

        node.bus.unplug("ttyUSB0")
        await node.until(lambda: node.api.evicting == {device_name(GPS)})
        assert node.specs() == []
        with pytest.raises(UnresolvableCdiError):
            container.start()
        await node.until(lambda: not node.dra.health[("node-1", device_name(GPS))].is_healthy)

        node.bus.replug("ttyUSB0", "ttyUSB4")
        await node.until(lambda: bool(node.specs()))
        container.start()
        assert list(container.nodes) == ["/dev/ttyUSB4"]
        await node.dra.remove(container)
        assert (node.specs(), node.claim_files()) == ([], [])
        await node.until(lambda: node.api.taints(device_name(GPS)) == [])
        assert agent.metrics.dra is not None


async def test_a_device_that_comes_back_under_the_same_number_was_never_missed(
    node: DraNode,
) -> None:
    async with node.driver("5s"):
        await node.until_published(GPS)
        container = await node.run(GPS)
        node.bus.unplug("ttyUSB0")
        await node.until(lambda: node.api.taints(device_name(GPS)) == [("unplugged", "NoSchedule")])
        node.bus.replug("ttyUSB0")
        await node.until(lambda: node.api.taints(device_name(GPS)) == [])
        container.start()


async def test_two_requests_of_a_claim_are_told_apart(node: DraNode) -> None:
    node.plug("ttyUSB1", "MODEM-B3")
    async with node.driver():
        await node.until_published(GPS, MODEM)
        container = await node.run(GPS, MODEM, requests=("gps", "modem"))
        assert container.envs["USBPLUGIN_REQUEST_GPS_IDS"] == GPS
        assert container.envs["USBPLUGIN_REQUEST_MODEM_IDS"] == MODEM
        assert "USBPLUGIN_SERIAL_IDS" not in container.envs
        assert sorted(container.nodes) == ["/dev/ttyUSB0", "/dev/ttyUSB1"]
        container.request = "modem"
        container.start()
        assert sorted(container.nodes) == ["/dev/ttyUSB1"]


async def test_the_devices_of_one_request_come_as_one(node: DraNode) -> None:
    node.plug("ttyUSB1", "MODEM-B3")
    async with node.driver():
        await node.until_published(GPS, MODEM)
        container = await node.run(GPS, MODEM)
        assert container.envs["USBPLUGIN_SERIAL_IDS"] == f"{GPS},{MODEM}"
        assert sum(len(device.cdi_devices) for device in container.claim.devices) == 1


def handover(**parameters: str) -> dict[str, object]:
    return {
        "source": "FromClaim",
        "opaque": {
            "driver": "usbplugin",
            "parameters": {"apiVersion": "usbplugin/v1", "kind": "Handover", **parameters},
        },
    }


async def test_a_pod_names_its_own_path(node: DraNode) -> None:
    async with node.driver():
        await node.until_published(GPS)
        container = await node.run(GPS, configs=(handover(containerPath="/dev/gps"),))
        assert list(container.nodes) == ["/dev/gps"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (handover(containerPath="/dev/../etc/passwd"), "expected no empty, '.' or '..' parts"),
        (handover(permissions="rwm"), "it may have rw at most"),
        (handover(colour="red"), "unknown field `colour`"),
        ({"source": "FromClaim", "opaque": {"driver": "usbplugin"}}, "are not valid"),
    ],
)
async def test_parameters_that_make_no_sense_are_refused(
    node: DraNode, change: dict[str, object], text: str
) -> None:
    async with node.driver():
        await node.until_published(GPS)
        with pytest.raises(PrepareError, match=text):
            await node.run(GPS, configs=(change,))
        assert node.claim_files() == []


async def test_admin_access_is_refused(node: DraNode) -> None:
    async with node.driver():
        await node.until_published(GPS)
        with pytest.raises(PrepareError, match="adminAccess"):
            await node.run(GPS, adminAccess=True)


async def test_the_kubelet_names_who_has_a_claim(node: DraNode) -> None:
    async with node.driver() as agent:
        await node.until_published(GPS)
        await node.run(GPS)
        await node.until_held(agent, GPS)
        (device,) = agent.custody.devices
        assert device.holders == ("default/pod-of-claim/main",)


async def test_a_process_of_its_own_serves_and_leaves_its_slices(node: DraNode) -> None:
    async with node.serve_dra("--log-level", "debug") as process:
        await node.until_published(GPS)
        await node.run(GPS)
        process.signal(signal.SIGTERM)
        assert await process.wait(within=10) == 0
        assert not os.listdir(node.places.registry_dir)
        assert node.api.devices.keys() == {device_name(GPS)}
        assert node.specs(), "containers may be restarted meanwhile"
