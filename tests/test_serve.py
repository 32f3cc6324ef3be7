"""``usbplugin serve`` as a process: signals, crashes, logs, second instances."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.node import SERIAL, Node, Process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

pytestmark = pytest.mark.timeout(60)

GPS = "usb-0403:6001-GPS-A7-if00"


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with Node() as node:
        node.plug("ttyUSB0", "GPS-A7")
        yield node


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_cleanly_with_a_stream_open(
    node: Node, number: signal.Signals
) -> None:
    async with node.serve() as process:
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        process.signal(number)
        assert await process.wait(within=5) == 0
        assert not node.sockets()
        assert os.path.lexists(node.link_dir / GPS / "if00"), "containers may be restarted"
        assert "stopped" in process.log()


async def test_its_feature_file_goes_with_it_whatever_it_learns_at_its_end(node: Node) -> None:
    config, features = node.root / "features.yaml", node.root / "features.d"
    config.write_text("nodeFeatures: true")
    features.mkdir()
    async with node.serve("--config", str(config), "--features-dir", str(features)) as process:
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        container = await node.kubelet.run_container(SERIAL)
        node.bus.unplug("ttyUSB0")
        await node.kubelet.wait_healthy(SERIAL, set())
        await process.wait_for_log("device unplugged")
        assert os.listdir(features) == ["usbplugin"]
        container.remove()
        process.signal(signal.SIGTERM)
        assert await process.wait(within=5) == 0
        assert os.listdir(features) == []


async def test_a_signal_ends_it_while_there_is_no_kubelet(node: Node) -> None:
    await node.kubelet.stop()
    node.kubelet.socket.unlink()
    async with node.serve() as process:
        await process.wait_for_log("waiting for the kubelet")
        process.signal(signal.SIGTERM)
        assert await process.wait(within=5) == 0


WITHOUT_CAPABILITIES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: path.write_text(""), "is not a directory"),
        (lambda path: path.mkdir(0o555), "Permission denied"),
    ],
)
async def test_a_kubelet_directory_that_is_of_no_use_is_an_error_until_it_is(
    node: Node, make: Callable[[Path], object], reason: str
) -> None:
    directory = node.root / "other"
    make(directory)
    command = node.command("--no-udev", "--device-dir", str(node.device_dir))
    command += ["--kubelet-dir", str(directory)]
    process = Process([*(WITHOUT_CAPABILITIES if os.geteuid() == 0 else ()), *command])
    try:
        await process.wait_for_log("cannot register: there can be no socket")
        (line,) = [line for line in process.log().splitlines() if "cannot register" in line]
        assert " ERROR " in line
        assert str(directory) in line
        assert reason in line
        assert "--kubelet-dir" in line
        assert "waiting for the kubelet" not in process.log()
        if directory.is_file():
            directory.unlink()
        directory.mkdir(exist_ok=True)
        directory.chmod(0o755)
        await process.wait_for_log("waiting for the kubelet", within=15)
    finally:
        process.kill()


async def test_a_kubelet_directory_behind_a_link_is_followed_at_once(node: Node) -> None:
    link = node.root / "link"
    link.symlink_to(node.kubelet_dir)
    async with node.serve("--kubelet-dir", str(link)):
        for _ in range(3):
            await node.kubelet.wait_healthy(SERIAL, {GPS})
            began = time.monotonic()
            await node.kubelet.restart()
            await node.until_connected()
            assert time.monotonic() - began < 5


async def test_a_killed_one_leaves_nothing_that_the_next_does_not_clean_up(node: Node) -> None:
    async with node.serve() as process:
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        (dead,) = node.sockets()
        process.signal(signal.SIGKILL)
        await process.wait(within=5)
        await node.kubelet.wait_healthy(SERIAL, set())
        assert node.sockets() == {dead}
    async with node.serve():
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        assert len(node.sockets()) == 1
        assert dead not in node.sockets()


async def test_ids_and_allocations_survive_a_restart_of_the_plugin(node: Node) -> None:
    async with node.serve() as process:
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        container = await node.kubelet.run_container(SERIAL)
        process.signal(signal.SIGTERM)
        await process.wait(within=5)
    node.bus.unplug("ttyUSB0")
    moved = node.bus.replug("ttyUSB0", "ttyUSB8")
    seen = len(node.kubelet.log.messages)
    async with node.serve():
        # Unhealthy if its number is another one now: the container that runs has the old one.
        await node.kubelet.wait_for(lambda: len(node.kubelet.log.messages) > seen)
        await container.restart()
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        (mount,) = container.mounts
        assert os.path.realpath(mount.host_path) == moved.node


async def test_a_second_instance_does_not_disturb_the_first(node: Node) -> None:
    async with node.serve() as old:
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        (first,) = node.sockets()
        async with node.serve():
            await node.kubelet.wait_for(lambda: len(node.kubelet.log.registrations) == 2)
            assert first in node.sockets()
            old.signal(signal.SIGTERM)
            assert await old.wait(within=5) == 0
            # The kubelet forgets the new instance with the old one's stream; it comes back.
            await node.kubelet.wait_for(lambda: len(node.kubelet.log.registrations) >= 3)
            await node.kubelet.wait_healthy(SERIAL, {GPS})


async def test_json_logs_are_one_object_per_line(node: Node) -> None:
    node.plug("ttyUSB1", 'evil\n{"level": "error"}\r\x1b[31m')
    async with node.serve("--log-format", "json") as process:
        await node.kubelet.wait_for(lambda: len(node.kubelet.resource(SERIAL).healthy) == 2)
        process.signal(signal.SIGTERM)
        await process.wait(within=5)
        records = [json.loads(line) for line in process.log().splitlines()]
    events = {record["event"] for record in records}
    assert {"starting", "registered", "device ready", "stopping", "stopped"} <= events
    assert {"time", "level", "event", "logger"} <= records[0].keys()
    ready = [record for record in records if record["event"] == "device ready"]
    assert {record["device"] for record in ready} >= {GPS}


async def test_text_logs_are_one_line_per_record(node: Node) -> None:
    node.plug("ttyUSB1", "evil\nINFO forged line\x1b[31m")
    async with node.serve() as process:
        await node.kubelet.wait_for(lambda: len(node.kubelet.resource(SERIAL).healthy) == 2)
        process.signal(signal.SIGTERM)
        await process.wait(within=5)
        log = process.log()
    assert log.removesuffix("\n").replace("\n", "").isprintable()
    assert all(line[0].isdigit() for line in log.splitlines())


async def test_a_bad_configuration_ends_it_at_once_with_one_line(node: Node) -> None:
    path = node.device_dir / "config.yaml"
    path.write_text("resources: [{name: serial}]")
    async with node.serve("--config", str(path)) as process:
        assert await process.wait(within=10) == 2
        assert process.log() == (
            f"usbplugin: {path}: line 1, column 20: resources[0].name: expected domain/name, found"
            " 'serial'\n"
        )
