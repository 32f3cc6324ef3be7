"""From a fact to the kubelet's end of the stream, and calls from the kubelet; ours and the floor's.

The plugin and the floor each run in a process of their own, as a plugin does beside its kubelet,
and talk to an embedded kubelet in this process. All times are on CLOCK_MONOTONIC, which processes
on one machine share. The two take turns, because machines are noisy.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from benchmarks import floor
from benchmarks.commands import Subject, scratch, subject
from benchmarks.subject import RESOURCE, device_id
from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.api import deviceplugin_v1beta1_pb2_grpc as rpc
from usbplugin.virtual import EmbeddedKubelet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.report import Report

COUNTS = (1, 10, 100, 1000)
PROCESSES = 5
_PATIENCE = 60.0


class Node:
    """A plugin with some devices, and its kubelet."""

    def __init__(self, kubelet: EmbeddedKubelet, plugin: Subject, resource: str) -> None:
        self.kubelet = kubelet
        self.plugin = plugin
        self.resource = resource

    async def time(self, command: str, number: int) -> float:
        """Seconds from a fact until the kubelet has the message."""
        self.kubelet.log.clear()
        self.plugin.tell(command, number)
        await self.kubelet.wait_for(lambda: len(self.kubelet.log.messages) > 0)
        return self.kubelet.log.messages[0].time - await self.plugin.answer()

    def channel(self) -> grpc.aio.Channel:
        """A connection to the plugin, like the kubelet's own."""
        names = {path.name for path in self.kubelet.directory.glob("*.sock")}
        (name,) = names - {self.kubelet.socket.name}
        return grpc.aio.insecure_channel(f"unix:{self.kubelet.directory / name}")


@asynccontextmanager
async def node(count: int) -> AsyncIterator[Node]:
    """The plugin with ``count`` devices."""
    async with _node("benchmarks.subject", RESOURCE, count) as ours:
        yield ours


@asynccontextmanager
async def bare_node(count: int) -> AsyncIterator[Node]:
    """The floor with ``count`` devices."""
    async with _node("benchmarks.floor", floor.RESOURCE, count) as bare:
        yield bare


@asynccontextmanager
async def _node(module: str, resource: str, count: int) -> AsyncIterator[Node]:
    with scratch() as root:
        async with (
            EmbeddedKubelet(Path(root) / "kubelet") as kubelet,
            subject(module, root, str(count)) as plugin,
        ):
            await kubelet.wait_for(
                lambda: len(kubelet.resource(resource).healthy) == count, _PATIENCE
            )
            yield Node(kubelet, plugin, resource)


async def messages(count: int, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds from a device going or coming until the kubelet knows; ours and the floor's.

    All the floor has to do is send a prepared message. Several processes of each run one after the
    other: where the scheduler puts their threads is chance, never changes, and decides a fifth of
    the time.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(PROCESSES):
        async with node(count) as ours, bare_node(count) as bare:
            for step in range(rounds // PROCESSES):
                for one, found in zip((ours, bare), times, strict=True):
                    found.append(await one.time("plug" if step % 2 else "pull", step // 2 % count))
    return times


async def calls(rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds that calls over the socket take; ours and the floor's, taking turns."""
    device = device_id(3)
    allocate = v1beta1.AllocateRequest(
        container_requests=[v1beta1.ContainerAllocateRequest(devices_ids=[device])]
    )
    pre_start = v1beta1.PreStartContainerRequest(devices_ids=[device])
    times: dict[str, tuple[list[float], list[float]]] = {
        "Allocate": ([], []),
        "PreStartContainer": ([], []),
    }
    async with (
        node(10) as ours,
        bare_node(10) as bare,
        ours.channel() as channel,
        bare.channel() as bare_channel,
    ):
        stubs = (rpc.DevicePluginStub(channel), rpc.DevicePluginStub(bare_channel))
        for _ in range(rounds):
            for index, stub in enumerate(stubs):
                began = time.perf_counter()
                await stub.Allocate(allocate)
                done = time.perf_counter()
                await stub.PreStartContainer(pre_start)
                times["Allocate"][index].append(done - began)
                times["PreStartContainer"][index].append(time.perf_counter() - done)
    return times


async def measure(report: Report, rounds: int) -> None:
    for count in COUNTS:
        ours, bare = await messages(count, rounds)
        report.compare(
            f"fact -> stream, {count} devices",
            ours,
            bare,
            bar_ms={1000: 10.0}.get(count),
            ratio_bar={10: 1.5}.get(count),
        )
    for name, (ours, bare) in (await calls(rounds)).items():
        report.compare(name, ours, bare, ratio_bar=1.5 if name == "Allocate" else None)
