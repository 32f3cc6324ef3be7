from __future__ import annotations

import asyncio

import msgspec

from tests.support import usb_port
from usbplugin.inventory import Change, Device, Health
from usbplugin.status.history import History

FAR = 3600.0


def device(number: int = 0, **changes: object) -> Device:
    plain = Device(
        id=f"d{number}",
        resource="a/b",
        health=Health.READY,
        reason="",
        ports=(usb_port(f"ttyUSB{number}"),),
        since=0.0,
    )
    return msgspec.structs.replace(plain, **changes)


def change(of: Device, before: Health | None = None, after: Health | None = Health.READY) -> Change:
    return Change(of, before, after)


async def test_an_event_says_what_happened() -> None:
    history = History()
    gone = device(health=Health.UNPLUGGED, reason="pulled")
    history.record([change(device()), change(gone, Health.READY, Health.UNPLUGGED)])
    history.record([change(gone, Health.UNPLUGGED, None)])
    first, second, third = history.events
    assert (first.sequence, first.event, first.before, first.after) == (1, "ready", None, "ready")
    assert first.nodes == ("/dev/ttyUSB0",)
    assert (second.event, second.before, second.reason) == ("unplugged", "ready", "pulled")
    assert (third.event, third.after) == ("forgotten", None)
    assert third.reason == "", "that of its last state is no reason to forget it"
    assert first.time.endswith("Z")


async def test_changes_of_holders_are_told_apart_from_other_changes() -> None:
    history = History()
    held = device(holders=("ns/pod/main",))
    for state in (device(), held, device(ports=(usb_port("ttyUSB7"),), holders=held.holders)):
        history.record([change(state, Health.READY)])
    history.record([change(device(), Health.READY)])
    assert [event.event for event in history.events] == ["changed", "held", "changed", "released"]


async def test_only_the_last_are_remembered() -> None:
    history = History(most=3)
    history.record(change(device(number)) for number in range(10))
    assert [event.device for event in history.events] == ["d7", "d8", "d9"]
    assert [event.sequence for event in history.since(8)] == [9, 10]


async def test_following_gives_the_past_then_what_happens_and_a_sign_of_life() -> None:
    history = History()
    history.record([change(device(1))])
    follower = history.follow(0, FAR)
    assert [event.device for event in await anext(follower)] == ["d1"]
    waiting = asyncio.ensure_future(anext(follower))
    await asyncio.sleep(0)
    history.record([change(device(2)), change(device(3))])
    assert [event.device for event in await waiting] == ["d2", "d3"]
    await follower.aclose()
    assert await anext(history.follow(3, 0.001)) == []


async def test_a_slow_follower_misses_the_oldest_and_can_tell() -> None:
    history = History(most=2)
    follower = history.follow(0, FAR)
    history.record([change(device(1))])
    assert [event.sequence for event in await anext(follower)] == [1]
    history.record(change(device(number)) for number in range(5))
    assert [event.sequence for event in await anext(follower)] == [5, 6]
