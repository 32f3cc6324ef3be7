"""A kubelet that never reads its stream: no memory grows, and nobody else waits."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import grpc
import pytest

from benchmarks.latency import node
from benchmarks.subject import device_id
from tests.faults import http2
from tests.faults.proc import Usage
from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.api import deviceplugin_v1beta1_pb2_grpc as rpc

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from benchmarks.latency import Node

pytestmark = pytest.mark.timeout(120)

DEVICES = 1000
CHANGES = 1000
WINDOW = 65_535
MOST_GROWTH = 6.0
"""MiB. What is under way to five clients is a message of 40 kB each."""


async def change(ours: Node, numbers: Iterable[int]) -> None:
    """Pull (odd) and plug devices, each only when the kubelet that reads has heard of the last."""
    for number in numbers:
        await ours.time("pull" if number % 2 else "plug", (number - 1) // 2 % DEVICES)


def plugin_socket(ours: Node) -> Path:
    (path,) = ours.kubelet.directory.glob("usbplugin-*.sock")
    return path


async def test_streams_that_nobody_reads_cost_nothing_and_delay_nobody() -> None:
    async with node(DEVICES) as ours:
        await change(ours, range(1, 201))
        with ExitStack() as stack:
            idle = [
                stack.enter_context(http2.never_reading_stream(plugin_socket(ours), WINDOW))
                for _ in range(5)
            ]
            await change(ours, range(201, 301))
            filled = [http2.unread(connection) for connection in idle]
            before = Usage.of(ours.plugin.pid)
            await change(ours, range(301, 301 + CHANGES))
            after = Usage.of(ours.plugin.pid)
            # The window is full: beyond it, and HTTP/2's own frames, nothing was sent.
            assert all(WINDOW - 16_384 < size < 2 * WINDOW for size in filled)
            assert [http2.unread(connection) for connection in idle] == filled
            assert after.memory - before.memory < MOST_GROWTH
            assert after.descriptors <= before.descriptors


async def test_a_stream_that_is_read_again_skips_to_the_newest_list() -> None:
    async with node(DEVICES) as ours:
        # Or gRPC widens the client's window as it likes.
        options = [("grpc.http2.bdp_probe", 0)]
        target = f"unix:{plugin_socket(ours)}"
        async with grpc.aio.insecure_channel(target, options=options) as channel:
            stream = rpc.DevicePluginStub(channel).ListAndWatch(v1beta1.Empty())
            messages = aiter(stream)
            await anext(messages)
            await change(ours, range(1, 400, 2))  # pulled, every one
            gone = {device_id((number - 1) // 2) for number in range(1, 400, 2)}
            skipped = 0
            while {d.ID for d in (await anext(messages)).devices if d.health != "Healthy"} != gone:
                skipped += 1
            stream.cancel()
        assert skipped < 20
