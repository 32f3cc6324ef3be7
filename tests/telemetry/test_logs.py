"""Log lines of the real process: one event each, whatever gRPC and devices do."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import signal
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.node import SERIAL, Node
from usbplugin.telemetry import logs
from usbplugin.telemetry.logs import LogFormat, fields

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.timeout(60)

GPS = "usb-0403:6001-GPS-A7-if00"


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with Node() as node:
        node.plug("ttyUSB0", "GPS-A7")
        yield node


async def test_what_grpc_says_in_its_c_core_does_not_slip_between_the_lines(node: Node) -> None:
    async with node.serve("--log-format", "json", "--log-level", "debug") as process:
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        (name,) = node.sockets()
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(str(node.kubelet_dir / name))
            stranger.sendall(b"\x00\xff" * 5000)
            stranger.settimeout(10)
            with suppress(ConnectionResetError):
                while stranger.recv(65536):
                    pass
        # A kubelet that talks nonsense: the C core has much to say about that.
        await node.kubelet.stop()
        kubelet = node.kubelet_dir / "kubelet.sock"
        kubelet.unlink(missing_ok=True)
        nonsense = asyncio.Event()

        def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()
            nonsense.set()

        async with await asyncio.start_unix_server(talk, kubelet):
            await asyncio.wait_for(nonsense.wait(), 10)
            await process.wait_for_log("registration failed")
        process.signal(signal.SIGTERM)
        assert await process.wait(within=5) == 0
        records = [json.loads(line) for line in process.log().splitlines()]
    assert all({"time", "level", "event", "logger"} <= record.keys() for record in records)
    assert {record["logger"].partition(".")[0] for record in records} == {"usbplugin"}


async def test_a_storm_takes_only_a_few_lines(node: Node) -> None:
    config = node.root / "config.yaml"
    config.write_text("flapping: {times: 60}")
    async with node.serve("--log-format", "json", "--config", str(config)) as process:
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        for _ in range(20):
            node.bus.unplug("ttyUSB0")
            await node.kubelet.wait_healthy(SERIAL, set())
            node.bus.replug("ttyUSB0")
            await node.kubelet.wait_healthy(SERIAL, {GPS})
        process.signal(signal.SIGTERM)
        assert await process.wait(within=5) == 0
        records = [json.loads(line) for line in process.log().splitlines()]
    for event, times in (("device unplugged", 20), ("device ready", 21)):
        told = [record for record in records if record.get("alike") == event]
        assert {record["about"] for record in told} == {GPS}
        shown = sum(record["event"] == event for record in records)
        assert shown + sum(record["count"] for record in told) == times


@pytest.mark.parametrize("log_format", LogFormat)
def test_no_hostile_byte_gets_into_a_line(log_format: LogFormat) -> None:
    stream = io.StringIO()
    logs.configure("info", log_format, stream)
    hostile = 'a\n2026 INFO forged x="1"\r\x1b[31m\u2028\u202e\ud800"\\ end'
    logging.getLogger("usbplugin.x").warning(
        "device ready", extra=fields(device=hostile, nodes=(hostile, "b"), reason=ValueError("\n"))
    )
    line = stream.getvalue()
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    if log_format is LogFormat.JSON:
        record = json.loads(line)
        assert (record["event"], record["device"]) == ("device ready", hostile)
        assert record["nodes"] == [hostile, "b"]


def test_a_text_line_has_stable_keys_and_a_json_line_has_its_own_first() -> None:
    stream = io.StringIO()
    logs.configure("info", LogFormat.TEXT, stream)
    logging.getLogger("usbplugin.x").info(
        "device ready", extra=fields(device="d1", resource="a/b", reason="", holders=())
    )
    time, rest = stream.getvalue().split(" ", 1)
    assert time.endswith("Z")
    assert rest == "INFO    device ready device=d1 resource=a/b\n"
    stream = io.StringIO()
    logs.configure("info", LogFormat.JSON, stream)
    logging.getLogger("usbplugin.x").info("device ready", extra=fields(event="mine", device="d1"))
    record = json.loads(stream.getvalue())
    assert (record["event"], record["event_"], record["level"]) == ("device ready", "mine", "info")


def test_others_are_heard_from_warnings_on() -> None:
    stream = io.StringIO()
    logs.configure("debug", LogFormat.TEXT, stream)
    logging.getLogger("asyncio").info("chatter")
    logging.getLogger("grpc").warning("matter")
    assert "chatter" not in stream.getvalue()
    assert "matter" in stream.getvalue()
