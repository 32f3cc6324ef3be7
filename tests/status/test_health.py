"""Liveness is honest: it notices a socket that is there but mute, and a source that hangs."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.node import SERIAL, Node
from usbplugin.config import Config
from usbplugin.deviceplugin.service import DevicePlugin
from usbplugin.discovery import DirectorySource, Port, Post
from usbplugin.foundation.supervision import Part
from usbplugin.kubelet import probe
from usbplugin.status import health
from usbplugin.status.client import Daemon
from usbplugin.status.health import LONGEST_SILENCE, Report, Verdict, liveness, source_part

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with Node() as node:
        yield node


@pytest.fixture
async def mute(tmp_path: Path) -> AsyncIterator[Path]:
    """A socket that is listened to by somebody who says nothing."""
    path = tmp_path / "mute.sock"
    connected = []
    server = await asyncio.start_unix_server(lambda _, writer: connected.append(writer), path)
    yield path
    for writer in connected:
        writer.close()
    server.close()


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_TIMEOUT", 0.2)


async def test_mute_and_dead_sockets_are_told_apart(mute: Path, tmp_path: Path) -> None:
    assert "mute.sock does not answer: DEADLINE_EXCEEDED" in await probe.silence_of(mute)
    assert "UNAVAILABLE" in await probe.silence_of(tmp_path / "none.sock")
    assert "DEADLINE_EXCEEDED" in await probe.kubelet_silence(mute)


async def test_a_kubelet_answers_and_registers_nothing(node: Node) -> None:
    assert await probe.kubelet_silence(node.kubelet_dir / "kubelet.sock") == ""
    assert not node.kubelet.log.registrations


async def test_a_plugin_that_hangs_is_not_alive(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = asyncio.Event()

    async def answer(self: DevicePlugin, *_: object) -> object:
        if hangs.is_set():
            await asyncio.Event().wait()
        return self.options

    monkeypatch.setattr(DevicePlugin, "GetDevicePluginOptions", answer)
    async with node.agent():
        await node.kubelet.wait_for(lambda: node.kubelet.resource(SERIAL).connected)
        hangs.set()
        code, document = await Daemon(node.places.control_socket).get("/healthz")
        assert code == 503
        assert "does not answer: DEADLINE_EXCEEDED" in str(document)


@pytest.mark.parametrize(("silence", "alive"), [(-5, True), (5, False)])
async def test_a_source_that_is_silent_for_too_long_is_not_alive(
    tmp_path: Path, silence: int, *, alive: bool
) -> None:
    source = DirectorySource(tmp_path)
    part = Part(source_part(source.name), running=True)
    now = time.monotonic()
    since = now - LONGEST_SILENCE - silence
    for listed_at, began in (({source.name: since}, since - 3600), ({}, since)):
        report = await liveness([source], listed_at, [], {part.name: part}, began)
        assert report.ok is alive


class Hanging:
    """A source that never gets as far as listing its ports."""

    name = "hanging"

    def __init__(self) -> None:
        self._end = threading.Event()

    def run(self, _post: Post) -> None:
        self._end.wait()

    def scan(self) -> tuple[Port, ...]:
        return ()

    def stop(self) -> None:
        self._end.set()


async def test_a_source_that_hangs_from_the_start_is_noticed(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "LONGEST_SILENCE", 0.0)
    async with node.run_agent([Hanging()], Config()), asyncio.timeout(10):
        daemon = Daemon(node.places.control_socket)
        while not await daemon.is_there():
            await asyncio.to_thread(os.sched_yield)
        # Before its thread starts, it is not running, so not alive either.
        while "has not listed its ports for " not in str(answer := await daemon.get("/healthz")):
            await asyncio.to_thread(os.sched_yield)
    assert answer[0] == 503


def test_one_bad_part_is_enough() -> None:
    good, bad = Verdict("a", ok=True, detail=""), Verdict("b", ok=False, detail="why")
    assert Report((good,)).ok
    assert not Report((good, bad)).ok
    assert Report((bad,)).document() == {
        "ok": False,
        "parts": [{"name": "b", "ok": False, "detail": "why"}],
    }
