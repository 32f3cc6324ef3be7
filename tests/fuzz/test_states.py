"""Whatever lies in the state directory, or PodResources answers: no crash, and no stray file."""

from __future__ import annotations

import asyncio
import json
import os

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from tests.fuzz.support import BOOT, SERIAL, Keeper, check_device, directory, log_lines, within_loop
from tests.support import all_ports, gone, present, usb_port
from usbplugin.custody import Offer
from usbplugin.discovery import DeviceNumber, Port, Readiness, UsbInterface
from usbplugin.inventory import DeviceState, Grant, GrantedPort, HeldDevice

ID = "usb-0403:6001-A5069RR4-if00"
PORT = usb_port(node="/dev/null", number=DeviceNumber(1, 3))

texts = st.text(max_size=20) | st.sampled_from(["", "..", "/", "\0", ID, SERIAL, "/dev/null"])
numbers = st.builds(DeviceNumber, st.integers(), st.integers()) | st.just(PORT.number)
boots = st.just(BOOT)
interfaces = st.builds(
    UsbInterface, texts, texts, texts, interface=st.integers(), port_number=st.integers()
)
ports = st.builds(
    Port,
    texts,
    texts,
    numbers,
    st.none() | interfaces | st.just(PORT.usb),
    readiness=st.sampled_from(Readiness),
    fault=texts,
)
granted = st.builds(
    GrantedPort,
    st.none() | numbers,
    texts,
    st.lists(numbers, max_size=2).map(tuple),
)
by_slot = st.dictionaries(texts | st.just(PORT.slot), granted, max_size=2)
grants = st.builds(Grant, texts | st.just(SERIAL), texts | st.just(ID), by_slot, texts | boots)
states = st.builds(
    DeviceState,
    st.just(ID),
    texts | st.just(SERIAL),
    st.lists(ports | st.just(PORT), max_size=3).map(tuple),
    st.lists(grants, max_size=3).map(tuple),
    st.none() | st.floats(),
    st.booleans(),
    texts | boots,
    by_slot,
)


def spoil(content: bytes, draw: st.DataObject) -> bytes:
    """A byte changed, some cut off, or left as it is."""
    if content and draw.draw(st.booleans()):
        position = draw.draw(st.integers(0, len(content) - 1))
        replacement = draw.draw(st.binary(max_size=3))
        content = content[:position] + replacement + content[position + 1 :]
    return content[: draw.draw(st.integers(0, len(content)) | st.just(len(content)))]


def live_on(content: bytes) -> None:
    """A plugin starts with that file, and devices come and go."""
    with directory() as root, log_lines():
        folder = root / "states"
        folder.mkdir()
        (folder / f"{ID}.json").write_bytes(content)
        (root / "elsewhere").mkdir()
        keeper = Keeper(root, Offer(SERIAL))

        async def live() -> None:
            custody = keeper.custody
            custody.apply([all_ports()])
            custody.hold([HeldDevice(SERIAL, ID, "default/pod/main")], 1e9)
            custody.apply([present(PORT)])
            for device in custody.devices:
                await custody.start(SERIAL, [device.id])
                if device.health.is_usable:
                    custody.grant(device, {port.slot: "" for port in device.ports}, [device.id])
            custody.apply([gone(PORT)])
            custody.clean_up()
            await asyncio.sleep(0)

        asyncio.run(live())
        for device in keeper.custody.devices:
            check_device(device)
        assert {path.split("/")[0] for path in keeper.written()} == {
            "links",
            "states",
            "elsewhere",
        } - ({"links"} - set(os.listdir(root)))
        assert not list((root / "elsewhere").iterdir())


@given(content=st.binary(max_size=200))
@example(content=b"[" * 100_000)
@example(content=b'{"x":' * 50_000)
@example(content=b"\xff")
def test_any_bytes_in_a_memory(content: bytes) -> None:
    live_on(content)


@given(state=states, data=st.data())
def test_a_memory_with_odd_values(state: DeviceState, data: st.DataObject) -> None:
    live_on(spoil(encoded(state), data))


def encoded(state: DeviceState) -> bytes:
    try:
        return msgspec.json.encode(state)
    except (UnicodeEncodeError, OverflowError):  # what cannot be written need not be read
        return json.dumps({"id": state.id}).encode()


@given(
    held=st.lists(
        st.builds(
            HeldDevice,
            st.just(SERIAL) | texts,
            texts
            | st.just(ID)
            | st.sampled_from([f"{ID}.0", f"{ID}.\N{SUPERSCRIPT TWO}", "x" * 99]),
            texts,
        ),
        max_size=4,
    ),
    shares=st.sampled_from([1, 3]),
)
@example(held=[HeldDevice(SERIAL, "../elsewhere/x", "default/pod/main")], shares=1)
@example(held=[HeldDevice(SERIAL, "/dev/ttyUSB0", "default/pod/main")], shares=1)
@example(held=[HeldDevice(SERIAL, "a" * 300, "default/pod/main")], shares=1)
@example(held=[HeldDevice(SERIAL, "\0", "default/pod/main")], shares=1)
def test_what_pod_resources_answers(held: list[HeldDevice], shares: int) -> None:
    with directory() as root, log_lines():
        (root / "elsewhere").mkdir()
        keeper = Keeper(root, Offer(SERIAL, shares=shares))

        def live() -> None:
            keeper.custody.apply([present(PORT)])
            keeper.custody.hold(held, 1e9)
            keeper.custody.hold([], 2e9)
            keeper.custody.hold(held, 3e9)
            keeper.custody.apply([gone(PORT)])

        within_loop(live)
        for device in keeper.custody.devices:
            check_device(device)
        assert {path.split("/")[0] for path in keeper.written()} == {
            "links",
            "states",
            "elsewhere",
        } - ({"links"} - set(os.listdir(root)))
        assert not list((root / "elsewhere").iterdir())
