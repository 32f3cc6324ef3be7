"""What a kubelet may do to its plugins, and what a stranger may do on a plugin's socket."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import grpc

from tests.faults import http2
from tests.faults.catalogue import LOOK, fault
from tests.faults.hostile import (
    OddKubelet,
    RawKubelet,
    dies_in_register,
    rubbish,
    says_nothing,
    talks_rubbish,
)
from tests.faults.rig import SERIAL
from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.api import deviceplugin_v1beta1_pb2_grpc as rpc
from usbplugin.virtual import EmbeddedKubeletError

if TYPE_CHECKING:
    import random

    from tests.faults.hostile import Talk
    from tests.faults.rig import Rig


@fault("kubelet restarted")
async def kubelet_restarted(rig: Rig, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 3)):
        await rig.kubelet.restart()
        await asyncio.sleep(rng.uniform(0, 0.1))


@fault("kubelet away for a while")
async def kubelet_away(rig: Rig, rng: random.Random) -> None:
    await rig.kubelet.stop()
    await asyncio.sleep(rng.uniform(0.1, 1.5))
    rig.move_a_cable(rng)
    await rig.kubelet.start()


@fault("kubelet away, and its socket too")
async def kubelet_socket_gone(rig: Rig, rng: random.Random) -> None:
    await rig.kubelet.stop()
    rig.kubelet.socket.unlink()
    rig.move_a_cable(rng)
    await asyncio.sleep(rng.uniform(0.1, 1))
    await rig.kubelet.start()


@fault("kubelet killed in the middle of Register")
async def killed_in_register(rig: Rig, rng: random.Random) -> None:
    await _replaced_by(rig, dies_in_register, rng.randint(1, 4))


@fault("kubelet's socket speaks rubbish")
async def speaks_rubbish(rig: Rig, rng: random.Random) -> None:
    await _replaced_by(rig, talks_rubbish(rng), rng.randint(1, 4))


@fault("kubelet accepts connections, and is silent")
async def is_silent(rig: Rig, rng: random.Random) -> None:
    await _replaced_by(rig, says_nothing, 1)


async def _replaced_by(rig: Rig, talk: Talk, times: int) -> None:
    if rig.watched:  # then nobody is called on kubelet.sock
        await rig.kubelet.restart()
        return
    await rig.kubelet.stop()
    async with RawKubelet(talk).at(rig.kubelet.socket) as odd:
        await odd.until_met(times, within=3)
    await rig.kubelet.start()


@fault("kubelet killed in the middle of Allocate and PreStartContainer")
async def killed_in_allocate(rig: Rig, rng: random.Random) -> None:
    present = sorted(rig.kubelet.resource(SERIAL).healthy - {p.thing.device_id for p in rig.pods})
    sockets = rig.sockets()
    if present and sockets:
        wanted = [rng.choice(present)]
        target = f"unix:{sockets[0]}"
        async with grpc.aio.insecure_channel(target) as channel:
            stub = rpc.DevicePluginStub(channel)
            request = v1beta1.AllocateRequest(
                container_requests=[v1beta1.ContainerAllocateRequest(devices_ids=wanted)]
            )
            calls = [
                asyncio.ensure_future(stub.Allocate(request)),
                asyncio.ensure_future(
                    stub.PreStartContainer(v1beta1.PreStartContainerRequest(devices_ids=wanted))
                ),
            ]
            await asyncio.sleep(rng.uniform(0, 0.002))
        await asyncio.gather(*calls, return_exceptions=True)
    await rig.kubelet.restart()


@fault("kubelet killed in the middle of a stream")
async def killed_in_stream(rig: Rig, rng: random.Random) -> None:
    for _ in range(rng.randint(10, 30)):
        rig.move_a_cable(rng)
    await asyncio.sleep(rng.uniform(0, 0.02))
    await rig.kubelet.restart()


@fault("kubelet hangs up, and stays")
async def hangs_up(rig: Rig, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 3)):
        if await rig.wait_for(lambda: rig.kubelet.resource(SERIAL).connected, within=2):
            with suppress(EmbeddedKubeletError):
                await rig.kubelet.disconnect(SERIAL)


@fault(
    "kubelet refuses some registrations",
    within=10,
    why="registering again backs off, from 20 ms to 5 s, doubling with each failure",
)
async def refuses(rig: Rig, rng: random.Random) -> None:
    times = rng.randint(1, 5)
    before = sum(bool(one.refusal) for one in rig.kubelet.log.registrations)
    rig.kubelet.refuse_registrations(times, "not today")
    with suppress(EmbeddedKubeletError):  # it has none at the moment
        await rig.kubelet.disconnect(SERIAL)
    await rig.kubelet.wait_for(
        lambda: sum(bool(r.refusal) for r in rig.kubelet.log.registrations) >= before + times,
        within=16 * times,
    )


@fault("kubelet is slow to answer, and slower to read")
async def is_slow(rig: Rig, rng: random.Random) -> None:
    await _odd(rig, OddKubelet(rig.kubelet_dir, rng.uniform(0.2, 1.5), streams=True), rng)


@fault("kubelet never reads its stream")
async def never_reads(rig: Rig, rng: random.Random) -> None:
    await _odd(rig, OddKubelet(rig.kubelet_dir, 0, streams=True), rng)


@fault("kubelet opens no stream")
async def opens_no_stream(rig: Rig, rng: random.Random) -> None:
    await _odd(rig, OddKubelet(rig.kubelet_dir, 0, streams=False), rng)


async def _odd(rig: Rig, odd: OddKubelet, rng: random.Random) -> None:
    await rig.kubelet.stop()
    async with odd.serving():
        await odd.until_accepted(within=3)
        for _ in range(rng.randint(5, 20)):
            rig.move_a_cable(rng)
            await asyncio.sleep(0.01)
    await rig.kubelet.start()


@fault("no socket in kubelet.sock's place")
async def no_socket(rig: Rig, rng: random.Random) -> None:
    await rig.kubelet.stop()
    rig.kubelet.socket.unlink()
    match rng.randrange(3):
        case 0:
            rig.kubelet.socket.write_text("a file")
        case 1:
            rig.kubelet.socket.symlink_to("nowhere")
        case _:
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(rig.kubelet.socket))
    await asyncio.sleep(rng.uniform(0.1, 1))
    rig.kubelet.socket.unlink()
    await rig.kubelet.start()


@fault("the plugin's socket deleted")
async def socket_deleted(rig: Rig, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 3)):
        for path in rig.sockets():
            path.unlink(missing_ok=True)
        await asyncio.sleep(rng.uniform(0, 0.3))


@fault("the kubelet's directory deleted, with the kubelet")
async def directory_deleted(rig: Rig, rng: random.Random) -> None:
    await rig.kubelet.stop()
    for path in rig.kubelet_dir.iterdir():
        path.unlink(missing_ok=True)
    with suppress(OSError):  # the plugin may just have made a socket
        rig.kubelet_dir.rmdir()
    await asyncio.sleep(rng.uniform(0, 0.5))
    rig.move_a_cable(rng)
    await rig.kubelet.start()


@fault("strangers send rubbish to the plugin's socket")
async def strangers_rubbish(rig: Rig, rng: random.Random) -> None:
    for _ in range(20):
        for path in rig.sockets():
            with suppress(OSError), http2.connect(path) as connection:
                connection.sendall(rubbish(rng))


@fault("strangers connect, and say nothing")
async def strangers_silent(rig: Rig, rng: random.Random) -> None:
    with ExitStack() as stack:
        for path in rig.sockets():
            for _ in range(50):
                with suppress(OSError):
                    stack.enter_context(http2.connect(path))
        rig.move_a_cable(rng)
        await asyncio.sleep(rng.uniform(0.1, 0.5))


@fault("strangers open streams, and never read them, while the kubelet hangs up")
async def strangers_never_read(rig: Rig, rng: random.Random) -> None:
    with ExitStack() as stack:
        for path in rig.sockets():
            for _ in range(10):
                window = rng.choice([0, 100, 65_535])
                with suppress(OSError):
                    stack.enter_context(http2.never_reading_stream(path, window))
        for _ in range(rng.randint(20, 60)):
            rig.move_a_cable(rng)
        with suppress(EmbeddedKubeletError):
            await rig.kubelet.disconnect(SERIAL)
        # The strangers stay: their streams must not pass for the kubelet's.
        await rig.until_true(LOOK)


@fault("kubelet restarted, and does not know its pods for a while")
async def kubelet_knows_no_pods(rig: Rig, rng: random.Random) -> None:
    rig.kubelet.knows_pods = False
    await rig.kubelet.restart()
    for _ in range(rng.randint(1, 5)):
        rig.move_a_cable(rng)
        await asyncio.sleep(rng.uniform(0, 0.5))
    rig.kubelet.knows_pods = True


@fault("PodResources is silent for a while")
async def pod_resources_silent(rig: Rig, rng: random.Random) -> None:
    path = rig.root / "pods/kubelet.sock"
    aside = path.with_name("aside")
    path.rename(aside)
    async with RawKubelet(rng.choice([says_nothing, talks_rubbish(rng)])).at(path):
        for _ in range(rng.randint(5, 20)):
            rig.move_a_cable(rng)
            await asyncio.sleep(0.02)
    path.unlink(missing_ok=True)
    aside.rename(path)
