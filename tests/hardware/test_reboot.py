"""What a reboot does: links and numbers are new, and the kubelet remembers who holds which ID.

The machine is not really booted twice: the plugin is shown another boot's name, by a mount over the
kernel's file in its own mount namespace, and /run/usbplugin is emptied.
"""

from __future__ import annotations

import os
import shutil
import uuid
from typing import TYPE_CHECKING

import pytest

from tests.node import SERIAL
from usbplugin.virtual import CreateContainerConfigError

from .serve import acm_id
from .sysfs import Tty

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from usbplugin.virtual import Container

    from .conftest import GadgetFactory
    from .gadget import UsbGadget
    from .serve import HardwareNode

pytestmark = pytest.mark.timeout(180)


def a_boot(directory: Path) -> Callable[[Sequence[str]], Sequence[str]]:
    """Makes commands that see the name of a boot that nobody has seen before."""
    name = directory / f"boot-{uuid.uuid4()}"
    name.write_text(f"{uuid.uuid4()}\n")
    script = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"'
    return lambda command: ["unshare", "--mount", "--", "sh", "-c", script, str(name), *command]


async def shut_down(node: HardwareNode, devices: Sequence[UsbGadget]) -> None:
    """The plugin has ended. All devices go, and so does what is in /run."""
    await node.kubelet.stop()
    for device in devices:
        device.unplug()
    shutil.rmtree(node.link_dir)


def stick(container: Container) -> str:
    """What is written on the stick that a container would open."""
    (spec,) = container.devices
    tty = Tty.named(os.path.basename(os.path.realpath(spec.host_path)))
    return (tty.device / "product").read_text().strip()


async def start(container: Container) -> bool:
    """Start a container anew, if the plugin lets it."""
    try:
        await container.restart()
    except CreateContainerConfigError:
        return False
    return True


@pytest.mark.parametrize("first", ["A", "B"])
@pytest.mark.parametrize("order", ["B", "A", "BA", "AB"])
async def test_twins_are_told_apart_after_a_reboot(
    gadget: GadgetFactory, node: HardwareNode, first: str, order: str
) -> None:
    """Each container gets its own stick or none, whoever comes first, and if but one comes."""
    sticks = {
        name: gadget(serial=b"SAME7788", product=name.encode(), port=port)
        for name, port in (("A", 0), ("B", 3))
    }
    containers = {}
    async with node.serve(wrap=a_boot(node.root)):
        seen: set[str] = set()
        for name in sorted(sticks, key=lambda name: name != first):
            sticks[name].plug()
            (device_id,) = await node.some_healthy(len(seen) + 1) - seen
            seen.add(device_id)
            containers[name] = await node.kubelet.run_container(
                SERIAL, device_ids=[device_id], pod=f"pod-{name.lower()}"
            )
            assert stick(containers[name]) == name
    ids = {name: container.device_ids[0] for name, container in containers.items()}
    assert ids[first] == acm_id("SAME7788")
    await shut_down(node, list(sticks.values()))

    await node.kubelet.start()
    for name in order:
        sticks[name].plug()
    async with node.serve(wrap=a_boot(node.root)) as process:
        await node.healthy(*(ids[name] for name in order))
        for name in order:
            await containers[name].restart()
            assert stick(containers[name]) == name
        for name in sticks.keys() - set(order):
            assert not node.states()[ids[name]]
            assert not await start(containers[name])
            sticks[name].plug()
            await node.healthy(*ids.values())
            await containers[name].restart()
            assert stick(containers[name]) == name
        assert "displaced" not in process.log()
        assert "contested" not in process.log()


async def test_numbers_of_another_boot_count_for_nothing(
    gadget: GadgetFactory, node: HardwareNode
) -> None:
    """Nobody runs with them: devices that are swapped by a reboot are in nobody's way."""
    devices = {name: gadget(serial=name.encode(), product=name.encode()) for name in ("ONE", "TWO")}
    for device in devices.values():
        device.plug()
    numbers = {name: device.ttys[0].number for name, device in devices.items()}
    containers = {}
    async with node.serve(wrap=a_boot(node.root)):
        await node.healthy(*map(acm_id, devices))
        for name in devices:
            containers[name] = await node.kubelet.run_container(
                SERIAL, device_ids=[acm_id(name)], pod=f"pod-{name.lower()}"
            )
    await shut_down(node, list(devices.values()))

    await node.kubelet.start()
    for device in reversed(devices.values()):
        device.plug()
    assert [d.ttys[0].number for d in devices.values()] == list(numbers.values())[::-1]
    async with node.serve(wrap=a_boot(node.root)) as process:
        await node.healthy(*map(acm_id, devices))
        for name, container in containers.items():
            await container.restart()
            assert stick(container) == name
        assert not [word for word in ("displaced", "contested") if word in process.log()]
