"""Sessions against the embedded kubelet, over real sockets."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import tempfile
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from tests.support import usb_port
from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.api import deviceplugin_v1beta1_pb2_grpc as rpc
from usbplugin.custody import Offer
from usbplugin.deviceplugin import Session, State, backoff
from usbplugin.deviceplugin.session import STREAM_TIMEOUT
from usbplugin.errors import KubeletError
from usbplugin.inventory import Device, Health, Snapshot
from usbplugin.inventory.shares import MOST_SHARES
from usbplugin.kubelet import ClassicRegistrar, PluginDirectory, WatcherRegistrar
from usbplugin.status.collect import of_sessions
from usbplugin.status.health import readiness
from usbplugin.telemetry.catalogue import DEVICES_LEFT_OUT
from usbplugin.telemetry.observer import UNOBSERVED, Observer
from usbplugin.virtual.kubelet import EmbeddedKubelet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

    from usbplugin.discovery import Port

SERIAL = "usbplugin/serial"
pytestmark = pytest.mark.timeout(30)


def snapshot(*ids: str, away: tuple[str, ...] = ()) -> Snapshot:
    return Snapshot(
        SERIAL,
        tuple(
            Device(
                device_id,
                SERIAL,
                Health.UNPLUGGED if device_id in away else Health.READY,
                "gone" if device_id in away else "",
                (usb_port(f"ttyUSB{number}", numa_node=0),),
                0.0,
            )
            for number, device_id in enumerate(ids)
        ),
    )


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="up-") as path:
        yield Path(path)


@pytest.fixture
async def kubelet(directory: Path) -> AsyncIterator[EmbeddedKubelet]:
    async with EmbeddedKubelet(directory) as kubelet:
        yield kubelet


class NodesOnly:
    """A custody that keeps nothing, and gives the nodes themselves."""

    def host_path(self, device: Device, port: Port) -> str:
        return port.node

    def locate(self, device_id: str) -> str | None:
        return None

    def leave(self, resource: str) -> None:
        pass

    async def catch_up(self, resource: str) -> None:
        pass

    async def take_charge(self, resource: str) -> None:
        pass

    async def grant_problem(self, devices: Sequence[Device]) -> str:
        return ""

    def grant(self, device: Device, paths: Mapping[str, str], listed_ids: Sequence[str]) -> str:
        return ""

    async def start(self, resource: str, listed_ids: Sequence[str]) -> str:
        return "b is unplugged: gone" if "b" in listed_ids else ""


@asynccontextmanager
async def running(
    directory: Path,
    first: Snapshot,
    stream_timeout: float = STREAM_TIMEOUT,
    registrar: type[ClassicRegistrar | WatcherRegistrar] = ClassicRegistrar,
    observer: Observer = UNOBSERVED,
    shares: int = 1,
) -> AsyncIterator[Session]:
    plugins = PluginDirectory(directory)
    session = Session(
        Offer(SERIAL, shares=shares),
        first,
        registrar(plugins),
        NodesOnly(),
        stream_timeout,
        observer,
    )
    watching = asyncio.create_task(plugins.watch(session.look))
    work = asyncio.create_task(session.run())
    try:
        yield session
    finally:
        session.close()
        await asyncio.wait_for(work, 5)
        watching.cancel()


def sockets(directory: Path) -> list[Path]:
    return sorted(directory.glob("usbplugin-*.sock"))


@pytest.fixture(autouse=True)
def all_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


def failures(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Why registrations failed."""
    return [
        str(record.fields["reason"])  # type: ignore[attr-defined]
        for record in caplog.records
        if record.message == "registration failed; trying again"
    ]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.to_thread(os.sched_yield)


def left_out(session: Session) -> int:
    assert session.plugin is not None
    return session.plugin.left_out


async def until_streaming(session: Session) -> None:
    """Its turn comes after the kubelet's."""
    await until(lambda: session.state is State.STREAMING)


async def test_it_registers_and_streams_at_once(directory: Path, kubelet: EmbeddedKubelet) -> None:
    async with running(directory, snapshot("a", "b", away=("b",))) as session:
        await kubelet.wait_healthy(SERIAL, {"a"})
        assert kubelet.resource(SERIAL).capacity == 2
        assert kubelet.resource(SERIAL).devices["a"].numa == (0,)
        await until_streaming(session)
    assert sockets(directory) == []
    assert session.state is State.CLOSED


async def test_changes_are_streamed(directory: Path, kubelet: EmbeddedKubelet) -> None:
    async with running(directory, snapshot()) as session:
        await kubelet.wait_for(lambda: kubelet.resource(SERIAL).connected)
        session.publish(snapshot("a", "b"))
        await kubelet.wait_healthy(SERIAL, {"a", "b"})
        session.publish(snapshot("a", "b", away=("a",)))
        await kubelet.wait_healthy(SERIAL, {"b"})
        assert kubelet.resource(SERIAL).capacity == 2


async def test_a_storm_becomes_few_messages_and_the_last_one_is_the_truth(
    directory: Path, kubelet: EmbeddedKubelet
) -> None:
    async with running(directory, snapshot()) as session:
        await kubelet.wait_for(lambda: kubelet.resource(SERIAL).connected)
        before = len(kubelet.log.messages)
        for count in range(200):
            session.publish(snapshot(*map(str, range(count % 7))))
        session.publish(snapshot("last"))
        await kubelet.wait_healthy(SERIAL, {"last"})
        assert len(kubelet.log.messages) - before <= 2


async def test_what_the_kubelet_is_not_told_sends_no_message(
    directory: Path, kubelet: EmbeddedKubelet
) -> None:
    async with running(directory, snapshot("a")) as session:
        await kubelet.wait_healthy(SERIAL, {"a"})
        before = len(kubelet.log.messages)
        session.publish(snapshot("a"))
        session.publish(snapshot("a", "b"))
        await kubelet.wait_healthy(SERIAL, {"a", "b"})
        assert len(kubelet.log.messages) - before == 1


async def test_with_more_devices_than_the_kubelet_takes_those_worth_most_are_served(
    directory: Path, kubelet: EmbeddedKubelet
) -> None:
    ids = tuple(f"usb-{number:055}" for number in range(80))
    ready = {f"{ids[79]}.{share}" for share in range(MOST_SHARES)}
    crowd = snapshot(*ids, away=ids[:79])
    async with running(directory, crowd, shares=MOST_SHARES) as session:
        await kubelet.wait_healthy(SERIAL, ready)
        await until_streaming(session)
        assert 0 < left_out(session) < 79
        assert kubelet.resource(SERIAL).capacity == (80 - left_out(session)) * MOST_SHARES
        readings = {reading.metric: list(reading.samples()) for reading in of_sessions([session])}
        (sample,) = readings[DEVICES_LEFT_OUT]
        assert sample.value == left_out(session)
        session.publish(snapshot(ids[79]))
        await kubelet.wait_for(lambda: kubelet.resource(SERIAL).capacity == MOST_SHARES)
        assert left_out(session) == 0
    assert len(kubelet.log.registrations) == 1


async def test_the_kubelet_may_come_later(directory: Path) -> None:
    async with (
        running(directory, snapshot("a")) as session,
        EmbeddedKubelet(directory) as kubelet,
    ):
        await kubelet.wait_healthy(SERIAL, {"a"})
        await until_streaming(session)


async def test_the_directory_may_come_later(directory: Path) -> None:
    below = directory / "device-plugins"
    async with running(below, snapshot("a")), EmbeddedKubelet(below) as kubelet:
        await kubelet.wait_healthy(SERIAL, {"a"})


async def test_ten_restarts_of_the_kubelet(directory: Path, kubelet: EmbeddedKubelet) -> None:
    async with running(directory, snapshot("a")) as session:
        for number in range(10):
            await kubelet.wait_healthy(SERIAL, {"a"})
            session.publish(snapshot("a", f"b{number}"))
            await kubelet.wait_healthy(SERIAL, {"a", f"b{number}"})
            await kubelet.restart()
            session.publish(snapshot("a"))
        await kubelet.wait_healthy(SERIAL, {"a"})
        assert len(sockets(directory)) == 1
    assert not kubelet.log.violations


async def test_devices_change_while_the_kubelet_is_away(
    directory: Path, kubelet: EmbeddedKubelet
) -> None:
    async with running(directory, snapshot("a")) as session:
        await kubelet.wait_healthy(SERIAL, {"a"})
        await kubelet.stop()
        session.publish(snapshot("a", "b", away=("a",)))
        await kubelet.start()
        await kubelet.wait_healthy(SERIAL, {"b"})
        assert kubelet.resource(SERIAL).capacity == 2


async def test_our_socket_is_deleted(directory: Path, kubelet: EmbeddedKubelet) -> None:
    async with running(directory, snapshot("a")):
        await kubelet.wait_healthy(SERIAL, {"a"})
        (before,) = sockets(directory)
        before.unlink()
        await kubelet.wait_for(lambda: len(kubelet.log.registrations) == 2)
        await kubelet.wait_healthy(SERIAL, {"a"})
        (after,) = sockets(directory)
        assert after != before


async def test_the_kubelet_cancels_the_stream(directory: Path, kubelet: EmbeddedKubelet) -> None:
    async with running(directory, snapshot("a")):
        for number in range(3):
            await kubelet.wait_healthy(SERIAL, {"a"})
            await kubelet.disconnect(SERIAL)
            await kubelet.wait_for(lambda n=number: len(kubelet.log.registrations) == n + 2)  # type: ignore[misc]
        await kubelet.wait_healthy(SERIAL, {"a"})


async def test_two_streams_get_every_change(directory: Path, kubelet: EmbeddedKubelet) -> None:
    async with running(directory, snapshot("a")) as session:
        await kubelet.wait_healthy(SERIAL, {"a"})
        (path,) = sockets(directory)
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            stream = rpc.DevicePluginStub(channel).ListAndWatch(v1beta1.Empty())
            messages = aiter(stream)
            first = await anext(messages)
            session.publish(snapshot("a", "b"))
            second = await anext(messages)
            await kubelet.wait_healthy(SERIAL, {"a", "b"})
            stream.cancel()
        assert [device.ID for device in first.devices] == ["a"]
        assert [device.ID for device in second.devices] == ["a", "b"]
        session.publish(snapshot("c"))
        await kubelet.wait_healthy(SERIAL, {"c"})


async def test_a_refusal_is_logged_and_tried_again(
    directory: Path, kubelet: EmbeddedKubelet, caplog: pytest.LogCaptureFixture
) -> None:
    kubelet.refuse_registrations(3, "the quota is exhausted")
    async with running(directory, snapshot("a")):
        await kubelet.wait_healthy(SERIAL, {"a"})
    assert len(kubelet.log.registrations) == 4
    reasons = failures(caplog)
    assert len(reasons) == 3
    assert all(
        "the kubelet refused usbplugin/serial" in reason and "the quota is exhausted" in reason
        for reason in reasons
    )


async def test_a_dead_kubelets_socket_is_no_kubelet(directory: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as dead:
        dead.bind(str(directory / "kubelet.sock"))
    async with running(directory, snapshot("a")), EmbeddedKubelet(directory) as kubelet:
        await kubelet.wait_healthy(SERIAL, {"a"})


async def test_old_streams_end_before_the_next_registration(
    directory: Path, kubelet: EmbeddedKubelet
) -> None:
    async with running(directory, snapshot("a")):
        await kubelet.wait_healthy(SERIAL, {"a"})
        (path,) = sockets(directory)
        path.unlink()
        await kubelet.wait_for(lambda: len(kubelet.log.registrations) == 2)
        await kubelet.wait_healthy(SERIAL, {"a"})
        assert kubelet.log.stream_ends[0].time <= kubelet.log.registrations[1].time


async def test_sockets_of_the_dead_are_removed_and_of_the_living_kept(
    directory: Path, kubelet: EmbeddedKubelet
) -> None:
    plugins = PluginDirectory(directory)
    dead, living = plugins.new_socket(SERIAL), plugins.new_socket(SERIAL)
    other = directory / "other.sock"
    for path in (dead, other):
        with closing(socket.socket(socket.AF_UNIX)) as listener:
            listener.bind(str(path))
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(living))
        listener.listen()
        async with running(directory, snapshot("a")):
            await kubelet.wait_healthy(SERIAL, {"a"})
            assert not dead.exists()
            assert living.exists()
            assert other.exists()


async def test_a_second_instance_leaves_the_first_ones_socket_alone(
    directory: Path, kubelet: EmbeddedKubelet
) -> None:
    async with running(directory, snapshot("a")):
        await kubelet.wait_healthy(SERIAL, {"a"})
        (first,) = sockets(directory)
        async with running(directory, snapshot("b")):
            await kubelet.wait_healthy(SERIAL, {"b"})
            assert first in sockets(directory)


async def test_of_a_rolling_update_the_new_instance_remains(
    directory: Path, kubelet: EmbeddedKubelet
) -> None:
    async with running(directory, snapshot("old")) as old:
        await kubelet.wait_healthy(SERIAL, {"old"})
        async with running(directory, snapshot("new")):
            await kubelet.wait_healthy(SERIAL, {"new"})
            old.close()
            # The kubelet disconnects the new instance when the old one's stream ends.
            await kubelet.wait_for(lambda: len(kubelet.log.registrations) >= 3)
            await kubelet.wait_healthy(SERIAL, {"new"})


class Registry(rpc.RegistrationServicer):
    """Accepts every plugin; hangs up on the streams of some at once, and then opens none."""

    def __init__(self, directory: Path, *, hangs_up: int) -> None:
        self.registered: asyncio.Queue[str] = asyncio.Queue()
        self._directory = directory
        self._hangs_up = hangs_up

    async def Register(  # noqa: N802 -- the API's name
        self, request: v1beta1.RegisterRequest, context: object
    ) -> v1beta1.Empty:
        if self._hangs_up:
            self._hangs_up -= 1
            target = f"unix:{self._directory / request.endpoint}"
            async with grpc.aio.insecure_channel(target) as channel:
                stream = rpc.DevicePluginStub(channel).ListAndWatch(v1beta1.Empty())
                await anext(aiter(stream))
                stream.cancel()
        self.registered.put_nowait(request.endpoint)
        return v1beta1.Empty()


# The last: hang-ups are no sign of a slow kubelet, that its next stream would be waited for long.
@pytest.mark.parametrize(
    ("hangs_up", "stream_timeout", "times"),
    [(0, 0.05, 3), (99, STREAM_TIMEOUT, 3), (5, STREAM_TIMEOUT, 7)],
)
async def test_without_a_stream_a_new_generation_begins(
    directory: Path,
    hangs_up: int,
    stream_timeout: float,
    times: int,
) -> None:
    registry = Registry(directory, hangs_up=hangs_up)
    server = grpc.aio.server()
    rpc.add_RegistrationServicer_to_server(registry, server)
    server.add_insecure_port(f"unix:{directory}/kubelet.sock")
    await server.start()
    async with running(directory, snapshot("a"), stream_timeout=stream_timeout):
        async with asyncio.timeout(STREAM_TIMEOUT - 2):
            endpoints = [await registry.registered.get() for _ in range(times)]
    await server.stop(None)
    assert len(set(endpoints)) == times


class SilentRegistry(rpc.RegistrationServicer):
    """Answers no plugin."""

    def __init__(self) -> None:
        self.called = asyncio.Event()

    async def Register(  # noqa: N802 -- the API's name
        self, request: v1beta1.RegisterRequest, context: object
    ) -> v1beta1.Empty:
        self.called.set()
        await asyncio.Event().wait()
        return v1beta1.Empty()


@asynccontextmanager
async def serving(registry: rpc.RegistrationServicer, path: Path) -> AsyncIterator[None]:
    server = grpc.aio.server()
    rpc.add_RegistrationServicer_to_server(registry, server)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    yield
    await server.stop(None)


class Outcomes(Observer):
    """Notes how registrations ended."""

    def __init__(self) -> None:
        self.noted: list[bool] = []

    def registered(self, resource: str, *, accepted: bool) -> None:
        self.noted.append(accepted)


async def test_close_does_not_wait_for_a_kubelet_that_does_not_answer(directory: Path) -> None:
    registry, outcomes = SilentRegistry(), Outcomes()
    async with (
        serving(registry, directory / "kubelet.sock"),
        running(directory, snapshot("a"), observer=outcomes) as session,
    ):
        await registry.called.wait()
    assert session.state is State.CLOSED
    assert sockets(directory) == []
    assert outcomes.noted == []


async def test_a_call_that_hangs_is_given_up_for_a_new_kubelet(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new, outcomes = SilentRegistry(), Registry(directory, hangs_up=0), Outcomes()
    async with (
        serving(old, directory / "kubelet.sock"),
        serving(new, directory / "next"),
        running(directory, snapshot("a"), observer=outcomes),
    ):
        await old.called.wait()
        (directory / "next").rename(directory / "kubelet.sock")
        async with asyncio.timeout(5):
            await new.registered.get()
        await until(lambda: len(outcomes.noted) == 2)
    assert outcomes.noted == [False, True]
    assert failures(caplog) == ["the kubelet has gone or was restarted"]


async def test_a_call_that_hangs_is_given_up_when_our_socket_is_deleted(directory: Path) -> None:
    registry = SilentRegistry()
    async with (
        serving(registry, directory / "kubelet.sock"),
        running(directory, snapshot("a")),
    ):
        for _ in range(2):
            await registry.called.wait()
            registry.called.clear()
            (path,) = sockets(directory)
            path.unlink()
        async with asyncio.timeout(5):
            await registry.called.wait()


async def test_nobody_need_ever_find_our_socket(directory: Path) -> None:
    async with running(directory, snapshot("a"), registrar=WatcherRegistrar) as session:
        await until(lambda: session.state is State.REGISTERING)
    assert session.state is State.CLOSED
    assert sockets(directory) == []


async def test_a_socket_deleted_before_it_is_found_is_made_anew(directory: Path) -> None:
    registry, outcomes = directory / "registry", Outcomes()
    registry.mkdir()
    async with running(
        registry, snapshot("a"), registrar=WatcherRegistrar, observer=outcomes
    ) as session:
        await until(lambda: session.state is State.REGISTERING)
        (before,) = sockets(registry)
        before.unlink()
        await until(lambda: sockets(registry))
        async with EmbeddedKubelet(directory, registry=registry) as kubelet:
            await kubelet.wait_healthy(SERIAL, {"a"})
            await until_streaming(session)
    assert outcomes.noted == [False, True]


async def test_while_it_waits_to_try_again_it_is_not_ready(
    directory: Path,
    kubelet: EmbeddedKubelet,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backoff, "_FIRST_DELAY", 60.0)
    monkeypatch.setattr(ClassicRegistrar, "longest_delay", 60.0)
    async with running(directory, snapshot("a")) as session:
        await until_streaming(session)
        assert readiness((), {}, [SERIAL], {SERIAL: session}).ok
        await kubelet.disconnect(SERIAL)
        await until(lambda: failures(caplog))
        assert session.state is State.BACKING_OFF
        assert not readiness((), {}, [SERIAL], {SERIAL: session}).ok


def test_a_path_that_is_too_long_is_explained() -> None:
    with pytest.raises(KubeletError, match="choose a shorter --kubelet-dir"):
        PluginDirectory(Path("/" + "x" * 80)).new_socket(SERIAL)


async def test_allocate_and_pre_start_over_the_socket(
    directory: Path, kubelet: EmbeddedKubelet
) -> None:
    async with running(directory, snapshot("a", "b", away=("b",))):
        await kubelet.wait_healthy(SERIAL, {"a"})
        container = await kubelet.run_container(SERIAL, 1)
        assert container.device_ids == ("a",)
        assert container.devices[0].host_path == "/dev/ttyUSB0"
        (path,) = sockets(directory)
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            stub = rpc.DevicePluginStub(channel)
            options = await stub.GetDevicePluginOptions(v1beta1.Empty())
            assert options.pre_start_required
            assert options.get_preferred_allocation_available
            for call in (
                stub.PreStartContainer(v1beta1.PreStartContainerRequest(devices_ids=["b"])),
                stub.Allocate(
                    v1beta1.AllocateRequest(
                        container_requests=[v1beta1.ContainerAllocateRequest(devices_ids=["b"])]
                    )
                ),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
                assert caught.value.details() == "b is unplugged: gone"
