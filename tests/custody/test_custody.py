"""What was allocated outlives cables, restarts and reloads: with real sockets, links and files."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import stat
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.node import SERIAL, Node
from usbplugin.config import Config, Flapping, Registration, ResourceConfig
from usbplugin.discovery import Unit
from usbplugin.inventory import Health, Selector
from usbplugin.virtual import CreateContainerConfigError, UnexpectedAdmissionError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from usbplugin.agent import Agent

pytestmark = pytest.mark.timeout(30)

GPS = "usb-0403:6001-GPS-A7-if00"
SENSOR = "usb-0403:6001-SENSOR-if00"
OWN = "usb-0403:6001-OWN-if00"
PATIENT = Flapping(times=60)


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with Node() as node:
        yield node


def resource(**settings: object) -> Config:
    return Config(flapping=PATIENT, resources=(ResourceConfig(name=SERIAL, **settings),))  # type: ignore[arg-type]


def number(path: str) -> int:
    return os.stat(path).st_rdev


async def test_a_restarted_container_opens_its_device_under_another_number(node: Node) -> None:
    port = node.plug("ttyUSB0", "GPS-A7")
    async with node.agent() as agent:
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        container = await node.kubelet.run_container(SERIAL)
        await node.until_held(agent, GPS)
        (mount,) = container.mounts
        keeper = os.open(port.node, os.O_RDWR | os.O_NOCTTY)  # so that the pty's number stays taken
        try:
            node.bus.unplug("ttyUSB0")
            await node.kubelet.wait_healthy(SERIAL, set())
            new = node.bus.replug("ttyUSB0", "ttyUSB6")
        finally:
            os.close(keeper)
        assert number(new.node) != port_number(port.node)
        # Its container runs on, with a node that leads nowhere: it is told to be restarted.
        await node.until_health(agent, GPS, Health.DISPLACED)
        assert node.kubelet.resource(SERIAL).healthy == frozenset()
        await container.restart()
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        assert number(mount.host_path) == number(new.node)


def port_number(node: str) -> int:
    """The pty slave's device number by its name, for it may be gone."""
    return os.makedev(136, int(node.rpartition("/")[2]))


async def test_a_displaced_device_whose_pod_is_deleted_is_free_again(node: Node) -> None:
    port = node.plug("ttyUSB0", "GPS-A7")
    async with node.agent() as agent:
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        container = await node.kubelet.run_container(SERIAL)
        await node.until_held(agent, GPS)
        keeper = os.open(port.node, os.O_RDWR | os.O_NOCTTY)
        node.bus.unplug("ttyUSB0")
        await node.kubelet.wait_healthy(SERIAL, set())
        node.bus.replug("ttyUSB0")
        os.close(keeper)
        await node.until_health(agent, GPS, Health.DISPLACED)
        container.remove()
        await node.kubelet.wait_healthy(SERIAL, {GPS})


async def test_what_nobody_holds_any_longer_is_forgotten_in_time(node: Node) -> None:
    node.plug("ttyUSB0", "GPS-A7")
    async with node.agent(Config(flapping=PATIENT, retention="1s")) as agent:
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        container = await node.kubelet.run_container(SERIAL)
        await node.until_held(agent, GPS)
        node.bus.unplug("ttyUSB0")
        await node.kubelet.wait_healthy(SERIAL, set())
        container.remove()
        # Nothing else happens: the kubelet's word alone sets the clock.
        await node.kubelet.wait_for(lambda: not node.kubelet.resource(SERIAL).devices)


async def test_the_next_pod_is_known_as_the_holder_soon(node: Node) -> None:
    node.plug("ttyUSB0", "GPS-A7")
    async with node.agent() as agent:
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        first = await node.kubelet.run_container(SERIAL, pod="first")
        await until_holders(agent, "default/first/main")
        async with asyncio.timeout(10):
            while agent.custody.awaits_holders:
                await asyncio.to_thread(os.sched_yield)
        first.remove()
        await node.kubelet.run_container(SERIAL, pod="second")  # is given what the first was
        await until_holders(agent, "default/second/main")


async def test_a_second_holder_of_a_shared_device_is_known_soon(node: Node) -> None:
    node.plug("ttyUSB0", "GPS-A7")
    async with node.agent(resource(shares=2)) as agent:
        await node.kubelet.wait_for(lambda: len(node.kubelet.resource(SERIAL).healthy) == 2)
        await node.kubelet.run_container(SERIAL, pod="first")
        await until_holders(agent, "default/first/main")
        await node.kubelet.run_container(SERIAL, pod="second")
        await until_holders(agent, "default/first/main", "default/second/main")


async def until_holders(agent: Agent, *holders: str) -> None:
    """Wait until the agent knows that exactly these hold its device."""
    async with asyncio.timeout(10):
        while [device.holders for device in agent.custody.devices] != [holders]:
            await agent.custody.changed()


async def test_a_kubelet_that_does_not_know_its_pods_yet_frees_no_displaced_device(
    node: Node,
) -> None:
    node.places = replace(node.places, own_pod="system/usbplugin")
    node.plug("ttyUSB1", "SENSOR")
    port = node.plug("ttyUSB0", "GPS-A7")
    async with node.agent() as agent:
        await node.kubelet.wait_healthy(SERIAL, {GPS, SENSOR})
        container = await node.kubelet.run_container(SERIAL, 2, pod="logger")
        await unanswered(agent)
        node.plug("ttyUSB2", "OWN")
        await node.kubelet.wait_healthy(SERIAL, {GPS, SENSOR, OWN})
        await node.kubelet.run_container(SERIAL, namespace="system", pod="usbplugin")
        await node.until_held(agent, GPS)
        keeper = os.open(port.node, os.O_RDWR | os.O_NOCTTY)
        node.bus.unplug("ttyUSB0")
        await node.until_health(agent, GPS, Health.UNPLUGGED)
        node.bus.replug("ttyUSB0")
        os.close(keeper)
        await node.until_health(agent, GPS, Health.DISPLACED)

        node.kubelet.knows_pods = False
        await node.kubelet.restart()
        await unanswered(agent)
        assert node.kubelet.resource(SERIAL).healthy.isdisjoint({GPS})

        node.kubelet.knows_pods = True
        container.remove()
        await node.kubelet.wait_healthy(SERIAL, {GPS, SENSOR, OWN})


async def test_a_kubelet_that_goes_on_not_to_know_its_pods_is_complained_of_once(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    node.places = replace(node.places, own_pod="system/usbplugin")
    node.plug("ttyUSB0", "GPS-A7")
    async with node.agent() as agent:
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        await node.kubelet.run_container(SERIAL)
        for _ in range(3):
            await unanswered(agent)
        complaints = [r for r in caplog.records if "does not say who holds" in r.message]
        assert complaints
        reasons = {str(record.fields["reason"]) for record in complaints}  # type: ignore[attr-defined]
        assert all("our own, system/usbplugin, is not among" in reason for reason in reasons)
        assert len(complaints) == len(reasons)


async def unanswered(agent: Agent) -> None:
    """Wait until the kubelet has been asked once more who holds what, and was not believed."""
    before = agent.metrics.holder_queries.value("failed")
    async with asyncio.timeout(10):
        while agent.metrics.holder_queries.value("failed") == before:
            await asyncio.to_thread(os.sched_yield)


async def test_a_container_waits_while_its_device_is_away_and_never_gets_another(
    node: Node,
) -> None:
    node.plug("ttyUSB0", "GPS-A7")
    async with node.agent():
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        container = await node.kubelet.run_container(SERIAL)
        (mount,) = container.mounts
        node.bus.unplug("ttyUSB0")
        await node.kubelet.wait_healthy(SERIAL, set())
        node.plug("ttyUSB0", "SENSOR")  # takes the name, and the pty's number
        await node.kubelet.wait_healthy(SERIAL, {SENSOR})
        with pytest.raises(CreateContainerConfigError, match="is gone"):
            await container.restart()
        assert not os.path.lexists(mount.host_path)


async def test_without_links_nothing_is_offered_until_they_can_be_kept(node: Node) -> None:
    node.link_dir.write_text("not a directory")
    node.plug("ttyUSB0", "GPS-A7")
    async with node.agent() as agent:
        await node.until_health(agent, GPS, Health.BROKEN)
        await node.kubelet.wait_for(lambda: len(node.kubelet.resource(SERIAL).devices) == 1)
        assert node.kubelet.resource(SERIAL).healthy == frozenset()
        node.link_dir.unlink()
        (node.kubelet_dir / "anything").touch()  # sooner than the look that is taken every 10 s
        await node.kubelet.wait_healthy(SERIAL, {GPS})


async def test_a_link_led_astray_is_mended_before_a_container_starts(node: Node) -> None:
    port = node.plug("ttyUSB0", "GPS-A7")
    other = node.plug("ttyUSB1", "SENSOR")
    async with node.agent():
        await node.kubelet.wait_healthy(SERIAL, {GPS, SENSOR})
        container = await node.kubelet.run_container(SERIAL, device_ids=[GPS])
        link = node.link_dir / GPS / "if00"
        link.unlink()
        link.symlink_to(other.node)
        await container.restart()
        assert os.readlink(link) == port.node


async def test_a_held_device_that_is_away_is_in_the_first_message_after_a_restart(
    node: Node,
) -> None:
    node.plug("ttyUSB0", "GPS-A7")
    async with node.agent():
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        await node.kubelet.run_container(SERIAL)
    node.bus.unplug("ttyUSB0")
    shutil.rmtree(node.link_dir)
    shutil.rmtree(node.places.state_dir)  # even if nothing of it was remembered
    node.kubelet.log.clear()
    async with node.agent():
        await node.kubelet.wait_for(lambda: len(node.kubelet.log.messages) > 0)
        (device,) = node.kubelet.log.messages[0].devices
        assert (device.id, device.healthy) == (GPS, False)


async def test_displacement_is_seen_over_a_restart_of_the_plugin(node: Node) -> None:
    port = node.plug("ttyUSB0", "GPS-A7")
    async with node.agent():
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        container = await node.kubelet.run_container(SERIAL)
    keeper = os.open(port.node, os.O_RDWR | os.O_NOCTTY)
    node.bus.unplug("ttyUSB0")
    node.bus.replug("ttyUSB0")
    os.close(keeper)
    async with node.agent() as agent:
        await node.until_health(agent, GPS, Health.DISPLACED)
        await node.kubelet.wait_for(lambda: node.kubelet.resource(SERIAL).connected)
        assert node.kubelet.resource(SERIAL).healthy == frozenset()
        await container.restart()
        await node.kubelet.wait_healthy(SERIAL, {GPS})


async def test_links_and_memories_that_were_deleted_are_made_again(node: Node) -> None:
    node.plug("ttyUSB0", "GPS-A7")
    async with node.agent():
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        container = await node.kubelet.run_container(SERIAL)
        (mount,) = container.mounts
        memory = node.places.state_dir / f"{GPS}.json"
        shutil.rmtree(node.link_dir)
        shutil.rmtree(node.places.state_dir)
        (node.kubelet_dir / "anything").touch()  # sooner than the look that is taken every 10 s
        async with asyncio.timeout(10):
            while not (memory.exists() and os.path.lexists(mount.host_path)):
                await asyncio.to_thread(os.sched_yield)
        node.bus.unplug("ttyUSB0")
        await node.kubelet.wait_healthy(SERIAL, set())
        memory.unlink()
        with pytest.raises(CreateContainerConfigError, match="is gone"):
            await container.restart()
        assert memory.exists(), "what waits for its device must be known after a restart, too"


async def test_no_pre_start_where_the_operator_does_not_want_it(node: Node) -> None:
    node.plug("ttyUSB0", "GPS-A7")
    async with node.agent(resource(pre_start=False)):
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        container = await node.kubelet.run_container(SERIAL)
        node.bus.unplug("ttyUSB0")
        await node.kubelet.wait_healthy(SERIAL, set())
        await container.restart()


async def test_a_shared_device_has_several_holders(node: Node) -> None:
    node.plug("ttyUSB0", "GPS-A7")
    node.plug("ttyUSB1", "SENSOR")
    async with node.agent(resource(shares=2)):
        await node.kubelet.wait_healthy(
            SERIAL, {f"{GPS}.0", f"{GPS}.1", f"{SENSOR}.0", f"{SENSOR}.1"}
        )
        names = [
            (await node.kubelet.run_container(SERIAL, pod=f"pod{count}")).mounts[0].container_path
            for count in range(4)
        ]
        assert sorted(names[:2]) == ["/dev/ttyUSB0", "/dev/ttyUSB1"], "spread over devices first"
        assert sorted(names) == ["/dev/ttyUSB0", "/dev/ttyUSB0", "/dev/ttyUSB1", "/dev/ttyUSB1"]
        with pytest.raises(UnexpectedAdmissionError):
            await node.kubelet.run_container(SERIAL, pod="one-too-many")


async def test_two_shares_of_one_device_are_one_node(node: Node) -> None:
    node.plug("ttyUSB0", "GPS-A7")
    async with node.agent(resource(shares=2)):
        await node.kubelet.wait_healthy(SERIAL, {f"{GPS}.0", f"{GPS}.1"})
        container = await node.kubelet.run_container(SERIAL, count=2)
        assert len(container.mounts) == 1
        assert container.envs["USBPLUGIN_SERIAL_IDS"] == GPS


async def test_a_modem_is_handed_over_whole(node: Node) -> None:
    for interface in range(3):
        node.bus.plug(
            f"ttyUSB{interface}",
            node.descriptors("MODEM-1", location="virtual-1", interface=interface),
        )
    config = resource(unit=Unit.USB_DEVICE, container_path="/dev/modem{port}")
    async with node.agent(config):
        await node.kubelet.wait_healthy(SERIAL, {"usb-0403:6001-MODEM-1"})
        container = await node.kubelet.run_container(SERIAL)
        assert [mount.container_path for mount in container.mounts] == [
            "/dev/modem0",
            "/dev/modem1",
            "/dev/modem2",
        ]
        node.bus.unplug("ttyUSB1")
        await node.kubelet.wait_healthy(SERIAL, set())
        with pytest.raises(CreateContainerConfigError, match="of its 3 ports are missing"):
            await container.restart()


async def test_cdi_specs_name_what_is_there_and_nothing_else(node: Node) -> None:
    port = node.plug("ttyUSB0", "GPS-A7")
    spec = node.places.cdi_dir / "usbplugin_serial.json"
    async with node.agent(resource(cdi=True)):
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        document = json.loads(spec.read_text())
        assert (document["cdiVersion"], document["kind"]) == ("0.5.0", SERIAL)
        (device,) = document["devices"]
        assert device["name"] == GPS
        (mount,) = device["containerEdits"]["mounts"]
        assert (mount["hostPath"], mount["containerPath"]) == (port.node, "/dev/ttyUSB0")

        container = await node.kubelet.run_container(SERIAL)
        assert [cdi.name for cdi in container.answer.cdi_devices] == [f"{SERIAL}={GPS}"]
        assert not container.devices
        assert not container.mounts

        node.bus.unplug("ttyUSB0")
        await node.kubelet.wait_healthy(SERIAL, set())
        assert not spec.exists(), "a restarted container would get the old numbers"
        container.remove()
        node.bus.replug("ttyUSB0")
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        assert spec.exists()


async def test_a_cdi_spec_stays_as_long_as_somebody_holds_a_device(node: Node) -> None:
    node.plug("ttyUSB0", "GPS-A7")
    async with node.agent(resource(cdi=True)) as agent:
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        await node.kubelet.run_container(SERIAL)
        await node.until_held(agent, GPS)
    assert (node.places.cdi_dir / "usbplugin_serial.json").exists()


async def test_the_plugin_watcher_finds_us_also_after_its_restart(node: Node) -> None:
    node.plug("ttyUSB0", "GPS-A7")
    config = Config(registration=Registration.WATCHER, flapping=PATIENT)
    async with node.agent(config):
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        (path,) = node.places.registry_dir.glob("*.sock")
        assert stat.S_ISSOCK(path.lstat().st_mode)
        assert not node.sockets()
        await node.kubelet.restart()
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        node.bus.unplug("ttyUSB0")
        await node.kubelet.wait_healthy(SERIAL, set())
    assert not list(node.places.registry_dir.glob("*.sock"))


async def test_a_changed_file_is_applied_and_what_it_does_not_touch_goes_on(node: Node) -> None:
    node.plug("ttyUSB0", "GPS-A7")
    node.plug("ttyUSB1", "SENSOR")
    mount = node.device_dir / "config"
    # As the kubelet mounts a ConfigMap: the file is a link into a directory that is swapped.
    volume = ConfigMapVolume(mount)
    volume.write("resources: [{name: usbplugin/serial}]")
    async with node.agent(config_file=volume.file):
        await node.kubelet.wait_healthy(SERIAL, {GPS, SENSOR})
        (before,) = node.sockets()
        volume.write(
            "resources:\n- {name: usbplugin/gps, selectors: [{serial: GPS-*}]}\n"
            "- {name: usbplugin/serial}"
        )
        await node.kubelet.wait_healthy("usbplugin/gps", {GPS})
        await node.kubelet.wait_healthy(SERIAL, {SENSOR})
        assert before in node.sockets(), "an unchanged resource keeps its socket"
        assert len(node.kubelet.log.registrations) == 2

        volume.write("resources:\n- {name: usbplugin/serial, containerPath: '/dev/sensor'}")
        await node.kubelet.wait_for(lambda: len(node.kubelet.log.registrations) == 3)
        await node.kubelet.wait_healthy(SERIAL, {GPS, SENSOR})
        container = await node.kubelet.run_container(SERIAL)
        assert container.mounts[0].container_path == "/dev/sensor"
        assert len(node.sockets()) == 1


async def test_a_bad_file_is_refused_whole_and_the_old_one_stays(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.plug("ttyUSB0", "GPS-A7")
    volume = ConfigMapVolume(node.device_dir / "config")
    volume.write("resources: [{name: usbplugin/serial}]")
    async with node.agent(config_file=volume.file):
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        volume.write("resources: [{name: usbplugin/gps}, {name: oops}]")
        async with asyncio.timeout(10):
            while not any("refused" in record.getMessage() for record in caplog.records):
                await asyncio.to_thread(os.sched_yield)
        volume.write("resources: [{name: usbplugin/serial}, {name: usbplugin/other}]")
        await node.kubelet.wait_for(lambda: "usbplugin/other" in node.kubelet.resources)
        assert "usbplugin/gps" not in node.kubelet.resources
        assert node.kubelet.resource(SERIAL).healthy == {GPS}


async def test_selectors_of_a_reload_decide_anew(node: Node) -> None:
    node.plug("ttyUSB0", "GPS-A7")
    config = Config(resources=(ResourceConfig(name=SERIAL, selectors=(Selector(serial="NONE"),)),))
    volume = ConfigMapVolume(node.device_dir / "config")
    volume.write("resources: [{name: usbplugin/serial}]")
    async with node.agent(config, config_file=volume.file):
        await node.kubelet.wait_healthy(SERIAL, {GPS})


async def test_a_reload_never_offers_a_device_twice(node: Node) -> None:
    node.plug("ttyUSB0", "GPS-A7")
    volume = ConfigMapVolume(node.device_dir / "config")
    volume.write("resources: [{name: usbplugin/serial, cdi: true}]")
    async with node.agent(config_file=volume.file) as agent:
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        container = await node.kubelet.run_container(SERIAL)
        await node.until_held(agent, GPS)
        (spec,) = node.places.cdi_dir.glob("*.json")
        volume.write(
            "resources: [{name: usbplugin/gps, selectors: [{serial: GPS-A7}]},"
            " {name: usbplugin/serial, cdi: false}]"
        )
        await node.kubelet.wait_for(
            lambda: (
                GPS in node.kubelet.resource("usbplugin/gps").devices
                and not node.kubelet.resource(SERIAL).devices
            )
        )
        assert spec.exists(), "the container will be started by it again"
        await container.restart()
        assert not node.kubelet.resource("usbplugin/gps").healthy, "a container has it already"
        container.remove()
        await node.kubelet.wait_healthy("usbplugin/gps", {GPS})
        assert not spec.exists(), "nobody needs it any longer"


async def test_one_of_several_holders_that_restarts_does_not_clear_the_others(node: Node) -> None:
    port = node.plug("ttyUSB0", "GPS-A7")
    async with node.agent(resource(shares=2)) as agent:
        await node.kubelet.wait_healthy(SERIAL, {f"{GPS}.0", f"{GPS}.1"})
        one = await node.kubelet.run_container(SERIAL, pod="one")
        two = await node.kubelet.run_container(SERIAL, pod="two")
        await node.until_held(agent, GPS)
        keeper = os.open(port.node, os.O_RDWR | os.O_NOCTTY)  # so that the pty's number stays taken
        node.bus.unplug("ttyUSB0")
        await node.kubelet.wait_healthy(SERIAL, set())
        node.bus.replug("ttyUSB0")
        os.close(keeper)
        await node.until_health(agent, GPS, Health.DISPLACED)
        await one.restart()
        await node.until_health(agent, GPS, Health.DISPLACED)
        await two.restart()
        await node.until_health(agent, GPS, Health.READY)


async def test_node_features_follow_the_devices(node: Node) -> None:
    path = node.root / "usbplugin"
    config = Config(node_features=True, flapping=PATIENT)
    async with node.agent(config):
        node.plug("ttyUSB0", "GPS-A7")
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        assert path.read_text() == "usb-0403-6001.count=1\nusbplugin_serial.count=1\n"
    assert not path.exists()


class ConfigMapVolume:
    """A directory that changes as the kubelet changes a ConfigMap's."""

    def __init__(self, directory: os.PathLike[str]) -> None:
        self._directory = os.fspath(directory)
        os.mkdir(self._directory)
        self._generation = 0

    @property
    def file(self) -> str:
        return f"{self._directory}/config.yaml"

    def write(self, text: str) -> None:
        self._generation += 1
        data = f"{self._directory}/..generation{self._generation}"
        os.mkdir(data)
        with open(f"{data}/config.yaml", "w", encoding="utf-8") as file:
            file.write(text)
        os.symlink(os.path.basename(data), f"{self._directory}/..data_tmp")
        os.rename(f"{self._directory}/..data_tmp", f"{self._directory}/..data")
        if not os.path.lexists(self.file):
            os.symlink("..data/config.yaml", self.file)
