"""What becomes of pods with devices."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.deploy.real_nodes import KMSG, NULL, OPEN, ZERO
from tests.node import SERIAL

if TYPE_CHECKING:
    from tests.real_kubelet.rig import PodContainer, RealKubelet

pytestmark = pytest.mark.timeout(180)

GPS = "usb-0403:6001-GPS-A7-if00"
BARO = "usb-0403:6001-BARO-1-if00"
STAT = "stat -c '%t:%T %a %u:%g' /dev/ttyUSB0"


def refused(container: PodContainer | None) -> bool:
    return container is not None and container.reason == "UnexpectedAdmissionError"


def waits(container: PodContainer | None) -> bool:
    return container is not None and container.reason == "CreateContainerConfigError"


async def test_a_pod_gets_its_port_and_everybody_knows_whose_it_is(node: RealKubelet) -> None:
    node.plug_node("ttyUSB0", "GPS-A7", KMSG)
    async with node.serve():
        await node.wait_healthy(GPS)
        node.create_pod("logger")
        await node.wait_running("logger")
        ended = await node.exec("logger", f"{STAT}; {OPEN}; echo $USBPLUGIN_SERIAL_IDS")
        assert ended.output == f"1:b 660 0:20\nopened\n{GPS}\n"
        holder = "default/logger-node/main"
        assert await node.holders() == {GPS: holder}
        (listed,) = json.loads(node.run("list", "--json"))
        assert (listed["id"], listed["holders"]) == (GPS, [holder])


async def test_what_is_unplugged_is_handed_to_nobody(node: RealKubelet) -> None:
    node.plug_node("ttyUSB0", "GPS-A7", ZERO)
    async with node.serve():
        await node.wait_healthy(GPS)
        node.unplug_node("ttyUSB0")
        await node.wait_healthy()
        node.create_pod("logger")
        container = await node.wait_for_pod("logger", refused)
        assert f"unavailable for {SERIAL}. Requested: 1, Available: 0" in container.message


async def test_a_restarted_container_waits_for_its_device_and_finds_it_under_its_new_number(
    node: RealKubelet,
) -> None:
    node.plug_node("ttyUSB0", "GPS-A7", ZERO)
    async with node.serve():
        await node.wait_healthy(GPS)
        node.create_pod("logger")
        await node.wait_running("logger")
        node.unplug_node("ttyUSB0")
        await node.wait_healthy()
        # Another one takes its name meanwhile.
        node.plug_node("ttyUSB0", "BARO-1", NULL)
        await node.wait_healthy(BARO)
        await node.kill_container("logger")
        container = await node.wait_for_pod("logger", waits)
        assert f"{GPS} is unplugged" in container.message
        node.plug_node("ttyUSB6", "GPS-A7", KMSG)
        await node.wait_healthy(GPS, BARO)
        await node.wait_running("logger", restarts=1)
        assert (await node.exec("logger", STAT)).output == "1:b 660 0:20\n"


async def test_a_displaced_device_is_healthy_again_once_its_container_is_started_anew(
    node: RealKubelet,
) -> None:
    node.plug_node("ttyUSB0", "GPS-A7", ZERO)
    async with node.serve():
        await node.wait_healthy(GPS)
        node.create_pod("logger")
        await node.wait_running("logger")
        node.unplug_node("ttyUSB0")
        await node.wait_healthy()
        node.plug_node("ttyUSB6", "GPS-A7", NULL)
        await node.until(lambda: '"displaced"' in node.run("list", "--json"))
        assert node.healthy() == set()
        await node.kill_container("logger")
        await node.wait_running("logger", restarts=1)
        await node.wait_healthy(GPS)
        assert (await node.exec("logger", STAT)).output == "1:3 660 0:20\n"


async def test_a_deleted_pod_leaves_its_device_to_the_next(node: RealKubelet) -> None:
    node.plug_node("ttyUSB0", "GPS-A7", ZERO)
    async with node.serve():
        await node.wait_healthy(GPS)
        node.create_pod("first")
        await node.wait_running("first")
        node.create_pod("late")
        await node.wait_for_pod("late", refused)
        node.delete_pod("first")
        await node.until_held({})
        await node.until(lambda: node.container("first") is None)
        node.create_pod("second")
        await node.wait_running("second")
        await node.until_held({GPS: "default/second-node/main"})


async def test_an_init_container_leaves_its_device_to_the_others_of_its_pod(
    node: RealKubelet,
) -> None:
    node.plug_node("ttyUSB0", "GPS-A7", KMSG)
    async with node.serve():
        await node.wait_healthy(GPS)
        node.create_pod("logger", init=OPEN)
        await node.wait_running("logger")
        assert (await node.exec("logger", OPEN)).output == "opened\n"
        await node.until(lambda: '"default/logger-node/main"' in node.run("list", "--json"))


async def test_a_modem_is_handed_over_with_all_its_ports(node: RealKubelet) -> None:
    for interface, number in enumerate((ZERO, NULL, KMSG)):
        node.plug_node(f"ttyUSB{interface}", "MODEM", number, interface=interface)
    modem = {"name": "usbplugin/modem", "unit": "usb-device", "containerPath": "/dev/modem{port}"}
    async with node.serve(resources=[modem]):
        await node.until(lambda: len(node.healthy("usbplugin/modem")) == 1)
        node.create_pod("dialler", "usbplugin/modem")
        await node.wait_running("dialler")
        ended = await node.exec("dialler", "stat -c '%n %t:%T' /dev/modem*")
        assert ended.output == "/dev/modem0 1:5\n/dev/modem1 1:3\n/dev/modem2 1:b\n"
        node.unplug_node("ttyUSB1")
        await node.wait_healthy(resource="usbplugin/modem")


async def test_two_of_four_are_taken_from_the_same_hub(node: RealKubelet) -> None:
    for index, (hub, port) in enumerate([(1, 1), (2, 1), (1, 2), (2, 2)]):
        location = f"0000:00:14.0-{hub}.{port}"
        node.plug_node(f"ttyUSB{index}", f"HUB-{hub}-{port}", ZERO, location=location)
    async with node.serve():
        await node.until(lambda: len(node.healthy()) == 4)
        for name in ("first", "second"):
            node.create_pod(name, count=2)
            await node.wait_running(name)
        held = await node.holders()
        hubs = {(holder, device.split("-")[3]) for device, holder in held.items()}
        assert len(held) == 4
        assert len(hubs) == 2, held


async def test_a_port_is_shared_by_as_many_as_it_has_shares(node: RealKubelet) -> None:
    node.plug_node("ttyUSB0", "GPS-A7", ZERO)
    async with node.serve(resources=[{"name": SERIAL, "shares": 2}]):
        await node.until(lambda: len(node.healthy()) == 2)
        for name in ("first", "second"):
            node.create_pod(name)
            await node.wait_running(name)
            assert (await node.exec(name, STAT)).output == "1:5 660 0:20\n"
        node.create_pod("third")
        await node.wait_for_pod("third", refused)
