from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing

import pytest

from tests.support import usb_port
from usbplugin.commands.hardware import Hardware
from usbplugin.config import Config
from usbplugin.discovery import AllPorts, Port, PortGone, Post
from usbplugin.errors import DiscoveryError

RULES, POLICY = Config().rules(), Config().health_policy()


class Bench:
    """A source that is told what to find."""

    name = "bench"

    def __init__(self, *, blind: bool = False) -> None:
        self._blind = blind
        self._posted = threading.Event()
        self._over = threading.Event()
        self._post: Post | None = None

    def run(self, post: Post) -> None:
        self._post = post
        if not self._blind:
            post(AllPorts(self.name, self.scan(), "start"))
            self._over.wait()
        if self._blind:
            raise DiscoveryError("went blind")

    def scan(self) -> tuple[Port, ...]:
        return (usb_port(),)

    def stop(self) -> None:
        self._over.set()

    def pull(self) -> None:
        assert self._post is not None
        self._post(PortGone(self.name, "ttyUSB0"))

    def fail(self) -> None:
        self._blind = True
        self._over.set()


async def test_rows_and_events_without_a_daemon() -> None:
    source = Bench()
    hardware = Hardware([source], RULES, POLICY)
    async with hardware.running():
        (row,) = await hardware.rows()
        assert (row["health"], row["holders"]) == ("ready", [])
        (event,) = await hardware.past()
        assert event["event"] == "ready"
        async with aclosing(hardware.follow()) as events:
            assert (await anext(events))["event"] == "ready"
            source.pull()
            assert (await anext(events))["event"] == "unplugged"
        (row,) = await hardware.rows()
        assert row["health"] == "unplugged"


async def test_a_source_that_cannot_see_is_an_error_at_once() -> None:
    with pytest.raises(DiscoveryError, match="went blind"):
        async with hardware_of(Bench(blind=True)).running():
            pass


async def test_a_source_that_goes_blind_ends_the_events() -> None:
    source = Bench()
    hardware = hardware_of(source)
    async with hardware.running(), aclosing(hardware.follow()) as events:
        await anext(events)
        following = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        source.fail()
        with pytest.raises(DiscoveryError, match="went blind"):
            await following


def hardware_of(source: Bench) -> Hardware:
    return Hardware([source], RULES, POLICY)
