"""Hotplug with virtual ttys, through the real directory source, inotify and sockets."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from tests.node import SERIAL, Node
from usbplugin.config import Config, ResourceConfig
from usbplugin.inventory import Selector
from usbplugin.virtual.containers import CreateContainerConfigError, UnexpectedAdmissionError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.timeout(30)

GPS = "usb-0403:6001-GPS-A7-if00"


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with Node() as node:
        yield node


async def test_plug_unplug_and_replug_under_another_name(node: Node) -> None:
    async with node.agent():
        node.plug("ttyUSB0", "GPS-A7")
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        node.bus.unplug("ttyUSB0")
        await node.kubelet.wait_healthy(SERIAL, set())
        assert node.kubelet.resource(SERIAL).capacity == 1
        node.bus.replug("ttyUSB0", "ttyUSB4")
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        assert set(node.kubelet.resource(SERIAL).devices) == {GPS}


async def test_what_is_there_before_the_start_is_in_the_first_message(node: Node) -> None:
    for number in range(3):
        node.plug(f"ttyACM{number}", f"S{number}X")
    async with node.agent():
        await node.kubelet.wait_for(lambda: len(node.kubelet.log.messages) > 0)
        assert len(node.kubelet.log.messages[0].devices) == 3


async def test_fifty_at_once(node: Node) -> None:
    async with node.agent():
        for number in range(50):
            node.plug(f"ttyUSB{number}", f"SN-{number:03}")
        wanted = {f"usb-0403:6001-SN-{number:03}-if00" for number in range(50)}
        await node.kubelet.wait_healthy(SERIAL, wanted)
        for number in range(0, 50, 2):
            node.bus.unplug(f"ttyUSB{number}")
        left = {f"usb-0403:6001-SN-{number:03}-if00" for number in range(1, 50, 2)}
        await node.kubelet.wait_healthy(SERIAL, left)
        assert node.kubelet.resource(SERIAL).capacity == 50
        assert not node.kubelet.log.violations


async def test_bytes_go_through_what_allocate_gave(node: Node) -> None:
    port = node.plug("ttyUSB0", "GPS-A7")
    async with node.agent():
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        container = await node.kubelet.run_container(SERIAL)
        (mount,) = container.mounts
        assert not container.devices
        assert mount.container_path == "/dev/ttyUSB0"
        assert container.envs["USBPLUGIN_SERIAL_DEVICES"] == "/dev/ttyUSB0"
        application = os.open(mount.host_path, os.O_RDWR | os.O_NOCTTY)
        peer = os.open(port.peer_path, os.O_RDWR | os.O_NOCTTY)
        try:
            os.write(peer, b"$GPGGA\n")
            assert os.read(application, 64) == b"$GPGGA\n"
            os.write(application, b"ack")
            assert os.read(peer, 64) == b"ack"
        finally:
            os.close(application)
            os.close(peer)


async def test_a_restarted_container_gets_its_device_under_its_new_number(node: Node) -> None:
    node.plug("ttyUSB0", "GPS-A7")
    async with node.agent():
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        container = await node.kubelet.run_container(SERIAL)
        (path,) = {mount.host_path for mount in container.mounts}

        node.bus.unplug("ttyUSB0")
        await node.kubelet.wait_healthy(SERIAL, set())
        with pytest.raises(CreateContainerConfigError, match="is gone"):
            await container.restart()
        assert not os.path.lexists(path)

        node.plug("ttyUSB0", "OTHER")  # takes the old name, and perhaps the old pty
        moved = node.bus.replug("ttyUSB0", "ttyUSB3")
        await node.kubelet.wait_healthy(SERIAL, {GPS, "usb-0403:6001-OTHER-if00"})
        await container.restart()
        assert os.path.realpath(path) == moved.node


async def test_allocation_of_an_unplugged_device_is_refused(node: Node) -> None:
    node.plug("ttyUSB0", "GPS-A7")
    async with node.agent():
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        node.bus.unplug("ttyUSB0")
        await node.kubelet.wait_healthy(SERIAL, set())
        with pytest.raises(UnexpectedAdmissionError, match="is gone"):
            await node.kubelet.run_container(SERIAL, device_ids=[GPS])


async def test_a_link_swapped_to_another_target(node: Node) -> None:
    one, other = node.plug("ttyUSB5", "ONE"), node.plug("ttyUSB6", "OTHER")
    bare = node.device_dir / "ttyUSB0"
    bare.symlink_to(one.node)
    node.bus.directory.joinpath("ttyUSB5").unlink()
    async with node.agent():
        await node.kubelet.wait_for(lambda: len(node.kubelet.resource(SERIAL).healthy) == 2)
        (device_id,) = (
            name for name in node.kubelet.resource(SERIAL).healthy if name.startswith("dir-")
        )
        link = node.link_dir / device_id / "if00"
        assert os.readlink(link) == one.node
        node.bus.directory.joinpath("ttyUSB6").unlink()
        await node.kubelet.wait_healthy(SERIAL, {device_id})
        temporary = node.device_dir / ".swap"
        temporary.symlink_to(other.node)
        temporary.rename(bare)
        node.plug("ttyUSB7", "MARKER")
        await node.kubelet.wait_healthy(SERIAL, {device_id, "usb-0403:6001-MARKER-if00"})
        assert os.readlink(link) == other.node


async def test_an_entry_that_is_not_a_character_device_is_ignored(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    (node.device_dir / "ttyUSB0").write_text("a file")
    (node.device_dir / "ttyUSB1").mkdir()
    (node.device_dir / "ttyUSB2").symlink_to("/nowhere")
    (node.device_dir / "ttyUSB3").symlink_to("ttyUSB3")
    async with node.agent():
        node.plug("ttyUSB9", "GPS-A7")
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        assert node.kubelet.resource(SERIAL).capacity == 1
    ignored = [record for record in caplog.records if record.getMessage().startswith("entry")]
    assert len(ignored) == 4


async def test_an_entry_that_becomes_a_file_is_unplugged(node: Node) -> None:
    port = node.plug("ttyUSB0", "GPS-A7")
    async with node.agent():
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        path = node.device_dir / port.name
        path.unlink()
        path.write_text("a file")
        await node.kubelet.wait_healthy(SERIAL, set())


async def test_a_directory_that_vanishes_and_comes_back(node: Node) -> None:
    one = node.plug("ttyUSB5", "ONE")
    directory = node.device_dir / "below/usb"
    directory.mkdir(parents=True)
    (directory / "ttyUSB0").symlink_to(one.node)

    def is_healthy() -> bool:
        return len(node.kubelet.resource(SERIAL).healthy) == 1

    async with node.agent(device_dir=directory):
        for _ in range(3):
            await node.kubelet.wait_for(is_healthy)
            (directory / "ttyUSB0").unlink()
            directory.rmdir()
            directory.parent.rmdir()
            await node.kubelet.wait_healthy(SERIAL, set())
            directory.mkdir(parents=True)
            (directory / "ttyUSB0").symlink_to(one.node)
        await node.kubelet.wait_for(is_healthy)


async def test_two_resources_share_out_the_ports(node: Node) -> None:
    zigbee = "usbplugin/zigbee"
    config = Config(
        resources=(
            ResourceConfig(
                name=zigbee, selectors=(Selector(serial="ZB-*"),), container_path="/dev/zigbee"
            ),
            ResourceConfig(name=SERIAL),
        )
    )
    async with node.agent(config):
        node.plug("ttyUSB0", "ZB-1")
        node.plug("ttyUSB1", "GPS-A7")
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        await node.kubelet.wait_healthy(zigbee, {"usb-0403:6001-ZB-1-if00"})
        container = await node.kubelet.run_container(zigbee)
        assert container.mounts[0].container_path == "/dev/zigbee"
        assert container.envs["USBPLUGIN_ZIGBEE_DEVICES"] == "/dev/zigbee"
        with pytest.raises(UnexpectedAdmissionError, match="belongs to usbplugin/zigbee"):
            await node.kubelet.run_container(
                SERIAL, device_ids=["usb-0403:6001-ZB-1-if00"], pod="other"
            )


async def test_a_storm_ends_in_the_truth(node: Node) -> None:
    ports = [node.plug(f"ttyUSB{number}", f"SN-{number}X") for number in range(8)]
    async with node.agent():
        await node.kubelet.wait_for(lambda: len(node.kubelet.resource(SERIAL).healthy) == 8)
        messages = len(node.kubelet.log.messages)
        rounds = 30
        for _ in range(rounds):
            for port in ports:
                node.bus.unplug(port.name)
            for port in ports:
                node.bus.replug(port.name)
            await asyncio.to_thread(os.sched_yield)
        node.bus.unplug("ttyUSB3")
        wanted = {f"usb-0403:6001-SN-{number}X-if00" for number in range(8) if number != 3}
        await node.kubelet.wait_healthy(SERIAL, wanted)
        assert len(node.kubelet.log.messages) - messages < rounds * 16
        assert node.kubelet.resource(SERIAL).capacity == 8
