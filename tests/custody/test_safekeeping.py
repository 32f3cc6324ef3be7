"""What custody has done by the time that it lets go: of an answer, of a snapshot, of a start."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tests.discovery.test_directory import plug, pull
from tests.fuzz.support import AbortedError, Context
from tests.support import all_ports, gone, present
from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.custody import CdiDirectory, Custody, LinkDirectory, Offer, StateStore, admission
from usbplugin.custody.starting import Eyes
from usbplugin.deviceplugin import DevicePlugin
from usbplugin.discovery import DeviceNumber, DirectorySource, Port
from usbplugin.foundation.workers import Workers
from usbplugin.inventory import Change, Health, HealthPolicy, HeldDevice, ResourceRule, Snapshot

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pytest

    from usbplugin.inventory import Device, DeviceState

SERIAL = "usbplugin/serial"
OTHER = "usbplugin/other"
GPS = "usb-0403:6001-GPS-A7-if00"
SENSOR = "usb-0403:6001-SENSOR-if00"
POD = HeldDevice(SERIAL, GPS, "default/gps/main")
NOW, LATER = 1e9, 2e9
"""Both later than any Allocate: the kubelet's word counts."""


@dataclass
class Published:
    """What was to be found when a resource's devices were published."""

    health: dict[str, Health]
    links: dict[str, str]
    spec: set[str] | None
    """The nodes that the CDI spec names; None if there is none."""


@dataclass
class Keeper:
    """A custody, and what it writes to and tells. Its devices are nodes that every machine has."""

    root: Path
    offers: Sequence[Offer] = (Offer(SERIAL),)
    holders_can_tell: bool = False
    eyes: Eyes | None = None
    published: list[Published] = field(default_factory=list)
    told: list[Change] = field(default_factory=list)
    wakes: list[float | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.links = self.root / "links"
        self.states = self.root / "states"
        self.cdi = self.root / "cdi"
        self.nodes = self.root / "dev"
        self.nodes.mkdir(exist_ok=True)
        self.start()

    def start(self) -> None:
        """A new process, which knows what the last one has left on disk."""
        self.custody = Custody(
            [ResourceRule(offer.resource) for offer in self.offers],
            self.offers,
            HealthPolicy(),
            LinkDirectory(self.links),
            StateStore(self.states, self.links),
            CdiDirectory(self.cdi),
            self._published,
            self._told,
            self.wakes.append,
            workers=Workers(),
            eyes=self.eyes,
            holders_can_tell=self.holders_can_tell,
        )

    def _published(self, snapshot: Snapshot, noticed: float | None) -> None:
        self.published.append(
            Published({d.id: d.health for d in snapshot.devices}, self.led_to(), self.spec())
        )

    def _told(self, changes: Sequence[Change]) -> None:
        self.told += changes

    async def plug(self, name: str, serial: str, node: str = "/dev/null") -> Port:
        plug(self.nodes, name, serial, node)
        (port,) = (one for one in DirectorySource(self.nodes).scan() if one.name == name)
        self.custody.apply([present(port)])
        await rest()
        return port

    async def unplug(self, port: Port) -> None:
        pull(self.nodes, port.name)
        self.custody.apply([gone(port)])
        await rest()

    async def hold(self, *held: HeldDevice, asked_at: float = NOW) -> None:
        self.custody.hold(held, asked_at)
        await rest()

    async def reconfigure(self, *offers: Offer) -> None:
        self.custody.reconfigure(
            [ResourceRule(offer.resource) for offer in offers], offers, HealthPolicy()
        )
        await rest()

    def plugin(self, offer: Offer = Offer(SERIAL)) -> DevicePlugin:  # noqa: B008 -- frozen
        return DevicePlugin(
            offer, self.custody.snapshot(offer.resource), self.custody, lambda: None
        )

    async def allocate(self, *device_ids: str, offer: Offer = Offer(SERIAL)) -> str:  # noqa: B008
        """Ask for devices; what that was refused with, empty if they were given."""
        request = v1beta1.AllocateRequest(
            container_requests=[v1beta1.ContainerAllocateRequest(devices_ids=device_ids)]
        )
        try:
            await self.plugin(offer).Allocate(request, Context())  # type: ignore[arg-type]
        except AbortedError as error:
            return error.details
        return ""

    async def pre_start(self, *device_ids: str) -> str:
        """Ask to start a container; what it was refused with, empty if it may start."""
        request = v1beta1.PreStartContainerRequest(devices_ids=device_ids)
        try:
            await self.plugin().PreStartContainer(request, Context())  # type: ignore[arg-type]
        except AbortedError as error:
            return error.details
        return ""

    def device(self, device_id: str = GPS) -> Device:
        (device,) = (one for one in self.custody.devices if one.id == device_id)
        return device

    def memory(self, device_id: str = GPS) -> Path:
        return self.states / f"{device_id}.json"

    def remembered(self) -> Mapping[str, DeviceState]:
        """What a process that started now would know."""
        return {state.id: state for state in StateStore(self.states, self.links).load()}

    def numbers_on_disk(self, device_id: str = GPS) -> list[DeviceNumber | None]:
        state = self.remembered()[device_id]
        return [port.number for grant in state.grants for port in grant.ports.values()]

    def spoil_the_disk(self, device_id: str = GPS) -> Path:
        """Where a state is to be, there is a directory: no user may replace it by a file."""
        obstacle = self.memory(device_id)
        obstacle.unlink(missing_ok=True)
        obstacle.mkdir()
        return obstacle

    def spoil_the_spec(self) -> Path:
        """Where a spec is to be, there is a directory: no user may replace it by a file."""
        obstacle = self.cdi / "usbplugin_serial.json"
        obstacle.unlink()
        obstacle.mkdir()
        return obstacle

    def led_to(self) -> dict[str, str]:
        """The links that there are, and what they lead to."""
        return {link.parent.name: os.readlink(link) for link in sorted(self.links.glob("*/if00"))}

    def spec(self, resource: str = SERIAL) -> set[str] | None:
        """The nodes that a resource's CDI spec names; None if there is none."""
        path = self.cdi / f"{resource.replace('/', '_')}.json"
        if not path.is_file():
            return None
        devices = json.loads(path.read_bytes())["devices"]
        return {
            node["hostPath"] for each in devices for node in each["containerEdits"]["deviceNodes"]
        }


async def rest() -> None:
    """Let the event loop do what was put off."""
    await asyncio.sleep(0)


WITH_CDI = Offer(SERIAL, cdi=True)


async def test_what_a_container_is_given_is_on_disk_when_the_kubelet_has_its_answer(
    tmp_path: Path,
) -> None:
    keeper = Keeper(tmp_path)
    port = await keeper.plug("ttyUSB0", "GPS-A7")
    assert keeper.numbers_on_disk() == []
    await keeper.allocate(GPS)
    assert keeper.numbers_on_disk() == [port.number], "the plugin may be killed at this moment"


async def test_a_memory_that_was_deleted_is_there_again_when_the_kubelet_has_its_answer(
    tmp_path: Path,
) -> None:
    keeper = Keeper(tmp_path)
    port = await keeper.plug("ttyUSB0", "GPS-A7")
    await keeper.allocate(GPS)
    await rest()
    keeper.memory().unlink()
    await keeper.allocate(GPS)  # the next pod is given what the last one was
    assert keeper.numbers_on_disk() == [port.number]


async def test_all_devices_of_a_container_are_on_disk_when_the_kubelet_has_its_answer(
    tmp_path: Path,
) -> None:
    keeper = Keeper(tmp_path)
    gps = await keeper.plug("ttyUSB0", "GPS-A7")
    sensor = await keeper.plug("ttyUSB1", "SENSOR", "/dev/zero")
    await keeper.allocate(GPS, SENSOR)
    assert keeper.numbers_on_disk(GPS) == [gps.number]
    assert keeper.numbers_on_disk(SENSOR) == [sensor.number]


async def test_a_start_under_a_new_number_is_on_disk_when_the_kubelet_has_its_answer(
    tmp_path: Path,
) -> None:
    keeper = Keeper(tmp_path)
    old = await keeper.plug("ttyUSB0", "GPS-A7")
    await keeper.allocate(GPS)
    await keeper.hold(POD)
    await keeper.unplug(old)
    new = await keeper.plug("ttyUSB0", "GPS-A7", "/dev/zero")
    assert keeper.device().health is Health.DISPLACED
    assert await keeper.pre_start(GPS) == ""
    assert keeper.numbers_on_disk() == [new.number]


async def test_what_cannot_be_remembered_is_not_given_away_until_the_disk_is_well(
    tmp_path: Path,
) -> None:
    keeper = Keeper(tmp_path)
    await keeper.plug("ttyUSB0", "GPS-A7")
    obstacle = keeper.spoil_the_disk()
    problem = await keeper.allocate(GPS)
    assert problem.startswith(f"{GPS}: its state cannot be written to {keeper.states}: ")
    await rest()
    assert keeper.published[-1].health == {GPS: Health.BROKEN}
    assert problem.endswith(keeper.device().reason)
    keeper.custody.look()
    await rest()
    assert keeper.published[-1].health == {GPS: Health.BROKEN}
    obstacle.rmdir()
    keeper.custody.look()
    assert keeper.published[-1].health == {GPS: Health.READY}
    assert await keeper.allocate(GPS) == ""


async def test_a_new_device_that_cannot_be_remembered_is_never_announced(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    keeper.states.write_text("not a directory")
    await keeper.plug("ttyUSB0", "GPS-A7")
    assert [one.health for one in keeper.published] == [{GPS: Health.BROKEN}]
    assert "its state cannot be written" in await keeper.allocate(GPS)
    keeper.states.unlink()
    keeper.custody.look()
    assert [one.health[GPS] for one in keeper.published] == [Health.BROKEN, Health.READY]


async def test_a_new_device_without_a_link_is_never_announced(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    keeper.links.write_text("not a directory")
    port = await keeper.plug("ttyUSB0", "GPS-A7")
    assert [one.health for one in keeper.published] == [{GPS: Health.BROKEN}]
    assert keeper.device().reason == (
        f"its link {keeper.links}/{GPS}/if00 cannot be written: Not a directory"
    )
    await keeper.unplug(port)
    assert keeper.published[-1].health == {GPS: Health.UNPLUGGED}
    await keeper.plug("ttyUSB0", "GPS-A7")
    assert keeper.published[-1].health == {GPS: Health.BROKEN}
    keeper.links.unlink()
    keeper.custody.look()
    assert keeper.published[-1] == Published({GPS: Health.READY}, {GPS: "/dev/null"}, None)


async def test_a_device_that_its_spec_does_not_name_is_neither_announced_nor_started(
    tmp_path: Path,
) -> None:
    keeper = Keeper(tmp_path, [WITH_CDI])
    gps = await keeper.plug("ttyUSB0", "GPS-A7")
    sensor = await keeper.plug("ttyUSB1", "SENSOR", "/dev/zero")
    assert await keeper.allocate(GPS, offer=WITH_CDI) == ""
    obstacle = keeper.spoil_the_spec()
    await keeper.unplug(gps)
    await keeper.unplug(sensor)
    await keeper.plug("ttyUSB0", "SENSOR")
    await keeper.plug("ttyUSB1", "GPS-A7", "/dev/zero")
    assert keeper.published[-1].health == dict.fromkeys((GPS, SENSOR), Health.BROKEN)
    assert "its CDI spec cannot be written" in await keeper.pre_start(GPS)
    assert "its CDI spec cannot be written" in await keeper.allocate(GPS, offer=WITH_CDI)
    obstacle.rmdir()
    keeper.custody.look()
    assert keeper.published[-1].health == {GPS: Health.READY, SENSOR: Health.READY}
    assert await keeper.pre_start(GPS) == ""


async def test_a_container_does_not_start_where_somebody_has_changed_its_spec(
    tmp_path: Path,
) -> None:
    keeper = Keeper(tmp_path, [WITH_CDI])
    await keeper.plug("ttyUSB0", "GPS-A7")
    assert await keeper.allocate(GPS, offer=WITH_CDI) == ""
    spec = keeper.cdi / "usbplugin_serial.json"
    spec.write_text(spec.read_text().replace("/dev/null", "/dev/zero"))
    assert await keeper.pre_start(GPS) == (
        f"the CDI spec of {SERIAL} does not name {GPS} as it is now"
    )


async def test_that_a_container_has_ended_is_on_disk_when_its_start_is_refused(
    tmp_path: Path,
) -> None:
    keeper = Keeper(tmp_path)
    port = await keeper.plug("ttyUSB0", "GPS-A7")
    await keeper.allocate(GPS)
    await keeper.hold(POD)
    await keeper.unplug(port)
    assert "is gone" in await keeper.pre_start(GPS)
    assert keeper.numbers_on_disk() == [None], "else a restarted plugin takes it for displaced"


async def test_a_refused_start_is_remembered_though_the_disk_failed_at_first(
    tmp_path: Path,
) -> None:
    keeper = Keeper(tmp_path)
    port = await keeper.plug("ttyUSB0", "GPS-A7")
    await keeper.allocate(GPS)
    await keeper.hold(POD)
    await keeper.unplug(port)
    obstacle = keeper.spoil_the_disk()
    assert await keeper.pre_start(GPS)
    await rest()
    assert keeper.remembered() == {}
    obstacle.rmdir()
    assert await keeper.pre_start(GPS)  # the kubelet tries again, and nothing else has changed
    assert keeper.numbers_on_disk() == [None]


async def test_each_refused_start_sees_to_it_that_the_device_is_remembered(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    port = await keeper.plug("ttyUSB0", "GPS-A7")
    await keeper.allocate(GPS)
    await keeper.unplug(port)
    assert await keeper.pre_start(GPS)
    await rest()
    keeper.memory().unlink()
    assert await keeper.pre_start(GPS)
    assert keeper.numbers_on_disk() == [None]


async def test_a_refused_start_of_what_nobody_knows_leaves_nothing(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    assert "is unknown" in await keeper.pre_start(GPS)
    await rest()
    assert not keeper.links.exists()
    assert not keeper.states.exists()


async def test_who_holds_a_device_wakes_whoever_waits_though_it_is_given_as_before(
    tmp_path: Path,
) -> None:
    keeper = Keeper(tmp_path)
    await keeper.plug("ttyUSB0", "GPS-A7")
    await keeper.allocate(GPS)
    await rest()
    waiting = asyncio.ensure_future(keeper.custody.changed())
    await rest()
    assert not waiting.done()
    await keeper.allocate(GPS)
    await asyncio.wait_for(waiting, 10)


async def test_a_device_is_published_when_its_link_and_spec_are_there(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, [WITH_CDI])
    port = await keeper.plug("ttyUSB0", "GPS-A7")
    await keeper.unplug(port)
    await keeper.plug("ttyUSB0", "GPS-A7", "/dev/zero")
    assert keeper.published == [
        Published({GPS: Health.READY}, {GPS: "/dev/null"}, {"/dev/null"}),
        Published({GPS: Health.UNPLUGGED}, {}, None),
        Published({GPS: Health.READY}, {GPS: "/dev/zero"}, {"/dev/zero"}),
    ]


async def test_without_cdi_no_spec_is_written(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    await keeper.plug("ttyUSB0", "GPS-A7")
    await keeper.reconfigure(Offer(SERIAL, "r"))
    keeper.custody.apply([all_ports(*DirectorySource(keeper.nodes).scan(), reason="period")])
    keeper.custody.release(is_last=True)
    await rest()
    assert not keeper.cdi.exists()


async def test_a_reload_that_asks_for_cdi_gets_a_spec_of_devices_that_do_not_change(
    tmp_path: Path,
) -> None:
    keeper = Keeper(tmp_path)
    await keeper.plug("ttyUSB0", "GPS-A7")
    keeper.published.clear()
    await keeper.reconfigure(WITH_CDI)
    assert keeper.published == []
    assert keeper.spec() == {"/dev/null"}


async def test_a_reload_changes_what_the_spec_says_of_devices_that_do_not_change(
    tmp_path: Path,
) -> None:
    keeper = Keeper(tmp_path, [WITH_CDI])
    await keeper.plug("ttyUSB0", "GPS-A7")
    await keeper.reconfigure(replace(WITH_CDI, container_path="/dev/gps"))
    document = json.loads((keeper.cdi / "usbplugin_serial.json").read_bytes())
    (node,) = document["devices"][0]["containerEdits"]["deviceNodes"]
    assert node["path"] == "/dev/gps"


async def test_a_reload_removes_only_the_spec_of_what_is_not_handed_over_by_cdi_now(
    tmp_path: Path,
) -> None:
    keeper = Keeper(tmp_path, [WITH_CDI])
    await keeper.plug("ttyUSB0", "GPS-A7")
    await keeper.reconfigure(replace(WITH_CDI, resource=OTHER))
    assert keeper.spec() is None
    assert keeper.spec(OTHER) == {"/dev/null"}
    await keeper.reconfigure(Offer(OTHER))
    assert keeper.spec(OTHER) is None


async def test_what_was_allocated_outlives_a_reload(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    port = await keeper.plug("ttyUSB0", "GPS-A7")
    await keeper.allocate(GPS)
    await keeper.reconfigure(Offer(SERIAL, "r"))
    assert keeper.numbers_on_disk() == [port.number]
    assert keeper.led_to() == {GPS: "/dev/null"}
    await keeper.unplug(port)
    assert await keeper.pre_start(GPS)
    await keeper.plug("ttyUSB0", "GPS-A7")
    assert await keeper.pre_start(GPS) == ""


async def test_a_regular_listing_mends_what_somebody_has_deleted(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, [WITH_CDI])
    port = await keeper.plug("ttyUSB0", "GPS-A7")
    shutil.rmtree(keeper.cdi)
    shutil.rmtree(keeper.links)
    keeper.custody.apply([all_ports(port, reason="start")])
    assert keeper.spec() is None, "only now and then: it costs something for each device"
    keeper.custody.apply([all_ports(port, reason="period")])
    assert keeper.spec() == {"/dev/null"}
    assert keeper.led_to() == {GPS: "/dev/null"}
    assert keeper.remembered().keys() == {GPS}


async def test_a_look_mends_what_somebody_has_deleted(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, [WITH_CDI])
    await keeper.plug("ttyUSB0", "GPS-A7")
    keeper.custody.look()
    keeper.custody.look()
    (keeper.cdi / "usbplugin_serial.json").unlink()
    shutil.rmtree(keeper.links / GPS)
    shutil.rmtree(keeper.states)
    os.utime(keeper.links, ns=(0, 0))  # as any other time than before: clocks may be coarse
    keeper.custody.look()
    assert keeper.spec() == {"/dev/null"}
    assert keeper.led_to() == {GPS: "/dev/null"}
    assert keeper.remembered().keys() == {GPS}


async def test_a_look_mends_the_states_though_nothing_happened_to_the_links(
    tmp_path: Path,
) -> None:
    keeper = Keeper(tmp_path)
    await keeper.plug("ttyUSB0", "GPS-A7")
    keeper.custody.look()
    keeper.custody.look()
    shutil.rmtree(keeper.states)
    keeper.custody.look()
    assert keeper.remembered().keys() == {GPS}
    keeper.memory().unlink()
    os.utime(keeper.states, ns=(0, 0))  # as any other time than before: clocks may be coarse
    keeper.custody.look()
    assert keeper.remembered().keys() == {GPS}


async def test_a_mended_memory_says_what_the_container_was_given(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    port = await keeper.plug("ttyUSB0", "GPS-A7")
    await keeper.allocate(GPS)
    await rest()
    keeper.custody.look()
    shutil.rmtree(keeper.links)
    shutil.rmtree(keeper.states)
    keeper.custody.look()
    assert keeper.numbers_on_disk() == [port.number]


async def test_a_link_that_was_deleted_is_mended_before_a_container_starts(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    await keeper.plug("ttyUSB0", "GPS-A7")
    await keeper.allocate(GPS)
    (keeper.links / GPS / "if00").unlink()
    assert await keeper.pre_start(GPS) == ""
    assert keeper.led_to() == {GPS: "/dev/null"}


async def test_a_link_led_astray_is_mended_before_a_container_starts(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    await keeper.plug("ttyUSB0", "GPS-A7")
    await keeper.allocate(GPS)
    link = keeper.links / GPS / "if00"
    link.unlink()
    link.symlink_to("/dev/zero")
    assert await keeper.pre_start(GPS) == ""
    assert keeper.led_to() == {GPS: "/dev/null"}


async def test_no_container_starts_where_its_link_cannot_be_mended(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    await keeper.plug("ttyUSB0", "GPS-A7")
    await keeper.allocate(GPS)
    link = keeper.links / GPS / "if00"
    link.unlink()
    assert keeper.led_to() == {}
    shutil.rmtree(keeper.links)
    keeper.links.write_text("not a directory")
    problem = await keeper.pre_start(GPS)
    assert problem == f"{GPS}: its link {link} cannot be written: Not a directory"


async def test_on_the_way_out_what_is_not_on_disk_yet_is_written(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    port = await keeper.plug("ttyUSB0", "GPS-A7")
    await keeper.allocate(GPS)
    obstacle = keeper.spoil_the_disk()
    await keeper.unplug(port)
    assert await keeper.pre_start(GPS)
    await rest()
    obstacle.rmdir()
    keeper.custody.release(is_last=True)
    assert keeper.numbers_on_disk() == [None]


async def test_on_the_way_out_a_spec_that_nobody_needs_goes_and_links_stay(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, [WITH_CDI])
    await keeper.plug("ttyUSB0", "GPS-A7")
    keeper.custody.release(is_last=True)
    assert keeper.spec() == {"/dev/null"}, "nobody has said yet that it is not needed"
    await keeper.hold(POD)
    keeper.custody.release(is_last=True)
    assert keeper.spec() == {"/dev/null"}
    await keeper.hold(asked_at=LATER)
    keeper.custody.release(is_last=True)
    assert keeper.spec() is None
    assert keeper.led_to() == {GPS: "/dev/null"}


async def test_a_forgotten_device_leaves_neither_link_nor_memory(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    await keeper.hold(POD)
    assert keeper.remembered().keys() == {GPS}
    await keeper.hold(asked_at=LATER)
    assert list(keeper.states.iterdir()) == []
    assert not keeper.links.exists()


async def test_what_is_forgotten_before_it_could_be_written_is_not_written_later(
    tmp_path: Path,
) -> None:
    keeper = Keeper(tmp_path)
    keeper.states.write_text("not a directory")
    await keeper.hold(POD)
    port = await keeper.plug("ttyUSB0", "SENSOR")
    await keeper.hold(asked_at=LATER)
    keeper.states.unlink()
    keeper.custody.apply([all_ports(port, reason="period")])
    await rest()
    assert keeper.remembered().keys() == {SENSOR}


async def test_who_listens_is_told_of_changes_after_they_were_published(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    plug(keeper.nodes, "ttyUSB0", "GPS-A7")
    (port,) = DirectorySource(keeper.nodes).scan()
    keeper.custody.apply([present(port)])
    assert (len(keeper.published), keeper.told) == (1, [])
    await rest()
    (change,) = keeper.told
    assert (change.device.id, change.before, change.after) == (GPS, None, Health.READY)


async def test_the_clock_is_set_whenever_something_was_taken_in(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    port = await keeper.plug("ttyUSB0", "GPS-A7")
    assert keeper.wakes == [None]
    await keeper.unplug(port)
    assert keeper.wakes[-1] is not None
    await keeper.hold(POD)
    assert keeper.wakes[-1] is None, "a held device is kept for as long as it takes"


async def test_what_happens_to_a_device_is_logged_as_loudly_as_it_matters(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    keeper = Keeper(tmp_path)
    port = await keeper.plug("ttyUSB0", "GPS-A7")
    await keeper.allocate(GPS)
    await keeper.unplug(port)
    await keeper.hold(POD)
    await keeper.plug("ttyUSB0", "GPS-A7")
    await keeper.reconfigure(replace(WITH_CDI, resource=OTHER))
    seen = [r for r in caplog.records if r.message.startswith("device ")]
    assert [(r.levelname, r.message, r.fields["before"]) for r in seen] == [  # type: ignore[attr-defined]
        ("INFO", "device ready", "new"),
        ("WARNING", "device unplugged", "ready"),
        ("DEBUG", "device changed", "unplugged"),
        ("INFO", "device ready", "unplugged"),
        ("WARNING", "device contested", "ready"),
    ]
    last = seen[-1].fields  # type: ignore[attr-defined]
    assert (last["device"], last["resource"]) == (GPS, OTHER)
    assert (last["nodes"], last["numbers"], last["udevd"]) == (("/dev/null",), ["1:3"], ["ready"])
    assert last["holders"] == ("default/gps/main",)
    assert "holds it as usbplugin/serial" in last["reason"]


async def test_a_device_is_not_forgotten_for_the_reason_it_was_held_back_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    keeper = Keeper(tmp_path)
    await keeper.plug("ttyUSB0", "GPS-A7")
    await keeper.allocate(GPS)
    await keeper.hold(POD)
    await keeper.reconfigure(Offer(OTHER, shares=2))
    await keeper.reconfigure()
    assert keeper.device().health is Health.RETIRED
    await keeper.hold(asked_at=LATER)
    (forgotten,) = (r for r in caplog.records if r.message == "device forgotten")
    assert forgotten.fields["before"] == "retired"  # type: ignore[attr-defined]
    assert "reason" not in forgotten.fields  # type: ignore[attr-defined]


async def test_a_link_that_could_not_be_removed_is_removed_later(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    port = await keeper.plug("ttyUSB0", "GPS-A7")
    folder = keeper.links / GPS
    away = folder.rename(tmp_path / "away")
    folder.write_text("not a directory")
    await keeper.unplug(port)
    assert keeper.device().health is Health.UNPLUGGED
    folder.unlink()
    away.rename(folder)
    assert keeper.led_to() == {GPS: "/dev/null"}
    keeper.custody.look()
    assert keeper.led_to() == {}, "its node may be another device's by now"
    await keeper.plug("ttyUSB0", "GPS-A7")
    assert keeper.published[-1] == Published({GPS: Health.READY}, {GPS: "/dev/null"}, None)


async def test_an_obstacle_is_named_as_it_is_now(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    keeper.links.write_text("not a directory")
    keeper.states.write_text("not a directory")
    await keeper.plug("ttyUSB0", "GPS-A7")
    assert keeper.device().reason.startswith("its link ")
    keeper.links.unlink()
    keeper.custody.look()
    assert keeper.device().reason.startswith("its state cannot be written")
    keeper.states.unlink()
    keeper.custody.look()
    assert keeper.device().health is Health.READY


async def test_a_spec_is_kept_true_though_its_device_is_of_another_resource_by_now(
    tmp_path: Path,
) -> None:
    keeper = Keeper(tmp_path, [WITH_CDI])
    port = await keeper.plug("ttyUSB0", "GPS-A7")
    assert await keeper.allocate(GPS, offer=WITH_CDI) == ""
    await keeper.hold(POD)
    await keeper.reconfigure(Offer(OTHER), WITH_CDI)
    assert keeper.device().resource == OTHER
    await keeper.unplug(port)
    assert keeper.spec() is None, "a container that is restarted would get another device"
    await keeper.plug("ttyUSB0", "GPS-A7", "/dev/zero")
    assert keeper.spec() == {"/dev/zero"}
    keeper.custody.release(is_last=True)
    assert keeper.spec() == {"/dev/zero"}, "it is held"


async def test_on_the_way_out_a_spec_stays_that_was_granted_by_just_now(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, [WITH_CDI], holders_can_tell=True)
    await keeper.plug("ttyUSB0", "GPS-A7")
    assert await keeper.allocate(GPS, offer=WITH_CDI) == ""
    await keeper.hold(asked_at=0.0)  # the kubelet has not noted it yet
    keeper.custody.release(is_last=True)
    assert keeper.spec() == {"/dev/null"}


class Stuck(Eyes):
    """Looks at devices of which some do not answer."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = threading.Event()
        self.looks = 0

    def is_unchanged(self, port: Port) -> bool:
        if port.name == "ttyUSB0":
            self.looks += 1
            self.answers.wait()
        return super().is_unchanged(port)


async def test_a_device_that_hangs_holds_up_nothing_but_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "LOOK_TIMEOUT", 0.5)
    eyes = Stuck()
    keeper = Keeper(tmp_path, eyes=eyes)
    await keeper.plug("ttyUSB0", "GPS-A7")
    await keeper.plug("ttyUSB1", "SENSOR", "/dev/zero")
    assert await keeper.allocate(GPS) == await keeper.allocate(SENSOR) == ""
    for _ in range(200):
        assert await keeper.pre_start(GPS) == f"{GPS} does not answer: it was looked at for 0.5 s"
        assert await keeper.pre_start(SENSOR) == ""
    assert eyes.looks == 1, "one thread that hangs is enough"
    eyes.answers.set()
    async with asyncio.timeout(10):
        while await keeper.pre_start(GPS):
            await asyncio.to_thread(os.sched_yield)
