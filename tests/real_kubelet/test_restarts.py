"""Kubelet and plugin come and go, and a pod keeps its device."""

from __future__ import annotations

import asyncio
import signal
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from tests.deploy.real_nodes import KMSG, NULL, ZERO
from tests.real_kubelet.rig import PATIENCE
from usbplugin.errors import KubeletError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.real_kubelet.rig import RealKubelet
    from usbplugin.kubelet import PodResources

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.parametrize("registration", ["kubelet", "watcher"]),
]

GPS = "usb-0403:6001-GPS-A7-if00"
BARO = "usb-0403:6001-BARO-1-if00"
# They check again at each of their starts that a pod's devices are healthy.
_NOTHING_IS_ADMITTED_TWICE = (1, 24)
HELD = {GPS: "default/logger-node/main"}


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_the_kubelet_restarts(
    node: RealKubelet, registration: str, how: signal.Signals
) -> None:
    node.plug_node("ttyUSB0", "GPS-A7", ZERO)
    async with node.serve(registration=registration) as plugin:
        await node.wait_healthy(GPS)
        node.create_pod("logger")
        await node.wait_running("logger")
        before = plugin.registrations
        await node.restart_kubelet(how)
        await plugin.wait_registered(before + 1)
        # That it is told of this one shows that it listens: its checkpoint tells what was.
        node.plug_node("ttyUSB1", "BARO-1", NULL)
        await node.wait_healthy(GPS, BARO)
        await node.until_held(HELD)
        await node.kill_container("logger")
        await node.wait_running("logger", restarts=1)
        assert (await node.exec("logger", "stat -c %t:%T /dev/ttyUSB0")).output == "1:5\n"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_the_plugin_restarts(
    node: RealKubelet, registration: str, how: signal.Signals
) -> None:
    node.plug_node("ttyUSB0", "GPS-A7", ZERO)
    async with node.serve(registration=registration) as plugin:
        await node.wait_healthy(GPS)
        node.create_pod("logger")
        await node.wait_running("logger")
        plugin.signal(how)
        await plugin.wait(10)
    node.unplug_node("ttyUSB0")
    node.plug_node("ttyUSB6", "GPS-A7", NULL)
    await node.kill_container("logger")
    container = await node.wait_for_pod(
        "logger", lambda seen: bool(seen and seen.reason == "CreateContainerConfigError")
    )
    assert "PreStartContainer rpc failed" in container.message
    async with node.serve(registration=registration):
        await node.wait_running("logger", restarts=1)
        assert (await node.exec("logger", "stat -c %t:%T /dev/ttyUSB0")).output == "1:3\n"
        await node.wait_healthy(GPS)
        await node.until_held(HELD)


async def test_the_node_reboots_and_devices_get_other_names(
    node: RealKubelet, registration: str
) -> None:
    if node.version() >= _NOTHING_IS_ADMITTED_TWICE:
        pytest.skip("this kubelet fails a pod that it finds before its plugin")
    node.plug_node("ttyUSB0", "GPS-A7", ZERO)
    async with node.serve(registration=registration) as plugin:
        await node.wait_healthy(GPS)
        node.create_pod("logger")
        await node.wait_running("logger")
        plugin.signal(signal.SIGKILL)
        await plugin.wait(10)
    node.unplug_node("ttyUSB0")
    node.plug_node("ttyUSB0", "BARO-1", NULL)
    node.plug_node("ttyUSB6", "GPS-A7", KMSG)
    await node.reboot()
    # The kubelet does not ask a plugin that it has not met: it is for want of the path that the
    # container is not started.
    await node.kubelet.wait_for_log("lstat /run/usbplugin/", PATIENCE)
    async with node.serve(registration=registration):
        await node.wait_running("logger", restarts=1)
        assert (await node.exec("logger", "stat -c %t:%T /dev/ttyUSB0")).output == "1:b\n"
        await node.wait_healthy(GPS, BARO)
        await node.until_held(HELD)


async def test_a_second_instance_takes_over(node: RealKubelet, registration: str) -> None:
    node.plug_node("ttyUSB0", "GPS-A7", ZERO)
    async with node.serve(registration=registration) as first:
        await node.wait_healthy(GPS)
        node.create_pod("logger")
        await node.wait_running("logger")
        async with node.serve(registration=registration) as second:
            await second.wait_registered(1)
            first.signal(signal.SIGTERM)
            await first.wait(10)
            node.plug_node("ttyUSB1", "BARO-1", NULL)
            await node.wait_healthy(GPS, BARO)
            await node.kill_container("logger")
            await node.wait_running("logger", restarts=1)
            node.unplug_node("ttyUSB1")
            await node.wait_healthy(GPS)
            await node.until_held(HELD)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_a_restarted_kubelet_is_not_believed_before_it_knows_its_pods(
    node: RealKubelet, registration: str, how: signal.Signals
) -> None:
    node.plug_node("ttyUSB0", "GPS-A7", ZERO)
    async with node.serve(registration=registration):
        await node.wait_healthy(GPS)
        node.create_pod("logger")
        await node.until_held(HELD)
        async with answers(node.pod_resources("default/logger-node")) as found:
            await node.restart_kubelet(how)
            await node.wait_running("logger")
            known = len(found)
            await node.until(lambda: len(found) > known)
        assert found == [HELD] * len(found)


@asynccontextmanager
async def answers(pod_resources: PodResources) -> AsyncIterator[list[dict[str, str]]]:
    """What the kubelet says again and again of who holds what, as far as it is believed."""
    found: list[dict[str, str]] = []

    async def ask() -> None:
        while True:
            with suppress(KubeletError):
                held = await pod_resources.list()
                found.append({holding.device_id: holding.holder for holding in held})
            await asyncio.sleep(0)

    asking = asyncio.create_task(ask())
    try:
        yield found
    finally:
        asking.cancel()
        await asyncio.wait({asking})
