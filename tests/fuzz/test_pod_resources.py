"""Whatever bytes come as PodResources' answer: who holds what, or an error that says so."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
from hypothesis import example, given
from hypothesis import strategies as st

from tests.fuzz.support import directory
from usbplugin.api import podresources_v1_pb2 as v1
from usbplugin.errors import KubeletError
from usbplugin.inventory import HeldDevice
from usbplugin.kubelet import PodResources

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
answers = st.lists(
    st.builds(
        v1.PodResources,
        name=texts,
        namespace=texts,
        containers=st.lists(
            st.builds(
                v1.ContainerResources,
                name=texts,
                devices=st.lists(
                    st.builds(
                        v1.ContainerDevices,
                        resource_name=texts,
                        device_ids=st.lists(texts, max_size=2),
                    ),
                    max_size=2,
                ),
            ),
            max_size=2,
        ),
    ),
    max_size=3,
).map(lambda pods: v1.ListPodResourcesResponse(pod_resources=pods).SerializeToString())


@st.composite
def spoiled(draw: st.DrawFn) -> bytes:
    content = bytearray(draw(answers))
    for _ in range(draw(st.integers(0, 3))):
        if content:
            content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.integers(0, len(content)))])


class Liar(grpc.GenericRpcHandler):
    """Answers any call with the next of its answers."""

    def __init__(self, answers: Sequence[bytes]) -> None:
        self._answers = iter(answers)

    def service(self, _: grpc.HandlerCallDetails) -> Any:  # noqa: ANN401 -- as grpc has it
        return grpc.unary_unary_rpc_method_handler(self._answer)

    async def _answer(self, *_: object) -> bytes:
        return next(self._answers)


async def check(pod_resources: PodResources, answer: bytes) -> None:
    try:
        held = await pod_resources.list()
    except KubeletError as error:
        assert "cannot get device holders" in str(error)
        assert str(error).isprintable()
    else:
        assert all(isinstance(held_device, HeldDevice) for held_device in held)
        v1.ListPodResourcesResponse.FromString(answer)


@given(st.lists(st.binary(max_size=100) | answers | spoiled(), min_size=1, max_size=20))
@example([b"\xff" * 50, b"", b"\x0a\x05\x12\x03\xff\xff\xff"])
@example([b"\x0a\x03\x0a\x01\xff"])  # a name that is no UTF-8
def test_any_bytes_as_an_answer(given_answers: Sequence[bytes]) -> None:
    async def ask(path: Path) -> None:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((Liar(given_answers),))
        server.add_insecure_port(f"unix:{path}")
        await server.start()
        try:
            for answer in given_answers:
                await check(PodResources(path), answer)
        finally:
            await server.stop(None)

    with directory() as root:
        asyncio.run(ask(root / "kubelet.sock"))
