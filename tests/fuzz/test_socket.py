"""Whatever bytes come over a plugin's socket: it goes on answering who asks properly."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import grpc
from hypothesis import example, given
from hypothesis import strategies as st

from tests.faults import http2
from tests.fuzz.support import SERIAL, Keeper, directory
from tests.support import present, usb_port
from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.api import deviceplugin_v1beta1_pb2_grpc as rpc
from usbplugin.custody import Offer
from usbplugin.discovery import DeviceNumber

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

paths = st.sampled_from(
    [
        *(f"/v1beta1.DevicePlugin/{method}" for method in ("Allocate", "ListAndWatch", "Nothing")),
        "/",
        "",
    ]
)
frames = st.builds(
    http2.frame,
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 2**31 - 1),
    st.binary(max_size=40),
)
calls = st.builds(http2.call, paths, st.binary(max_size=60), st.integers(0, 9))
chunks = (
    st.binary(max_size=100) | frames | calls | st.just(http2.opening()) | st.just(http2.PREFACE)
)


async def say(path: Path, talk: Sequence[bytes]) -> None:
    with suppress(OSError):
        _, writer = await asyncio.open_unix_connection(str(path))
        for chunk in talk:
            writer.write(chunk)
        with suppress(OSError):
            await writer.drain()
        writer.close()


@given(talks=st.lists(st.lists(chunks, max_size=6), min_size=1, max_size=4))
@example(talks=[[http2.opening(), http2.call(http2.ALLOCATE, b"\xff\xff\xff")]])
@example(talks=[[http2.opening(0), http2.call(http2.LIST_AND_WATCH)]])
@example(
    talks=[
        [http2.opening(), *(http2.call(http2.LIST_AND_WATCH, b"", 2 * n + 1) for n in range(200))]
    ]
)
@example(talks=[[http2.opening(), http2.frame(http2.DATA, 0, 1, b"\0\xff\xff\xff\xff")]])
def test_any_bytes(talks: Sequence[Sequence[bytes]]) -> None:
    async def serve(root: Path) -> None:
        keeper = Keeper(root, Offer(SERIAL))
        keeper.custody.apply([present(usb_port(node="/dev/null", number=DeviceNumber(1, 3)))])
        path = root / "plugin.sock"
        server = grpc.aio.server()
        rpc.add_DevicePluginServicer_to_server(keeper.plugin, server)
        server.add_insecure_port(f"unix:{path}")
        await server.start()
        await asyncio.gather(*(say(path, talk) for talk in talks))
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            stub = rpc.DevicePluginStub(channel)
            options = await stub.GetDevicePluginOptions(v1beta1.Empty(), timeout=10)
            assert options.pre_start_required
            listed = await anext(aiter(stub.ListAndWatch(v1beta1.Empty())))
            assert len(listed.devices) == 1
        await server.stop(None)

    with directory() as root:
        asyncio.run(serve(root))
