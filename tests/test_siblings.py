"""Several instances of ``usbplugin serve`` on one node: one serves, the others stand by."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.node import SERIAL, Node, Process
from tests.version_0_1 import old_instance
from usbplugin import doctor
from usbplugin.custody import StateStore
from usbplugin.deviceplugin import State
from usbplugin.doctor import Grade
from usbplugin.doctor.kubelet import check_daemon
from usbplugin.status.client import SESSION, STANDING_BY, Daemon, left_in
from usbplugin.status.health import session_part
from usbplugin.virtual.containers import CreateContainerConfigError, UnexpectedAdmissionError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

    from usbplugin.virtual.containers import Container

pytestmark = pytest.mark.timeout(120)

GPS = "usb-0403:6001-GPS-A7-if00"
ZIGBEE = "usb-0403:6001-ZIGBEE-if00"
ENDS = [signal.SIGTERM, signal.SIGKILL]
LONGEST_GAP = 1.0
"""Seconds for which a resource may be without an instance while one lives."""


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with Node() as node:
        node.plug("ttyUSB0", "GPS-A7")
        node.plug("ttyUSB1", "ZIGBEE")
        yield node


def places_of_its_own(node: Node, kinds: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"--{kind}-dir={node.root / 'other' / kind}" for kind in kinds)


async def until_registered(node: Node, process: Process, times: int = 1) -> None:
    """Wait until it has registered, and has been streamed from."""
    await process.wait_for_log(" registered", within=20, times=times)
    await node.kubelet.wait_healthy(SERIAL, {GPS, ZIGBEE})


async def end(process: Process, how: signal.Signals) -> None:
    process.signal(how)
    await process.wait(within=10)


def title(process: Process) -> str:
    return Path(f"/proc/{process.pid}/comm").read_text().strip()


async def is_ready(process: Process) -> bool:
    """What the probe in the manifests asks; a change takes a moment to be shown."""
    await asyncio.sleep(0.1)
    return title(process).endswith("ready")


async def answers(socket: Path) -> bool:
    try:
        _, writer = await asyncio.open_unix_connection(str(socket))
    except OSError:
        return False
    writer.close()
    return True


def move(node: Node, name: str, new_name: str) -> None:
    """Pull a device out, and put it in again under another name and number."""
    node.bus.unplug(name)
    with taken_numbers():
        node.bus.replug(name, new_name)


async def admit(node: Node, device_id: str) -> Container:
    """Give a device to a pod. One that comes while an instance ends may be rejected."""
    async with asyncio.timeout(5):
        while True:
            try:
                return await node.kubelet.admit(SERIAL, device_ids=[device_id], pod=device_id)
            except UnexpectedAdmissionError:
                await asyncio.sleep(0.05)


async def restart(container: Container) -> None:
    """Restart it as a kubelet does, which tries again for as long as it is refused."""
    async with asyncio.timeout(10):
        while True:
            try:
                await container.restart()
            except CreateContainerConfigError:
                await asyncio.sleep(0.05)
            else:
                return


@contextmanager
def taken_numbers() -> Iterator[None]:
    """The number that has just become free is somebody else's: a new pty gets the lowest."""
    with ExitStack() as files:
        for file in os.openpty():
            files.callback(os.close, file)
        yield


def longest_gap(node: Node, since: float) -> float:
    """Seconds from the kubelet's forgetting a plugin to its next acceptance of one, at most."""
    now = time.monotonic()
    accepted = [r.time for r in node.kubelet.log.registrations if not r.refusal]
    stops = [stop.time for stop in node.kubelet.log.stops if stop.time >= since]
    return max(
        (min((a for a in accepted if a > stop), default=now) - stop for stop in stops), default=0
    )


@pytest.mark.parametrize("registration", ["kubelet", "watcher"])
@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("places", [(), ("link", "state", "cdi", "features")], ids=["same", "own"])
async def test_the_older_one_stands_by_and_serves_again_when_the_newer_one_ends(
    node: Node, registration: str, how: signal.Signals, places: tuple[str, ...]
) -> None:
    config = node.root / "config.yaml"
    config.write_text(f"registration: {registration}\n")
    flags = ("--config", str(config))
    async with node.serve(*flags) as older:
        await until_registered(node, older)
        async with node.serve(*flags, *places_of_its_own(node, places)) as newer:
            await until_registered(node, newer)
            await older.wait_for_log("standing by")
            container = await admit(node, GPS)
            await restart(container)
            began = time.monotonic()
            await end(newer, how)
            await until_registered(node, older, times=2)
            assert longest_gap(node, began) < LONGEST_GAP
        await admit(node, ZIGBEE)
        if not places:
            # What the newer one gave away is known: that container has the old number.
            move(node, "ttyUSB0", "ttyUSB8")
            await node.kubelet.wait_healthy(SERIAL, {ZIGBEE})
            await restart(container)
            await node.kubelet.wait_healthy(SERIAL, {GPS, ZIGBEE})


@pytest.mark.parametrize("how", ENDS)
async def test_the_end_of_the_older_one_costs_nothing(node: Node, how: signal.Signals) -> None:
    async with node.serve() as older:
        await until_registered(node, older)
        container = await node.kubelet.run_container(SERIAL, device_ids=[GPS])
        async with node.serve() as newer:
            await until_registered(node, newer)
            await older.wait_for_log("standing by")
            began = time.monotonic()
            await end(older, how)
            await until_registered(node, newer, times=2)
            assert longest_gap(node, began) < LONGEST_GAP
            assert "WARNING" not in newer.log()
            assert os.path.lexists(node.link_dir / GPS / "if00")
            assert (node.link_dir / "usbplugin.sock").exists()
            move(node, "ttyUSB0", "ttyUSB8")
            await node.kubelet.wait_healthy(SERIAL, {ZIGBEE})
            await restart(container)
            await node.kubelet.wait_healthy(SERIAL, {GPS, ZIGBEE})


async def test_who_stands_by_says_nothing_on_its_stream(node: Node) -> None:
    async with node.serve() as older:
        await until_registered(node, older)
        (endpoint,) = node.sockets()
        async with node.serve() as newer:
            await until_registered(node, newer)
            await older.wait_for_log("standing by")
            seen = len(node.kubelet.log.messages)
            node.bus.unplug("ttyUSB0")
            await node.kubelet.wait_healthy(SERIAL, {ZIGBEE})
            node.bus.replug("ttyUSB0", "ttyUSB0")
            await node.kubelet.wait_healthy(SERIAL, {GPS, ZIGBEE})
            messages = list(node.kubelet.log.messages)[seen:]
            assert endpoint not in {message.endpoint for message in messages}


async def test_a_restarted_kubelet_gets_the_newer_one(node: Node) -> None:
    async with node.serve() as older:
        await until_registered(node, older)
        async with node.serve() as newer:
            await until_registered(node, newer)
            await older.wait_for_log("standing by")
            for times in range(2, 5):
                await node.kubelet.restart()
                await until_registered(node, newer, times=times)
            container = await node.kubelet.run_container(SERIAL, device_ids=[GPS])
            await newer.wait_for_log("allocated")
            await end(newer, signal.SIGKILL)
            await until_registered(node, older, times=2)
            await restart(container)


async def test_who_stands_by_is_ready_and_says_so(node: Node) -> None:
    directory = node.root / "other/link"
    async with node.serve(*places_of_its_own(node, ["link", "state"])) as older:
        await until_registered(node, older)
        daemon = Daemon(directory / "usbplugin.sock")
        assert await daemon.left() == []
        async with node.serve() as newer:
            await until_registered(node, newer)
            await older.wait_for_log("standing by")
            code, document = await daemon.get("/readyz")
            assert code == HTTPStatus.OK
            assert left_in(document) == [SERIAL]
            text = await asyncio.to_thread(
                subprocess.check_output,
                [sys.executable, "-m", "usbplugin", "list", "--link-dir", str(directory)],
                text=True,
            )
            assert f"This instance stands by: a newer one serves {SERIAL}." in text
            own = replace(node.places, link_dir=directory)
            finding = await asyncio.to_thread(check_daemon, doctor.Node(places=own))
            assert finding.grade is Grade.OK
            assert f"stands by for a newer instance, which serves {SERIAL}" in finding.found


def test_the_words_of_readiness_are_those_that_clients_know() -> None:
    assert State.STANDING_BY.value == STANDING_BY
    assert session_part(SERIAL) == f"{SESSION}{SERIAL}"


async def test_version_0_1_takes_over_and_its_end_is_noticed(node: Node) -> None:
    async with node.serve() as process:
        await until_registered(node, process)
        began = time.monotonic()
        async with old_instance(node.kubelet_dir, SERIAL, [GPS, ZIGBEE]) as old:
            await process.wait_for_log("standing by")
            await node.kubelet.admit(SERIAL, device_ids=[GPS], pod="of-old")
            assert old.allocated == [GPS]
            assert "beginning a new generation" not in process.log(), "it is there still"
        await until_registered(node, process, times=2)
        assert longest_gap(node, began) < LONGEST_GAP
        await node.kubelet.run_container(SERIAL, device_ids=[ZIGBEE])


async def test_version_0_1_that_was_there_first_is_replaced_and_its_end_noticed(node: Node) -> None:
    async with AsyncExitStack() as olds:
        await olds.enter_async_context(old_instance(node.kubelet_dir, SERIAL, [GPS, ZIGBEE]))
        async with node.serve() as process:
            await until_registered(node, process)
            container = await node.kubelet.run_container(SERIAL, device_ids=[GPS])
            began = time.monotonic()
            await olds.aclose()
            await until_registered(node, process, times=2)
            assert longest_gap(node, began) < LONGEST_GAP
            await restart(container)


@pytest.mark.parametrize("has_devices", [True, False])
async def test_a_plugin_of_another_project_under_our_name_is_noticed(
    node: Node,
    has_devices: bool,  # noqa: FBT001
) -> None:
    async with node.serve() as process:
        await until_registered(node, process)
        stranger = old_instance(
            node.kubelet_dir, SERIAL, ["theirs"] if has_devices else [], name="stranger.sock"
        )
        async with stranger:
            if has_devices:
                await process.wait_for_log("another plugin has registered this resource")
                assert await is_ready(process) is False
                assert node.kubelet.resource(SERIAL).healthy == {"theirs"}, "it is not fought over"
            else:
                await until_registered(node, process, times=2)
        await until_registered(node, process, times=2)
        await node.kubelet.run_container(SERIAL, device_ids=[ZIGBEE])


async def test_a_stranger_under_another_name_is_nothing_to_us(node: Node) -> None:
    async with node.serve() as process:
        await until_registered(node, process)
        async with old_instance(node.kubelet_dir, "other/x", ["theirs"], name="stranger.sock"):
            await asyncio.sleep(2)
        assert process.log().count(" registered") == 1


async def test_the_control_socket_is_made_again_when_its_taker_has_gone(node: Node) -> None:
    socket = node.link_dir / "usbplugin.sock"
    async with node.serve() as older:
        await until_registered(node, older)
        for how in ENDS:
            first = socket.lstat().st_ino
            async with node.serve() as newer:
                await until_registered(node, newer)
                await older.wait_for_log("standing by")
                await end(newer, how)
            async with asyncio.timeout(5):
                while not await answers(socket) or socket.lstat().st_ino == first:
                    await asyncio.to_thread(time.sleep, 0.02)


async def test_the_process_shows_whether_it_is_ready(node: Node) -> None:
    await node.kubelet.stop()
    node.kubelet.socket.unlink()
    async with node.serve() as process:
        await process.wait_for_log("waiting for the kubelet")
        assert title(process) == "usbplugin:wait"
        await node.kubelet.start()
        await until_registered(node, process)
        assert await is_ready(process)
        async with node.serve() as newer:
            await until_registered(node, newer)
            await process.wait_for_log("standing by")
            assert await is_ready(process)
            assert await is_ready(newer)
        await node.kubelet.stop()
        node.kubelet.socket.unlink()
        async with asyncio.timeout(10):
            while await is_ready(process):
                pass


@pytest.mark.parametrize("seed", range(3))
async def test_random_takeovers_leave_no_gap_and_tear_nothing(node: Node, seed: int) -> None:
    rng = random.Random(seed)
    began = time.monotonic()
    await take_over_at_random(node, rng, times=6)
    assert longest_gap(node, began) < LONGEST_GAP


async def take_over_at_random(node: Node, rng: random.Random, times: int) -> None:
    """Up to three instances, which begin and end by any kind of end, with cables moved meanwhile.

    All the while one lives; somebody reads states and links as fast as can be.
    """
    alive: list[tuple[Process, int]] = []
    stop = asyncio.Event()
    names = ["ttyUSB0"]
    config = node.root / "config.yaml"
    config.write_text("flapping: {times: 60}\n")
    serve = partial(node.serve, "--config", str(config))
    async with AsyncExitStack() as processes, asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(read_all_the_time(node, stop))
        try:
            for _ in range(times):
                if len(alive) == 0 or (len(alive) < 3 and rng.random() < 0.6):
                    process = await processes.enter_async_context(serve())
                    await process.wait_for_log(" registered", within=20)
                    alive.append((process, 1))
                else:
                    process, _ = alive.pop(rng.randrange(len(alive)))
                    how = rng.choice(ENDS)
                    if not alive:  # never without one
                        successor = await processes.enter_async_context(serve())
                        await successor.wait_for_log(" registered", within=20)
                        alive.append((successor, 1))
                    await end(process, how)
                if rng.random() < 0.5:
                    names.append(f"ttyUSB{rng.randrange(2, 9)}")
                    move(node, names[-2], names[-1])
                await asyncio.sleep(rng.uniform(0, 0.5))
                await node.kubelet.wait_healthy(SERIAL, {GPS, ZIGBEE})
                container = await admit(node, GPS)
                await restart(container)
                container.remove()
        finally:
            stop.set()
        await reading


async def read_all_the_time(node: Node, stop: asyncio.Event) -> None:
    """Each state there is can be read, and each link leads to the node of the day."""

    def read() -> None:
        while not stop.is_set():
            for path in node.state_dir.glob("*.json"):
                json.loads(path.read_bytes())
            time.sleep(0.0005)

    await asyncio.to_thread(read)
    assert StateStore(node.state_dir, node.link_dir).load()
    assert Path(os.path.realpath(node.link_dir / GPS / "if00")).exists()
