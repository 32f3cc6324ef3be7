"""Containers that outlive cables: in a mount namespace, with a device filter, on real devices."""

from __future__ import annotations

import asyncio
from signal import SIGCONT, SIGSTOP
from typing import TYPE_CHECKING

import pytest

from tests.node import SERIAL
from usbplugin.virtual import ContainerState, CreateContainerConfigError, UnexpectedAdmissionError

from .runtime import RunningContainer
from .serve import TIMEOUT, acm_id

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.node import Process
    from usbplugin.virtual import Container

    from .conftest import GadgetFactory
    from .gadget import UsbGadget
    from .serve import HardwareNode

pytestmark = pytest.mark.timeout(120)

ONE, TWO = acm_id("ONE"), acm_id("TWO")
HOLDER = f"default/{ONE[-8:]}/main"


async def run(node: HardwareNode, device_id: str) -> Container:
    return await node.kubelet.run_container(SERIAL, device_ids=[device_id], pod=device_id[-8:])


def path(container: Container) -> str:
    (spec,) = container.devices
    return spec.container_path


async def test_a_restarted_container_opens_its_device_under_another_number(
    gadget: GadgetFactory, node: HardwareNode
) -> None:
    device, other = gadget(serial=b"ONE"), gadget(serial=b"TWO")
    device.plug()
    async with node.serve():
        await node.healthy(ONE)
        container = await run(node, ONE)
        with RunningContainer(container) as running, device.line() as firmware:
            assert running.send(path(container), "first") is None
            assert firmware.read(5) == b"first"
            assert running.make("/dev/null", "1:3") == "EPERM", "the filter is at work"
        device.unplug(wait=False)
        await node.healthy()
        other.plug()
        with pytest.raises(CreateContainerConfigError, match="is gone"):
            await container.restart()
        await node.healthy(TWO)
        device.plug(wait=False)
        await node.healthy(ONE, TWO)
        await container.start()
        with RunningContainer(container) as running, device.line() as firmware:
            (tty,) = device.ttys
            assert running.number(path(container)) == tty.number
            assert running.send(path(container), "second") is None
            assert firmware.read(6) == b"second"


async def test_a_running_container_reaches_whoever_has_its_number_and_is_told_of(
    gadget: GadgetFactory, node: HardwareNode
) -> None:
    """A plugin cannot take a node away again; it can say so, and the restart is right."""
    device, other = gadget(serial=b"ONE"), gadget(serial=b"TWO")
    device.plug()
    async with node.serve() as process:
        await node.healthy(ONE)
        container = await run(node, ONE)
        with RunningContainer(container) as running:
            device.unplug()
            assert running.send(path(container), "?") == "ENXIO"
            other.plug()
            with other.line() as firmware:
                assert running.send(path(container), "stray") is None
                assert firmware.read(5) == b"stray"
            device.plug(wait=False)
            await process.wait_for_log("device displaced", within=20)
            await node.until_health(TWO, "contested", because=f"{HOLDER} was given {ONE}")
            assert node.states() == {ONE: False, TWO: False}
        await container.restart()
        await node.healthy(ONE, TWO)
        with RunningContainer(container) as running, device.line() as firmware:
            assert running.send(path(container), "home") is None
            assert firmware.read(4) == b"home"


def swap(devices: list[UsbGadget]) -> None:
    """Pull both, and plug them in again in the other order."""
    before = [device.ttys[0].number for device in devices]
    for device in devices:
        device.unplug()
    for device in reversed(devices):
        device.plug()
    assert [device.ttys[0].number for device in devices] == before[::-1]


async def restart_both(
    node: HardwareNode, devices: list[UsbGadget], containers: list[Container]
) -> None:
    """Each waits for the other's container to let go of its number, and gets its own device."""
    assert node.states() == {ONE: False, TWO: False}
    with pytest.raises(CreateContainerConfigError, match=f"{ONE} is contested"):
        await containers[0].restart()
    # It has ended for that, so nobody has what is the other device's number now.
    assert node.states() == {ONE: False, TWO: False}
    await containers[1].restart()
    await node.healthy(ONE, TWO)
    await containers[0].start()
    await get_their_own(devices, containers)


async def get_their_own(devices: list[UsbGadget], containers: list[Container]) -> None:
    """A container's bytes reach its device."""
    for container, device in zip(containers, devices, strict=True):
        text = f"for {device.name}"
        with RunningContainer(container) as running, device.line() as firmware:
            assert running.number(path(container)) == device.ttys[0].number
            assert running.send(path(container), text) is None
            assert firmware.read(len(text)) == text.encode()


async def until_contested(node: HardwareNode, process: Process) -> None:
    for device_id in (ONE, TWO):
        await process.wait_for_log(f"device contested device={device_id}", within=20)
    await node.healthy()


async def test_two_devices_that_come_back_swapped(
    gadget: GadgetFactory, node: HardwareNode
) -> None:
    devices = [gadget(serial=serial) for serial in (b"ONE", b"TWO")]
    for device in devices:
        device.plug()
    async with node.serve() as process:
        await node.healthy(ONE, TWO)
        containers = [await run(node, ONE), await run(node, TWO)]
        running = [RunningContainer(container) for container in containers]
        swap(devices)
        await until_contested(node, process)
        # Why it matters: each now writes to the other's device.
        for container, app, device in zip(containers, running, reversed(devices), strict=True):
            with app, device.line() as firmware:
                assert app.send(path(container), "stray") is None
                assert firmware.read(5) == b"stray"
        await restart_both(node, devices, containers)


async def test_two_devices_that_come_back_swapped_while_the_plugin_was_away(
    gadget: GadgetFactory, node: HardwareNode
) -> None:
    devices = [gadget(serial=serial) for serial in (b"ONE", b"TWO")]
    for device in devices:
        device.plug()
    async with node.serve():
        await node.healthy(ONE, TWO)
        containers = [await run(node, ONE), await run(node, TWO)]
    swap(devices)
    async with node.serve() as process:
        # Never were they healthy, not in the first message either.
        first = next(m for m in node.kubelet.log.messages if m.endpoint in node.sockets())
        assert not any(device.healthy for device in first.devices)
        await until_contested(node, process)
        await restart_both(node, devices, containers)


async def test_a_swap_is_not_forgotten_by_a_restart_of_the_plugin(
    gadget: GadgetFactory, node: HardwareNode
) -> None:
    devices = [gadget(serial=serial) for serial in (b"ONE", b"TWO")]
    for device in devices:
        device.plug()
    async with node.serve() as process:
        await node.healthy(ONE, TWO)
        containers = [await run(node, ONE), await run(node, TWO)]
        swap(devices)
        await until_contested(node, process)
    async with node.serve() as process:
        await until_contested(node, process)
        await restart_both(node, devices, containers)


@pytest.mark.parametrize("asking", [(0,), (1,), (0, 1)], ids=["one", "two", "both"])
async def test_two_devices_that_are_swapped_while_the_plugin_is_stopped(
    gadget: GadgetFactory, node: HardwareNode, asking: tuple[int, ...]
) -> None:
    """Whether it hears first of the swap or of a container that is to be started."""
    devices = [gadget(serial=serial) for serial in (b"ONE", b"TWO")]
    for device in devices:
        device.plug()
    async with node.serve() as process:
        await node.healthy(ONE, TWO)
        containers = [await run(node, ONE), await run(node, TWO)]
        process.signal(SIGSTOP)
        swap(devices)
        starts = [asyncio.create_task(containers[index].restart()) for index in asking]
        done, _ = await asyncio.wait(starts, timeout=1)
        assert not done, "who is stopped gives no answer"
        process.signal(SIGCONT)
        for index, outcome in zip(
            asking, await asyncio.gather(*starts, return_exceptions=True), strict=True
        ):
            if outcome is None:
                await get_their_own(devices[index : index + 1], containers[index : index + 1])
            else:
                assert isinstance(outcome, CreateContainerConfigError)
        if len(asking) == 1:
            assert containers[asking[0]].state is ContainerState.WAITING, "the other one has it"
        # As kubelets do: what was refused is tried again, and the other one is restarted by people.
        for container in containers:
            if container.state is ContainerState.RUNNING:
                await started(container.restart)
        for container in containers:
            if container.state is ContainerState.WAITING:
                await started(container.start)
        await node.healthy(ONE, TWO)
        await get_their_own(devices, containers)


async def started(start: Callable[[], Awaitable[None]]) -> None:
    """Ask until the container may start, as a kubelet does."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            try:
                return await start()
            except CreateContainerConfigError:
                await asyncio.sleep(0.1)


@pytest.mark.parametrize("way", ["restarted", "deleted"])
async def test_a_number_that_a_running_container_has_is_not_given_to_another(
    gadget: GadgetFactory, node: HardwareNode, way: str
) -> None:
    """A stick is pulled, and the next one takes its number; the container goes on running."""
    device, other = gadget(serial=b"ONE"), gadget(serial=b"TWO")
    device.plug()
    number = device.ttys[0].number
    async with node.serve() as process:
        await node.healthy(ONE)
        container = await run(node, ONE)
        with RunningContainer(container) as running:
            device.unplug(wait=False)
            await node.healthy()
            other.plug()
            assert other.ttys[0].number == running.number(path(container)) == number
            because = f"{HOLDER} was given {ONE} with the number {number}, and may open it"
            await node.until_health(TWO, "contested", because=because)
            assert node.states() == {ONE: False, TWO: False}
            with pytest.raises(UnexpectedAdmissionError, match="no healthy devices present"):
                await node.kubelet.run_container(SERIAL, pod="second")
            with pytest.raises(UnexpectedAdmissionError, match=f"{TWO} is contested"):
                await run(node, TWO)
            assert "device contested" in process.log()
        if way == "restarted":
            with pytest.raises(CreateContainerConfigError, match="is gone"):
                await container.restart()
        else:
            container.remove()
        await node.healthy(TWO)
        second = await node.kubelet.run_container(SERIAL, pod="second")
        assert second.device_ids == (TWO,)
        with RunningContainer(second) as running, other.line() as firmware:
            assert running.send(path(second), "mine") is None
            assert firmware.read(4) == b"mine"


async def test_the_container_of_a_modem_gets_all_its_ports(
    gadget: GadgetFactory, node: HardwareNode
) -> None:
    modem, other = gadget(functions=["acm", "acm"], serial=b"MODEM"), gadget(serial=b"OTHER")
    resources = f"""
- name: {SERIAL}
  selectors: [{{serial: MODEM}}]
  unit: usb-device
  containerPath: '/dev/m{{port}}'
- name: usbplugin/others"""
    modem.plug()
    async with node.serve(resources=resources) as process:
        await node.healthy("usb-2341:0043-MODEM")
        container = await node.kubelet.run_container(SERIAL)
        modem.unplug(wait=False)
        await node.healthy()
        other.plug()
        modem.plug(wait=False)
        await process.wait_for_log("device displaced", within=20)
        await container.restart()
        await node.healthy("usb-2341:0043-MODEM")
        with RunningContainer(container) as running:
            for index, (tty, node_path) in enumerate(
                zip(modem.ttys, ("/dev/m0", "/dev/m1"), strict=True)
            ):
                assert running.number(node_path) == tty.number
                with modem.line(index) as firmware:
                    assert running.send(node_path, "AT") is None
                    assert firmware.read(2) == b"AT"
