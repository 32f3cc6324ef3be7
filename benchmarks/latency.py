"""From a fact to the kubelet's end of the stream, and calls of the kubelet, beside the floor's."""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
import threading
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from benchmarks import floor
from usbplugin.agent import Agent
from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.api import deviceplugin_v1beta1_pb2_grpc as rpc
from usbplugin.config import Config, Flapping
from usbplugin.discovery import (
    AllPorts,
    DeviceNumber,
    Port,
    PortGone,
    PortPresent,
    Post,
    UsbInterface,
)
from usbplugin.places import Places
from usbplugin.virtual import EmbeddedKubelet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from benchmarks.report import Report

RESOURCE = "usbplugin/serial"
DEVICE = "usb-0403:6001-SN-0003-if00"


def port(number: int) -> Port:
    usb = UsbInterface(
        "0403", "6001", f"SN-{number:04}", "FTDI", "FT232R", location=f"0000:00:14.0-{number}"
    )
    name = f"ttyUSB{number}"
    return Port(name, f"/dev/{name}", DeviceNumber(188, number), usb, driver="ftdi_sio")


class ScriptedSource:
    """A source that posts what it is told, from a thread of its own."""

    name = "scripted"

    def __init__(self, ports: tuple[Port, ...]) -> None:
        self._ports = ports
        self._post: Post | None = None
        self._stopped = threading.Event()

    def run(self, post: Post) -> None:
        post(AllPorts(self.name, self._ports, "start"))
        self._post = post
        self._stopped.wait()

    def scan(self) -> tuple[Port, ...]:
        return self._ports

    def stop(self) -> None:
        self._stopped.set()

    def post(self, fact: PortPresent | PortGone) -> float:
        """Post a fact; return when."""
        assert self._post is not None
        now = time.monotonic()
        self._post(fact)
        return now


@asynccontextmanager
async def node(count: int) -> AsyncIterator[tuple[EmbeddedKubelet, ScriptedSource, Path]]:
    """An agent with ``count`` devices, registered with an embedded kubelet."""
    with tempfile.TemporaryDirectory(prefix="up-") as scratch:
        root = Path(scratch)
        source = ScriptedSource(tuple(port(number) for number in range(count)))
        agent = Agent(
            # Here a device is pulled far more often than one that is to be trusted may be.
            Config(flapping=Flapping(times=60, window="1ms")),
            [source],
            Places(
                kubelet_dir=root / "kubelet",
                link_dir=root / "links",
                pod_resources=root / "none",
            ),
        )
        stopping = asyncio.Event()
        async with EmbeddedKubelet(root / "kubelet") as kubelet:
            running = asyncio.create_task(agent.run(stopping))
            await kubelet.wait_for(lambda: len(kubelet.resource(RESOURCE).healthy) == count)
            yield kubelet, source, root / "kubelet"
            stopping.set()
            await running


@asynccontextmanager
async def bare_node(count: int) -> AsyncIterator[tuple[EmbeddedKubelet, floor.Floor, Path]]:
    """The floor with ``count`` devices, registered with an embedded kubelet of its own."""
    with tempfile.TemporaryDirectory(prefix="up-") as scratch:
        async with EmbeddedKubelet(Path(scratch)) as kubelet:
            bare = floor.Floor(count)
            server = await floor.serve(bare, Path(scratch))
            await kubelet.wait_for(lambda: len(kubelet.resource(floor.RESOURCE).healthy) == count)
            yield kubelet, bare, Path(scratch)
            await server.stop(None)


async def until_received(kubelet: EmbeddedKubelet, send: Callable[[], float]) -> float:
    """Seconds from when ``send`` says that it sent until the kubelet has the message."""
    kubelet.log.clear()
    sent = await asyncio.to_thread(send)
    await kubelet.wait_for(lambda: len(kubelet.log.messages) > 0)
    return kubelet.log.messages[0].time - sent


async def messages(count: int, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds from a device gone, or back, until the kubelet has the message; ours and the floor's.

    The floor is handed the finished message. Both take turns, for machines are noisy.
    """
    ours, least = [], []
    loop = asyncio.get_running_loop()
    async with node(count) as (kubelet, source, _), bare_node(count) as (other, bare, _):
        for step in range(rounds):
            victim = port(step // 2 % count)
            fact = (
                PortPresent(source.name, victim) if step % 2 else PortGone(source.name, victim.name)
            )
            message = floor.list_of(count, step % (count + 1))

            def send(message: v1beta1.ListAndWatchResponse = message) -> float:
                now = time.monotonic()
                loop.call_soon_threadsafe(bare.send, message)
                return now

            ours.append(await until_received(kubelet, lambda fact=fact: source.post(fact)))  # type: ignore[misc]
            least.append(await until_received(other, send))
    return ours, least


async def calls(rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds that calls take over the socket, ours and the floor's, taking turns."""
    allocate = v1beta1.AllocateRequest(
        container_requests=[v1beta1.ContainerAllocateRequest(devices_ids=[DEVICE])]
    )
    pre_start = v1beta1.PreStartContainerRequest(devices_ids=[DEVICE])
    times: dict[str, tuple[list[float], list[float]]] = {
        "Allocate": ([], []),
        "PreStart": ([], []),
    }
    async with node(10) as (_, _, directory), bare_node(10) as (_, _, bare_directory):
        (socket,) = directory.glob("usbplugin-*.sock")
        async with (
            grpc.aio.insecure_channel(f"unix:{socket}") as channel,
            grpc.aio.insecure_channel(f"unix:{bare_directory / floor.SOCKET}") as bare_channel,
        ):
            stubs = (rpc.DevicePluginStub(channel), rpc.DevicePluginStub(bare_channel))
            for _ in range(rounds):
                for index, stub in enumerate(stubs):
                    began = time.perf_counter()
                    await stub.Allocate(allocate)
                    done = time.perf_counter()
                    await stub.PreStartContainer(pre_start)
                    times["Allocate"][index].append(done - began)
                    times["PreStart"][index].append(time.perf_counter() - done)
    return times


async def measure(report: Report, rounds: int) -> None:
    for count in (1, 10, 100, 1000):
        ours, least = await messages(count, rounds)
        middle = report.times(
            f"fact -> stream, {count} devices", ours, {10: 2.0, 1000: 10.0}.get(count)
        )
        bare = report.times("  the floor's message", least)
        report.add("  ratio", middle / bare, "x floor")
    for name, (ours, least) in (await calls(rounds)).items():
        middle = report.times(name, ours)
        bare = report.times("  the floor's", least)
        report.add("  ratio", middle / bare, "x floor", 2.0)


async def storm(report: Report, size: int = 256) -> None:
    """Many devices plugged and pulled as fast as a source can say so."""
    async with node(1) as (kubelet, source, _):
        before, cpu, began = len(kubelet.log.messages), time.process_time(), time.monotonic()

        def blow() -> None:
            for number in range(1, size):
                source.post(PortPresent(source.name, port(number)))
            for number in range(1, size):
                source.post(PortGone(source.name, f"ttyUSB{number}"))
            source.post(PortPresent(source.name, dataclasses.replace(port(size), name="last")))

        await asyncio.to_thread(blow)
        wanted = {f"usb-0403:6001-SN-{number:04}-if00" for number in (0, size)}
        await kubelet.wait_healthy(RESOURCE, wanted)
        report.add(
            f"storm of {size} plugs and pulls: messages", len(kubelet.log.messages) - before, ""
        )
        report.add("  time to the final state", 1000 * (time.monotonic() - began), "ms")
        report.add("  CPU", 1000 * (time.process_time() - cpu), "ms", note="kubelet's end included")
