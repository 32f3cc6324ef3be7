"""The embedded kubelet against a small plugin: all over real sockets."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import stat
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
import pytest

from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.api import deviceplugin_v1beta1_pb2_grpc as rpc
from usbplugin.api import pluginregistration_v1_pb2 as registration
from usbplugin.api import pluginregistration_v1_pb2_grpc as registration_rpc
from usbplugin.kubelet import Checkpoint, PluginDirectory, Replay, WatcherRegistrar
from usbplugin.kubelet.checkpoint import FILE_NAME
from usbplugin.kubelet.names import resource_name_problem
from usbplugin.virtual import services
from usbplugin.virtual.containers import (
    ContainerState,
    CreateContainerConfigError,
    Holder,
    UnexpectedAdmissionError,
)
from usbplugin.virtual.kubelet import EmbeddedKubelet
from usbplugin.virtual.plugin_client import Device, EmbeddedKubeletError, PluginOptions
from usbplugin.virtual.services import PluginWatcher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
    MakePlugin: TypeAlias = Callable[..., "Plugin"]

TTY = "example.com/tty"


class Plugin(rpc.DevicePluginServicer):
    """A device plugin that does as its attributes say, and writes down what it is asked."""

    def __init__(self, directory: Path, endpoint: str, resource: str, **options: bool) -> None:
        self.directory = directory
        self.endpoint = endpoint
        self.resource = resource
        self.options = v1beta1.DevicePluginOptions(**options)
        self.devices: list[v1beta1.Device] = []
        self.preferred: list[str] = []
        self.container_answers = 1
        self.refuse: dict[str, grpc.StatusCode] = {}
        self.hold: dict[str, asyncio.Event] = {}
        self.calls: list[tuple[str, list[str]]] = []
        self.called = asyncio.Event()
        self.streams: list[asyncio.Queue[list[v1beta1.Device] | None]] = []
        self.stream_closed = asyncio.Event()
        self._server = grpc.aio.server()
        rpc.add_DevicePluginServicer_to_server(self, self._server)

    async def serve(self) -> None:
        self._server.add_insecure_port(f"unix:{self.directory}/{self.endpoint}")
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    def send(self, **health: str) -> None:
        self.send_list([v1beta1.Device(ID=name, health=word) for name, word in health.items()])

    def send_list(self, devices: list[v1beta1.Device]) -> None:
        self.devices = devices
        for stream in self.streams:
            stream.put_nowait(devices)

    def end_streams(self) -> None:
        for stream in self.streams:
            stream.put_nowait(None)

    def be_found(self) -> None:
        """Serve, before ``serve``, what the kubelet's plugin watcher asks for."""
        WatcherRegistrar(PluginDirectory(self.directory)).add_services(self._server, self.resource)

    def asked(self, method: str) -> list[list[str]]:
        return [ids for name, ids in self.calls if name == method]

    async def _take(self, method: str, ids: list[str], context: Context) -> None:
        self.calls.append((method, ids))
        self.called.set()
        if method in self.hold:
            await self.hold[method].wait()
        if method in self.refuse:
            await context.abort(self.refuse[method], f"no {method} today")

    async def GetDevicePluginOptions(  # noqa: N802
        self, request: v1beta1.Empty, context: Context
    ) -> v1beta1.DevicePluginOptions:
        await self._take("options", [], context)
        return self.options

    async def ListAndWatch(  # noqa: N802
        self, request: v1beta1.Empty, context: Context
    ) -> AsyncIterator[v1beta1.ListAndWatchResponse]:
        stream: asyncio.Queue[list[v1beta1.Device] | None] = asyncio.Queue()
        self.streams.append(stream)
        devices: list[v1beta1.Device] | None = self.devices
        try:
            while devices is not None:
                yield v1beta1.ListAndWatchResponse(devices=devices)
                devices = await stream.get()
        finally:
            self.streams.remove(stream)
            self.stream_closed.set()

    async def GetPreferredAllocation(  # noqa: N802
        self, request: v1beta1.PreferredAllocationRequest, context: Context
    ) -> v1beta1.PreferredAllocationResponse:
        (wanted,) = request.container_requests
        await self._take(
            "prefer", [*wanted.available_deviceIDs, str(wanted.allocation_size)], context
        )
        answer = v1beta1.ContainerPreferredAllocationResponse(deviceIDs=self.preferred)
        return v1beta1.PreferredAllocationResponse(container_responses=[answer])

    async def Allocate(  # noqa: N802
        self, request: v1beta1.AllocateRequest, context: Context
    ) -> v1beta1.AllocateResponse:
        (wanted,) = request.container_requests
        await self._take("allocate", list(wanted.devices_ids), context)
        answer = v1beta1.ContainerAllocateResponse(
            envs={"CALL": str(len(self.asked("allocate")))},
            mounts=[v1beta1.Mount(container_path="/m", host_path="/h", read_only=True)],
            devices=[
                v1beta1.DeviceSpec(host_path=f"/x/{key}", container_path=f"/dev/{key}")
                for key in wanted.devices_ids
            ],
        )
        return v1beta1.AllocateResponse(container_responses=[answer] * self.container_answers)

    async def PreStartContainer(  # noqa: N802
        self, request: v1beta1.PreStartContainerRequest, context: Context
    ) -> v1beta1.PreStartContainerResponse:
        await self._take("pre_start", list(request.devices_ids), context)
        return v1beta1.PreStartContainerResponse()


@pytest.fixture
def directory() -> Iterator[Path]:
    # Not tmp_path: a socket's path may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="k", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture
async def kubelet(directory: Path) -> AsyncIterator[EmbeddedKubelet]:
    async with EmbeddedKubelet(directory) as kubelet:
        yield kubelet


@pytest.fixture
async def make_plugin(directory: Path) -> AsyncIterator[MakePlugin]:
    plugins: list[Plugin] = []

    def make(endpoint: str = "p.sock", resource: str = TTY, **options: bool) -> Plugin:
        plugins.append(Plugin(directory, endpoint, resource, **options))
        return plugins[-1]

    yield make
    for plugin in plugins:
        await plugin.stop()


@pytest.fixture
async def plugin(kubelet: EmbeddedKubelet, make_plugin: MakePlugin) -> Plugin:
    """Registered, with the healthy devices a, b and c."""
    return await registered(kubelet, make_plugin())


async def register(plugin: Plugin, version: str = "v1beta1", **options: bool) -> None:
    request = v1beta1.RegisterRequest(
        version=version,
        endpoint=plugin.endpoint,
        resource_name=plugin.resource,
        options=v1beta1.DevicePluginOptions(**options),
    )
    async with grpc.aio.insecure_channel(f"unix:{plugin.directory}/kubelet.sock") as channel:
        await rpc.RegistrationStub(channel).Register(request, timeout=10)
    plugin.calls.append(("registered", []))


async def registered(kubelet: EmbeddedKubelet, plugin: Plugin) -> Plugin:
    plugin.send(a="Healthy", b="Healthy", c="Healthy")
    await plugin.serve()
    await register(plugin)
    # Not by its devices alone: those of an instance before it may have the same IDs.
    messages = kubelet.log.messages
    await kubelet.wait_for(lambda: bool(messages) and messages[-1].endpoint == plugin.endpoint)
    await kubelet.wait_healthy(plugin.resource, "abc")
    return plugin


async def refusal(plugin: Plugin, version: str = "v1beta1") -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await register(plugin, version)
    assert caught.value.code() is grpc.StatusCode.UNKNOWN
    return caught.value.details() or ""


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def stale_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


async def test_start_deletes_every_socket_and_nothing_else(directory: Path) -> None:
    for name in ("kubelet.sock", "old-plugin.sock", "no-suffix"):
        stale_socket(directory / name)
    (directory / "kubelet_internal_checkpoint").write_text("{}")
    (directory / "sub").mkdir()
    async with EmbeddedKubelet(directory) as kubelet:
        assert names(directory) == {"kubelet.sock", "kubelet_internal_checkpoint", "sub"}
        assert kubelet.socket.is_socket()


async def test_stop_leaves_sockets_that_nobody_answers(
    kubelet: EmbeddedKubelet, plugin: Plugin, directory: Path
) -> None:
    await kubelet.stop()
    async with asyncio.timeout(5):
        await plugin.stream_closed.wait()
    assert names(directory) == {"kubelet.sock", "p.sock"}
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
        client.connect(str(kubelet.socket))
    await kubelet.stop()


async def test_restart_makes_a_new_socket_and_waits_for_plugins(
    kubelet: EmbeddedKubelet, plugin: Plugin, make_plugin: MakePlugin
) -> None:
    before = kubelet.socket.stat().st_ctime_ns
    await kubelet.restart()
    assert kubelet.socket.stat().st_ctime_ns > before
    assert not (plugin.directory / plugin.endpoint).exists()
    resource = kubelet.resource(TTY)
    assert (resource.connected, resource.capacity, resource.options) == (False, 0, None)
    await registered(kubelet, make_plugin("q.sock"))
    assert kubelet.resource(TTY).allocatable == 3


async def test_starting_twice_is_an_error(kubelet: EmbeddedKubelet) -> None:
    with pytest.raises(EmbeddedKubeletError, match="already running"):
        await kubelet.start()


async def test_a_path_too_long_for_a_socket_is_an_error(directory: Path) -> None:
    kubelet = EmbeddedKubelet(directory / ("x" * 100))
    with pytest.raises(EmbeddedKubeletError, match=r"has 1\d\d bytes, more than the limit of 107"):
        await kubelet.start()
    assert not kubelet.directory.exists()


async def test_the_longest_path_works(directory: Path, make_plugin: MakePlugin) -> None:
    room = 107 - len(f"{directory}//kubelet.sock")
    async with EmbeddedKubelet(directory / ("x" * room)) as kubelet:
        plugin = make_plugin()
        plugin.directory = kubelet.directory
        await registered(kubelet, plugin)
        plugin.endpoint = "y" * 20
        assert "failed to dial device plugin: the socket path" in await refusal(plugin)


async def test_a_path_may_have_characters_that_mean_something_in_urls(
    directory: Path, make_plugin: MakePlugin
) -> None:
    async with EmbeddedKubelet(directory / "a %41?#b") as kubelet:
        assert kubelet.socket.is_socket()
        plugin = make_plugin()
        await plugin.serve()
        (directory / plugin.endpoint).rename(kubelet.directory / "%41 ?#.sock")
        request = v1beta1.RegisterRequest(
            version="v1beta1", endpoint="%41 ?#.sock", resource_name=TTY
        )
        (directory / "k").symlink_to(kubelet.directory)
        async with grpc.aio.insecure_channel(f"unix:{directory}/k/kubelet.sock") as channel:
            await rpc.RegistrationStub(channel).Register(request, timeout=5)
        assert kubelet.resource(TTY).connected


async def test_the_plugin_is_dialled_back_before_its_registration_is_answered(
    kubelet: EmbeddedKubelet, make_plugin: MakePlugin
) -> None:
    plugin = make_plugin(pre_start_required=True)
    await plugin.serve()
    begun = time.monotonic()
    # The options in the request are not looked at.
    await register(plugin, get_preferred_allocation_available=True)
    assert plugin.calls == [("options", []), ("registered", [])]
    assert kubelet.resource(TTY).connected
    (entry,) = kubelet.log.registrations
    assert (entry.resource, entry.endpoint, entry.refusal) == (TTY, "p.sock", "")
    assert entry.options == kubelet.resource(TTY).options == PluginOptions(pre_start_required=True)
    assert begun <= entry.time <= time.monotonic()


async def test_a_plugin_that_does_not_serve_is_refused(
    directory: Path, make_plugin: MakePlugin
) -> None:
    async with EmbeddedKubelet(directory, dial_timeout=0.1) as kubelet:
        expected = "failed to dial device plugin: context deadline exceeded"
        assert await refusal(make_plugin()) == expected
        assert kubelet.log.registrations[0].refusal == expected
        assert kubelet.log.registrations[0].options is None
        assert not kubelet.resources


async def test_a_plugin_without_options_is_refused(
    kubelet: EmbeddedKubelet, make_plugin: MakePlugin
) -> None:
    plugin = make_plugin()
    plugin.refuse["options"] = grpc.StatusCode.FAILED_PRECONDITION
    await plugin.serve()
    assert await refusal(plugin) == (
        "failed to get device plugin options: "
        "rpc error: code = FailedPrecondition desc = no options today"
    )
    assert not kubelet.resources


async def test_a_plugin_slow_to_tell_its_options_is_refused(
    directory: Path, make_plugin: MakePlugin
) -> None:
    async with EmbeddedKubelet(directory, dial_timeout=0.1):
        plugin = make_plugin()
        plugin.hold["options"] = asyncio.Event()
        await plugin.serve()
        assert "code = DeadlineExceeded" in await refusal(plugin)


async def test_stop_gives_up_a_registration(
    kubelet: EmbeddedKubelet, make_plugin: MakePlugin
) -> None:
    plugin = make_plugin()
    plugin.hold["options"] = asyncio.Event()
    await plugin.serve()
    registration = asyncio.create_task(register(plugin))
    await plugin.called.wait()
    async with asyncio.timeout(5):
        await kubelet.stop()
    assert not kubelet._registry._registering
    with pytest.raises(grpc.aio.AioRpcError):
        await registration
    plugin.hold["options"].set()
    await kubelet.start()
    assert not kubelet.resources
    assert not kubelet.log.registrations


async def test_a_wrong_version_and_a_wrong_name_are_refused_as_a_kubelet_words_it(
    kubelet: EmbeddedKubelet, make_plugin: MakePlugin
) -> None:
    assert await refusal(make_plugin(), version="v1alpha") == (
        'requested API version "v1alpha" is not supported by kubelet. '
        'Supported version is ["v1beta1"]'
    )
    assert await refusal(make_plugin(resource="tty")) == 'the ResourceName "tty" is invalid'


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        ("usbplugin/serial", True),
        ("example.com/A_b.c-9", True),
        ("example.com/" + "n" * 63, True),
        ("example.com/" + "n" * 64, False),
        ("p" * 244 + "/n", True),
        ("p" * 245 + "/n", False),
        ("serial", False),
        ("", False),
        ("/serial", False),
        ("example.com/", False),
        ("a/b/c", False),
        ("kubernetes.io/serial", False),
        ("node.kubernetes.io/serial", False),
        ("kubernetes.io.example.com/serial", True),
        ("requests.example.com/serial", False),
        ("Example.com/serial", False),
        ("example_com/serial", False),
        ("example.com/-serial", False),
        ("example.com/serial\n", False),
    ],
)
def test_resource_names(name: str, *, valid: bool) -> None:
    assert (not resource_name_problem(name)) is valid


async def test_registrations_can_be_refused_on_demand(
    kubelet: EmbeddedKubelet, make_plugin: MakePlugin
) -> None:
    plugin = make_plugin()
    await plugin.serve()
    kubelet.refuse_registrations(2, "not now")
    assert [await refusal(plugin), await refusal(plugin)] == ["not now", "not now"]
    await register(plugin)
    assert [entry.refusal for entry in kubelet.log.registrations] == ["not now", "not now", ""]
    assert plugin.asked("options") == [[]]


async def test_a_message_replaces_the_list(kubelet: EmbeddedKubelet, plugin: Plugin) -> None:
    node = v1beta1.TopologyInfo(nodes=[v1beta1.NUMANode(ID=0), v1beta1.NUMANode(ID=1)])
    plugin.send_list(
        [
            v1beta1.Device(ID="b", health="Unhealthy"),
            v1beta1.Device(ID="d", health="Healthy", topology=node),
        ]
    )
    await kubelet.wait_healthy(TTY, {"d"})
    resource = kubelet.resource(TTY)
    assert (resource.capacity, resource.allocatable) == (2, 1)
    assert resource.devices == {
        "b": Device("b", healthy=False),
        "d": Device("d", healthy=True, numa=(0, 1)),
    }
    first, second = kubelet.log.messages
    assert [device.id for device in first.devices] == ["a", "b", "c"]
    assert second.devices == tuple(resource.devices.values())
    assert first.time < second.time < time.monotonic()


async def test_a_stream_that_ends_leaves_capacity_and_is_not_opened_again(
    kubelet: EmbeddedKubelet, plugin: Plugin
) -> None:
    plugin.end_streams()
    await kubelet.wait_for(lambda: not kubelet.resource(TTY).connected)
    resource = kubelet.resource(TTY)
    assert (resource.capacity, resource.allocatable) == (3, 0)
    (end,) = kubelet.log.stream_ends
    assert (end.resource, end.endpoint, end.reason) == (TTY, "p.sock", "EOF")
    assert len(plugin.asked("options")) == 1
    assert not plugin.streams
    await register(plugin)
    await kubelet.wait_healthy(TTY, "abc")


async def test_a_plugin_that_dies_is_like_a_stream_that_ends(
    kubelet: EmbeddedKubelet, plugin: Plugin
) -> None:
    await plugin.stop()
    await kubelet.wait_healthy(TTY, ())
    assert kubelet.resource(TTY).capacity == 3
    assert kubelet.log.stream_ends[0].reason.startswith("rpc error: code = ")


async def test_a_message_over_4_mib_ends_the_stream(
    kubelet: EmbeddedKubelet, plugin: Plugin
) -> None:
    plugin.send(**{"x" * 4 * 1024 * 1024: "Healthy"})
    await kubelet.wait_healthy(TTY, ())
    assert "code = ResourceExhausted" in kubelet.log.stream_ends[0].reason


async def test_capacity_is_kept_for_the_grace_period_only(
    directory: Path, make_plugin: MakePlugin
) -> None:
    async with EmbeddedKubelet(directory, grace_period=0.05) as kubelet:
        plugin = await registered(kubelet, make_plugin())
        container = await kubelet.run_container(TTY)
        plugin.end_streams()
        await kubelet.wait_for(lambda: TTY not in kubelet.resources)
        assert kubelet.resource(TTY).capacity == 0
        with pytest.raises(CreateContainerConfigError, match="endpoint not found in cache"):
            await container.restart()
        assert kubelet.holders == (container.holder,)


async def test_the_end_of_an_old_stream_disconnects_the_new_plugin(
    kubelet: EmbeddedKubelet, plugin: Plugin, make_plugin: MakePlugin
) -> None:
    new = await registered(kubelet, make_plugin("new.sock"))
    assert len(plugin.streams) == len(new.streams) == 1
    plugin.end_streams()
    async with asyncio.timeout(5):
        await new.stream_closed.wait()
    await kubelet.wait_for(lambda: len(kubelet.log.stream_ends) == 2)
    assert [end.endpoint for end in kubelet.log.stream_ends] == ["p.sock", "new.sock"]
    (stop,) = kubelet.log.stops
    assert (stop.resource, stop.endpoint) == (TTY, "new.sock")
    resource = kubelet.resource(TTY)
    assert (resource.connected, resource.allocatable, resource.capacity) == (False, 0, 3)
    assert kubelet.socket.is_socket()
    await register(new)
    await kubelet.wait_healthy(TTY, "abc")


async def test_the_end_of_a_stream_goes_unnoticed_after_a_failed_registration(
    kubelet: EmbeddedKubelet, plugin: Plugin, make_plugin: MakePlugin
) -> None:
    kubelet._registry._dial_timeout = 0.1
    await refusal(make_plugin("never-serves.sock"))
    plugin.end_streams()
    await kubelet.wait_for(lambda: len(kubelet.log.stream_ends) == 1)
    assert kubelet.resource(TTY).allocatable == 3
    assert (await kubelet.run_container(TTY)).device_ids == ("a",)


async def test_the_end_of_an_old_stream_fails_a_registration_that_waits_for_options(
    kubelet: EmbeddedKubelet, plugin: Plugin, make_plugin: MakePlugin
) -> None:
    new = make_plugin("new.sock")
    new.hold["options"] = asyncio.Event()
    await new.serve()
    registration = asyncio.create_task(refusal(new))
    await new.called.wait()
    plugin.end_streams()
    assert await registration == (
        "failed to get device plugin options: "
        "rpc error: code = Canceled desc = grpc: the client connection is closing"
    )
    assert (kubelet.resource(TTY).connected, kubelet.resource(TTY).capacity) == (False, 3)


async def test_the_end_of_an_old_stream_lets_dialling_go_on(
    kubelet: EmbeddedKubelet, plugin: Plugin, make_plugin: MakePlugin
) -> None:
    kubelet._registry._dial_timeout = 0.2
    with socket.socket(socket.AF_UNIX) as mute:
        mute.setblocking(False)  # noqa: FBT003 -- takes no keyword
        mute.bind(f"{plugin.directory}/new.sock")
        mute.listen()
        registration = asyncio.create_task(refusal(make_plugin("new.sock")))
        connection, _ = await asyncio.get_running_loop().sock_accept(mute)
        with connection:
            plugin.end_streams()
            await kubelet.wait_for(lambda: not kubelet.resource(TTY).connected)
            assert await registration == "failed to dial device plugin: context deadline exceeded"


async def test_a_second_instance_takes_over_and_the_first_is_not_told(
    kubelet: EmbeddedKubelet, make_plugin: MakePlugin
) -> None:
    first = await registered(kubelet, make_plugin())
    new = make_plugin("new.sock", pre_start_required=True)
    new.send(d="Healthy")
    await new.serve()
    await register(new)
    assert new.calls == [("options", []), ("registered", [])]
    await kubelet.wait_healthy(TTY, "d")
    await kubelet.run_container(TTY)
    assert (new.asked("allocate"), new.asked("pre_start")) == ([["d"]], [["d"]])
    assert first.calls == [("options", []), ("registered", [])]
    assert len(first.streams) == len(new.streams) == 1
    first.send(a="Healthy")
    await kubelet.wait_healthy(TTY, "a")
    await kubelet.run_container(TTY, pod="other")
    assert new.asked("allocate") == [["d"], ["a"]]
    assert not kubelet.log.stream_ends
    assert not kubelet.log.stops


@pytest.mark.parametrize("how", ["end_streams", "stop"])
async def test_when_the_later_instance_ends_nobody_is_registered(
    kubelet: EmbeddedKubelet, plugin: Plugin, make_plugin: MakePlugin, how: str
) -> None:
    new = await registered(kubelet, make_plugin("new.sock"))
    if how == "stop":
        await new.stop()
    else:
        new.end_streams()
    await kubelet.wait_for(lambda: not kubelet.resource(TTY).connected)
    (stop,) = kubelet.log.stops
    assert (stop.resource, stop.endpoint) == (TTY, "new.sock")
    # Whatever else happens at the kubelet, it does not return to the first one.
    await registered(kubelet, make_plugin("other.sock", "example.com/other"))
    resource = kubelet.resource(TTY)
    assert (resource.connected, resource.allocatable, resource.capacity) == (False, 0, 3)
    assert [end.endpoint for end in kubelet.log.stream_ends] == ["new.sock"]
    assert len(plugin.streams) == 1
    assert len(plugin.asked("options")) == 1
    with pytest.raises(UnexpectedAdmissionError, match="no healthy devices present"):
        await kubelet.run_container(TTY)
    await register(plugin)
    await kubelet.wait_healthy(TTY, "abc")
    await kubelet.run_container(TTY)
    assert plugin.asked("allocate") == [["a"]]


async def test_an_older_instances_devices_count_and_cannot_be_had(
    kubelet: EmbeddedKubelet, plugin: Plugin, make_plugin: MakePlugin
) -> None:
    new = await registered(kubelet, make_plugin("new.sock", pre_start_required=True))
    container = await kubelet.run_container(TTY, pod="before")
    new.end_streams()
    await kubelet.wait_healthy(TTY, ())
    plugin.send(a="Healthy", b="Healthy", c="Unhealthy")
    await kubelet.wait_healthy(TTY, "ab")
    resource = kubelet.resource(TTY)
    assert (resource.connected, resource.allocatable, resource.capacity) == (False, 2, 3)
    for device_ids in ((), ("b",)):
        with pytest.raises(UnexpectedAdmissionError) as admission:
            await kubelet.run_container(TTY, device_ids=device_ids)
        assert str(admission.value) == (
            "Allocate failed due to endpoint example.com/tty has been stopped, which is unexpected"
        )
        assert admission.value.code is None
    with pytest.raises(CreateContainerConfigError) as start:
        await container.restart()
    assert str(start.value) == (
        "device plugin PreStartContainer rpc failed with err: "
        "endpoint example.com/tty has been stopped"
    )
    assert not plugin.asked("allocate")
    assert len(new.asked("allocate")) == len(new.asked("pre_start")) == 1
    assert kubelet.containers == (container,)


async def test_a_stopped_endpoint_is_not_asked_for_a_preference(
    kubelet: EmbeddedKubelet, plugin: Plugin, make_plugin: MakePlugin
) -> None:
    new = await registered(
        kubelet, make_plugin("new.sock", get_preferred_allocation_available=True)
    )
    new.end_streams()
    await kubelet.wait_healthy(TTY, ())
    plugin.send(a="Healthy", b="Healthy")
    await kubelet.wait_healthy(TTY, "ab")
    with pytest.raises(UnexpectedAdmissionError) as caught:
        await kubelet.run_container(TTY)
    assert str(caught.value) == (
        "Allocate failed due to device plugin GetPreferredAllocation rpc failed with err: "
        "endpoint example.com/tty has been stopped, which is unexpected"
    )
    assert caught.value.code is None
    assert not new.asked("prefer")


async def test_an_older_instances_message_does_not_bring_a_forgotten_resource_back(
    directory: Path, make_plugin: MakePlugin
) -> None:
    async with EmbeddedKubelet(directory, grace_period=0.05) as kubelet:
        first = await registered(kubelet, make_plugin())
        new = await registered(kubelet, make_plugin("new.sock"))
        new.end_streams()
        await kubelet.wait_for(lambda: TTY not in kubelet.resources)
        first.send(late="Healthy")
        await kubelet.wait_for(lambda: kubelet.log.messages[-1].devices[0].id == "late")
        assert TTY not in kubelet.resources
        with pytest.raises(UnexpectedAdmissionError, match="unregistered device"):
            await kubelet.run_container(TTY)
        await register(first)
        await kubelet.wait_healthy(TTY, {"late"})


async def test_an_old_stream_still_replaces_the_list(
    kubelet: EmbeddedKubelet, plugin: Plugin, make_plugin: MakePlugin
) -> None:
    await registered(kubelet, make_plugin("new.sock"))
    plugin.send(old="Healthy")
    await kubelet.wait_healthy(TTY, {"old"})
    assert kubelet.log.messages[-1].endpoint == "p.sock"


async def test_the_kubelet_can_disconnect_a_plugin(
    kubelet: EmbeddedKubelet, plugin: Plugin
) -> None:
    before = kubelet.socket.stat()
    await kubelet.disconnect(TTY)
    async with asyncio.timeout(5):
        await plugin.stream_closed.wait()
    assert kubelet.socket.stat() == before
    assert (kubelet.resource(TTY).allocatable, kubelet.resource(TTY).capacity) == (0, 3)
    with pytest.raises(EmbeddedKubeletError, match=r"no plugin is connected for example\.com/tty"):
        await kubelet.disconnect(TTY)


async def test_violations_are_recorded(
    kubelet: EmbeddedKubelet, plugin: Plugin, make_plugin: MakePlugin
) -> None:
    other = make_plugin("other.sock", "example.com/other")
    other.send_list(
        [
            v1beta1.Device(ID="x" * 63, health="Healthy"),
            v1beta1.Device(ID="y" * 64, health="Healthy"),
            v1beta1.Device(ID="b", health="Unhealthy"),
            v1beta1.Device(ID="b", health="Healthy"),
            v1beta1.Device(ID="z", health="healthy"),
        ]
    )
    await other.serve()
    await register(other)
    # None of it is refused; of two devices with one ID the last counts.
    await kubelet.wait_healthy("example.com/other", {"x" * 63, "y" * 64, "b"})
    texts = [entry.what for entry in kubelet.log.violations]
    assert len(texts) == 4
    assert texts[0].endswith("has 64 characters instead of 1 to 63")
    assert texts[1] == "device 'b' is listed twice in one message"
    assert "health is 'healthy'" in texts[2]
    assert texts[3] == "devices ['b'] are also listed by example.com/tty"
    assert {entry.resource for entry in kubelet.log.violations} == {"example.com/other"}


async def test_the_log_is_bounded_and_can_be_cleared(
    directory: Path, make_plugin: MakePlugin
) -> None:
    async with EmbeddedKubelet(directory, log_limit=2) as kubelet:
        plugin = await registered(kubelet, make_plugin())
        for number in range(5):
            plugin.send(**{f"d{number}": "Healthy"})
        await kubelet.wait_healthy(TTY, {"d4"})
        assert [message.devices[0].id for message in kubelet.log.messages] == ["d3", "d4"]
        kubelet.log.clear()
        assert not kubelet.log.messages
        assert not kubelet.log.registrations


async def test_a_container_gets_what_the_plugin_answered(
    kubelet: EmbeddedKubelet, plugin: Plugin
) -> None:
    container = await kubelet.run_container(TTY, 2, pod="p", name="c")
    assert plugin.asked("allocate") == [["a", "b"]]
    assert plugin.asked("prefer") == plugin.asked("pre_start") == []
    assert container.state is ContainerState.RUNNING
    assert [spec.host_path for spec in container.devices] == ["/x/a", "/x/b"]
    assert [(mount.host_path, mount.read_only) for mount in container.mounts] == [("/h", True)]
    assert container.envs == {"CALL": "1"}
    assert kubelet.holders == (Holder("default", "p", "c", TTY, ("a", "b")),)


async def test_held_and_unhealthy_devices_are_not_allocated(
    kubelet: EmbeddedKubelet, plugin: Plugin
) -> None:
    plugin.send(a="Unhealthy", b="Healthy", c="Healthy")
    await kubelet.wait_healthy(TTY, "bc")
    first = await kubelet.run_container(TTY, pod="first")
    second = await kubelet.run_container(TTY, pod="second")
    assert (first.device_ids, second.device_ids) == (("b",), ("c",))
    with pytest.raises(
        UnexpectedAdmissionError, match=r"unavailable for .*tty\. Requested: 1, Available: 0"
    ) as caught:
        await kubelet.run_container(TTY, pod="third")
    assert caught.value.code is None
    first.remove()
    third = await kubelet.run_container(TTY, pod="third")
    assert third.device_ids == ("b",)
    assert kubelet.containers == (second, third)


async def test_without_devices_a_pod_fails(kubelet: EmbeddedKubelet, plugin: Plugin) -> None:
    with pytest.raises(UnexpectedAdmissionError, match=r"unregistered device x\.y/z"):
        await kubelet.run_container("x.y/z", device_ids=["a"])
    plugin.end_streams()
    await kubelet.wait_healthy(TTY, ())
    with pytest.raises(UnexpectedAdmissionError, match="no healthy devices present"):
        await kubelet.run_container(TTY)
    with pytest.raises(UnexpectedAdmissionError, match="has been stopped"):
        await kubelet.run_container(TTY, device_ids=["a"])
    with pytest.raises(ValueError, match="count is 0"):
        await kubelet.run_container(TTY, 0)


async def test_a_pod_whose_allocate_is_refused_fails_and_holds_nothing(
    kubelet: EmbeddedKubelet, plugin: Plugin
) -> None:
    plugin.refuse["allocate"] = grpc.StatusCode.NOT_FOUND
    with pytest.raises(UnexpectedAdmissionError) as caught:
        await kubelet.run_container(TTY)
    assert (caught.value.code, caught.value.details) == (
        grpc.StatusCode.NOT_FOUND,
        "no allocate today",
    )
    assert str(caught.value) == (
        "Allocate failed due to rpc error: code = NotFound desc = no allocate today, "
        "which is unexpected"
    )
    assert not kubelet.containers
    assert plugin.asked("allocate") == [["a"]]


async def test_an_answer_to_allocate_is_for_one_container(
    kubelet: EmbeddedKubelet, plugin: Plugin
) -> None:
    plugin.container_answers = 0
    with pytest.raises(UnexpectedAdmissionError, match="no containers return"):
        await kubelet.run_container(TTY)
    plugin.container_answers = 2
    await kubelet.run_container(TTY)
    assert [entry.what for entry in kubelet.log.violations] == [
        "Allocate answered for 0 containers instead of 1",
        "Allocate answered for 2 containers instead of 1",
    ]


async def test_device_ids_are_allocated_whatever_they_are_unless_held(
    kubelet: EmbeddedKubelet, plugin: Plugin
) -> None:
    container = await kubelet.run_container(TTY, device_ids=["c", "unknown"])
    assert plugin.asked("allocate") == [["c", "unknown"]]
    assert container.device_ids == ("c", "unknown")
    with pytest.raises(UnexpectedAdmissionError, match=r"\['c'\]"):
        await kubelet.run_container(TTY, device_ids=["b", "c"], pod="other")
    with pytest.raises(EmbeddedKubeletError, match="default/pod/main already exists"):
        await kubelet.run_container(TTY)


async def test_preferences_are_asked_for_when_there_is_a_choice(
    kubelet: EmbeddedKubelet, make_plugin: MakePlugin
) -> None:
    plugin = await registered(kubelet, make_plugin(get_preferred_allocation_available=True))
    plugin.preferred = ["c", "gone"]
    first = await kubelet.run_container(TTY, 2, pod="first")
    assert plugin.asked("prefer") == [["a", "b", "c", "2"]]
    assert first.device_ids == ("c", "a")
    assert kubelet.log.violations[0].what == (
        "GetPreferredAllocation named unavailable devices ['gone']"
    )
    second = await kubelet.run_container(TTY, pod="second")
    assert second.device_ids == ("b",)
    assert len(plugin.asked("prefer")) == 1


async def test_a_pod_fails_when_the_plugin_has_no_preference_to_tell(
    kubelet: EmbeddedKubelet, make_plugin: MakePlugin
) -> None:
    plugin = await registered(kubelet, make_plugin(get_preferred_allocation_available=True))
    plugin.refuse["prefer"] = grpc.StatusCode.INTERNAL
    with pytest.raises(UnexpectedAdmissionError) as caught:
        await kubelet.run_container(TTY)
    assert str(caught.value) == (
        "Allocate failed due to device plugin GetPreferredAllocation rpc failed with err: "
        "rpc error: code = Internal desc = no prefer today, which is unexpected"
    )
    assert caught.value.code is grpc.StatusCode.INTERNAL
    assert not plugin.asked("allocate")


async def test_a_container_restart_replays_the_answer_and_calls_pre_start_again(
    kubelet: EmbeddedKubelet, make_plugin: MakePlugin
) -> None:
    plugin = await registered(kubelet, make_plugin(pre_start_required=True))
    container = await kubelet.run_container(TTY)
    plugin.send(a="Unhealthy")
    await kubelet.wait_healthy(TTY, ())
    await container.restart()
    assert plugin.asked("allocate") == [["a"]]
    assert plugin.asked("pre_start") == [["a"], ["a"]]
    assert (container.starts, container.envs) == (2, {"CALL": "1"})
    with pytest.raises(EmbeddedKubeletError, match="pod/main is running and cannot be started"):
        await container.start()
    container.remove()
    with pytest.raises(EmbeddedKubeletError, match="is removed"):
        await container.restart()


async def test_a_container_refused_by_pre_start_waits_until_it_is_accepted(
    kubelet: EmbeddedKubelet, make_plugin: MakePlugin
) -> None:
    plugin = await registered(kubelet, make_plugin(pre_start_required=True))
    plugin.refuse["pre_start"] = grpc.StatusCode.UNAVAILABLE
    with pytest.raises(CreateContainerConfigError) as caught:
        await kubelet.run_container(TTY)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert str(caught.value) == (
        "device plugin PreStartContainer rpc failed with err: "
        "rpc error: code = Unavailable desc = no pre_start today"
    )
    container = caught.value.container
    assert kubelet.containers == (container,)
    assert container.state is ContainerState.WAITING
    with pytest.raises(CreateContainerConfigError):
        await container.restart()
    del plugin.refuse["pre_start"]
    await container.start()
    assert (container.state, container.starts) == (ContainerState.RUNNING, 1)
    assert plugin.asked("allocate") == [["a"]]


async def test_pre_start_has_a_time_limit(directory: Path, make_plugin: MakePlugin) -> None:
    async with EmbeddedKubelet(directory, pre_start_timeout=0.1) as kubelet:
        plugin = await registered(kubelet, make_plugin(pre_start_required=True))
        plugin.hold["pre_start"] = asyncio.Event()
        with pytest.raises(CreateContainerConfigError) as caught:
            await kubelet.run_container(TTY)
        assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_container_of_a_disconnected_plugin_does_not_start(
    kubelet: EmbeddedKubelet, make_plugin: MakePlugin
) -> None:
    plugin = await registered(kubelet, make_plugin(pre_start_required=True))
    container = await kubelet.run_container(TTY)
    await kubelet.disconnect(TTY)
    with pytest.raises(CreateContainerConfigError, match="has been stopped") as caught:
        await container.restart()
    assert caught.value.code is None
    await register(plugin)
    await container.restart()
    assert container.starts == 2


async def test_a_kubelet_restart_keeps_holders_and_answers(
    kubelet: EmbeddedKubelet, make_plugin: MakePlugin
) -> None:
    plugin = await registered(kubelet, make_plugin(pre_start_required=True))
    container = await kubelet.run_container(TTY)
    await kubelet.stop()
    with pytest.raises(EmbeddedKubeletError, match="not running"):
        await container.restart()
    await kubelet.start()
    assert kubelet.holders == (container.holder,)
    assert kubelet.resource(TTY).capacity == 0
    # The plugin has not registered with this kubelet, which so does not know of its options.
    await container.start()
    assert (container.starts, container.envs) == (2, {"CALL": "1"})
    assert plugin.asked("pre_start") == [["a"]]
    again = await registered(kubelet, make_plugin("again.sock", pre_start_required=True))
    await container.restart()
    assert again.asked("pre_start") == [["a"]]
    other = await kubelet.run_container(TTY, 2, pod="other")
    assert other.device_ids == ("b", "c")
    assert again.asked("allocate") == [["b", "c"]]


def noted(kubelet: EmbeddedKubelet) -> dict[str, Replay]:
    """What the checkpoint holds, by container."""
    replays = Checkpoint(kubelet.directory / FILE_NAME).read()
    assert all(replay.is_legible for replay in replays)
    return {replay.container: replay for replay in replays}


async def test_the_checkpoint_holds_what_is_replayed(
    kubelet: EmbeddedKubelet, make_plugin: MakePlugin
) -> None:
    plugin = await registered(kubelet, make_plugin(pre_start_required=True))
    container = await kubelet.admit(TTY, 2)
    expected = Replay(
        TTY,
        ("a", "b"),
        container.pod_uid,
        "main",
        {"/dev/a": "/x/a", "/dev/b": "/x/b", "/m": "/h"},
        (),
        {"CALL": "1"},
    )
    assert noted(kubelet) == {"main": expected}
    await container.start()
    await container.restart()
    assert plugin.asked("allocate") == [["a", "b"]]
    replay = noted(kubelet)["main"]
    assert replay == expected
    assert replay.environment == container.envs
    replayed = {device.container_path: device.host_path for device in container.devices}
    replayed |= {mount.container_path: mount.host_path for mount in container.mounts}
    assert replay.host_paths == replayed


async def test_the_checkpoint_is_written_before_the_container_starts(
    kubelet: EmbeddedKubelet, make_plugin: MakePlugin
) -> None:
    plugin = await registered(kubelet, make_plugin(pre_start_required=True))
    plugin.hold["allocate"], plugin.hold["pre_start"] = asyncio.Event(), asyncio.Event()
    plugin.called.clear()
    run = asyncio.create_task(kubelet.run_container(TTY))
    await plugin.called.wait()
    assert FILE_NAME not in names(kubelet.directory)
    plugin.called.clear()
    plugin.hold["allocate"].set()
    await plugin.called.wait()
    assert set(noted(kubelet)) == {"main"}
    plugin.hold["pre_start"].set()
    await run


async def test_the_checkpoint_forgets_a_container_that_is_gone(
    kubelet: EmbeddedKubelet, plugin: Plugin
) -> None:
    containers = [await kubelet.run_container(TTY, pod="p", name=name) for name in ("c", "d")]
    other = await kubelet.run_container(TTY, pod="q", name="e")
    pods = {name: replay.pod_uid for name, replay in noted(kubelet).items()}
    assert set(pods) == {"c", "d", "e"}
    assert pods["c"] == pods["d"] != pods["e"]
    containers[0].remove()
    assert set(noted(kubelet)) == {"d", "e"}
    containers[1].remove()
    other.remove()
    assert noted(kubelet) == {}
    again = await kubelet.run_container(TTY, pod="q", name="e")
    assert again.pod_uid != pods["e"]


async def test_a_pod_that_fails_is_not_in_the_checkpoint(
    kubelet: EmbeddedKubelet, plugin: Plugin
) -> None:
    await kubelet.run_container(TTY, name="c")
    plugin.refuse["allocate"] = grpc.StatusCode.NOT_FOUND
    with pytest.raises(UnexpectedAdmissionError):
        await kubelet.run_container(TTY, name="d")
    assert set(noted(kubelet)) == {"c"}


async def test_the_checkpoint_outlives_a_kubelet(
    kubelet: EmbeddedKubelet, make_plugin: MakePlugin
) -> None:
    await registered(kubelet, make_plugin())
    first = await kubelet.run_container(TTY, name="c")
    second = await kubelet.run_container(TTY, name="d")
    before = noted(kubelet)
    await kubelet.stop()
    assert noted(kubelet) == before
    second.remove()
    assert noted(kubelet) == before  # nobody is there to write
    await kubelet.start()
    assert noted(kubelet) == {"c": before["c"]}
    (kubelet.directory / FILE_NAME).unlink()
    await kubelet.restart()  # as in another directory
    assert noted(kubelet) == {"c": before["c"]}
    await registered(kubelet, make_plugin("again.sock"))
    await kubelet.run_container(TTY, name="d")
    assert noted(kubelet)["c"] == before["c"]
    first.remove()
    assert set(noted(kubelet)) == {"d"}


async def test_the_checkpoint_has_a_kubelets_form(kubelet: EmbeddedKubelet, plugin: Plugin) -> None:
    nodes = v1beta1.TopologyInfo(nodes=[v1beta1.NUMANode(ID=0), v1beta1.NUMANode(ID=1)])
    plugin.send_list(
        [
            v1beta1.Device(ID="a", health="Healthy"),
            v1beta1.Device(ID="b", health="Healthy", topology=nodes),
            v1beta1.Device(ID="c", health="Unhealthy"),
        ]
    )
    await kubelet.wait_healthy(TTY, "ab")
    container = await kubelet.run_container(TTY, 2)
    file = kubelet.directory / FILE_NAME
    document = json.loads(file.read_bytes())
    assert document == {
        "Data": {
            "PodDeviceEntries": [
                {
                    "PodUID": container.pod_uid,
                    "ContainerName": "main",
                    "ResourceName": TTY,
                    "DeviceIDs": {"-1": ["a"], "0": ["b"], "1": ["b"]},
                    "AllocResp": base64.b64encode(container.answer.SerializeToString()).decode(),
                }
            ],
            "RegisteredDevices": {TTY: ["a", "b"]},
        },
        "Checksum": document["Checksum"],
    }
    assert file.stat().st_mode == stat.S_IFREG | 0o600
    assert noted(kubelet)["main"].device_ids == ("a", "b")
    await kubelet.restart()  # it knows of no device now, and still where these were
    document["Data"]["RegisteredDevices"][TTY] = []
    assert json.loads(file.read_bytes())["Data"] == document["Data"]
    container.remove()
    assert json.loads(file.read_bytes())["Data"]["PodDeviceEntries"] is None


async def test_the_checkpoint_is_replaced_at_once(kubelet: EmbeddedKubelet, plugin: Plugin) -> None:
    await kubelet.run_container(TTY, name="c")
    with (kubelet.directory / FILE_NAME).open("rb") as before:
        content = before.read()
        await kubelet.run_container(TTY, name="d")
        before.seek(0)
        assert before.read() == content
    assert names(kubelet.directory) == {"kubelet.sock", "p.sock", FILE_NAME}


async def test_a_pod_fails_whose_answer_cannot_be_noted(
    kubelet: EmbeddedKubelet, plugin: Plugin
) -> None:
    file = kubelet.directory / FILE_NAME
    file.mkdir()
    with pytest.raises(UnexpectedAdmissionError, match=r"failed to write checkpoint file: .*Is a"):
        await kubelet.run_container(TTY)
    assert not kubelet.containers
    file.rmdir()
    container = await kubelet.run_container(TTY)
    file.unlink()
    file.mkdir()
    container.remove()
    assert not kubelet.containers
    assert names(kubelet.directory) == {"kubelet.sock", "p.sock", FILE_NAME}


async def test_a_kubelet_may_do_without_a_checkpoint(
    directory: Path, make_plugin: MakePlugin
) -> None:
    (directory / FILE_NAME).write_text("{}")
    async with EmbeddedKubelet(directory, checkpoint=False) as kubelet:
        await registered(kubelet, make_plugin())
        container = await kubelet.run_container(TTY)
        await kubelet.restart()
        container.remove()
    assert (directory / FILE_NAME).read_text() == "{}"


async def test_a_plugin_disconnected_during_allocate_fails_the_pod(
    kubelet: EmbeddedKubelet, plugin: Plugin
) -> None:
    plugin.hold["allocate"] = asyncio.Event()
    plugin.called.clear()
    run = asyncio.create_task(kubelet.run_container(TTY))
    await plugin.called.wait()
    await kubelet.disconnect(TTY)
    with pytest.raises(UnexpectedAdmissionError) as caught:
        await run
    assert caught.value.code is grpc.StatusCode.CANCELLED


async def test_pods_are_admitted_one_at_a_time_and_can_be_given_up(
    kubelet: EmbeddedKubelet, plugin: Plugin
) -> None:
    plugin.hold["allocate"] = asyncio.Event()
    plugin.called.clear()
    first = asyncio.create_task(kubelet.run_container(TTY, pod="first"))
    await plugin.called.wait()
    second = asyncio.create_task(kubelet.run_container(TTY, pod="second"))
    plugin.send(a="Healthy", b="Healthy")
    await kubelet.wait_healthy(TTY, "ab")
    assert plugin.asked("allocate") == [["a"]]
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    plugin.hold["allocate"].set()
    assert (await second).device_ids == ("a",)


async def test_a_wait_in_vain_shows_the_state(kubelet: EmbeddedKubelet, plugin: Plugin) -> None:
    kubelet.refuse_registrations(1, "not now")
    await refusal(plugin)
    await kubelet.run_container(TTY, device_ids=["a"])
    plugin.send(a="Unhealthy")
    await kubelet.wait_healthy(TTY, ())
    with pytest.raises(TimeoutError) as caught:
        await kubelet.wait_healthy(TTY, {"z"}, within=0.01)
    assert str(caught.value) == (
        "still waiting after 0.01 s; kubelet running; "
        "example.com/tty connected, allocatable 0 of 1 [a Unhealthy]; "
        "container default/pod/main running, holds ('a',); last registration refused: not now"
    )


async def test_a_defect_in_reading_a_stream_surfaces(
    directory: Path, make_plugin: MakePlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubelet = EmbeddedKubelet(directory)
    await kubelet.start()
    plugin = await registered(kubelet, make_plugin())

    def update(*arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(kubelet._manager, "update", update)
    plugin.send(d="Healthy")
    with pytest.raises(ZeroDivisionError):
        await kubelet.wait_healthy(TTY, {"d"})
    with pytest.raises(ZeroDivisionError):
        await kubelet.stop()
    assert not kubelet.running


class Undecided(registration_rpc.RegistrationServicer):
    """A plugin that never says who it is."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.given_up = asyncio.Event()

    async def GetInfo(  # noqa: N802
        self, request: registration.InfoRequest, context: Context
    ) -> registration.PluginInfo:
        self.asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.given_up.set()
        return registration.PluginInfo()

    async def NotifyRegistrationStatus(  # noqa: N802
        self, request: registration.RegistrationStatus, context: Context
    ) -> registration.RegistrationStatusResponse:
        raise AssertionError("it has not even said who it is")


@pytest.fixture
async def undecided(directory: Path) -> AsyncIterator[Undecided]:
    """Where a plugin watcher looks first."""
    plugin = Undecided()
    server = grpc.aio.server()
    registration_rpc.add_RegistrationServicer_to_server(plugin, server)
    server.add_insecure_port(f"unix:{directory}/a-undecided.sock")
    await server.start()
    yield plugin
    await server.stop(None)


@pytest.fixture
async def watching(
    directory: Path, undecided: Undecided, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[EmbeddedKubelet]:
    """A kubelet that looks for plugins in ``directory``, and waits long for the first one."""
    monkeypatch.setattr(services, "_ASK_TIMEOUT", 60.0)
    async with EmbeddedKubelet(directory / "own", registry=directory) as kubelet:
        await undecided.asked.wait()
        yield kubelet


async def test_a_plugin_that_does_not_answer_keeps_the_watcher_from_no_other(
    watching: EmbeddedKubelet, make_plugin: MakePlugin
) -> None:
    plugin = make_plugin("b.sock")
    plugin.be_found()
    plugin.send(a="Healthy")
    await plugin.serve()
    await watching.wait_healthy(TTY, "a")


async def test_the_watcher_gives_up_a_plugin_whose_socket_has_gone(
    directory: Path, undecided: Undecided, watching: EmbeddedKubelet
) -> None:
    (directory / "a-undecided.sock").unlink()
    async with asyncio.timeout(5):
        await undecided.given_up.wait()
    assert watching.running


@pytest.mark.parametrize("whose", ["its own", "its successor's"])
async def test_the_watcher_hangs_up_when_a_socket_goes(
    directory: Path, make_plugin: MakePlugin, whose: str
) -> None:
    async with EmbeddedKubelet(directory / "own", registry=directory) as kubelet:
        for name in ("a", "b") if whose == "its successor's" else ("a",):
            plugin = make_plugin(f"{name}.sock")
            plugin.be_found()
            plugin.send(**{name: "Healthy"})
            await plugin.serve()
            await kubelet.wait_healthy(TTY, name)
        (directory / "a.sock").unlink()
        await kubelet.wait_for(lambda: not kubelet.resource(TTY).connected)
        assert kubelet.resource(TTY).healthy == frozenset()


class HardOfHearing(registration_rpc.RegistrationServicer):
    """Never confirms that it was told whether it is registered."""

    def __init__(self, *, answers: bool) -> None:
        self.told = asyncio.Event()
        self._answers = answers

    async def GetInfo(  # noqa: N802
        self, request: registration.InfoRequest, context: Context
    ) -> registration.PluginInfo:
        return registration.PluginInfo(
            type="DevicePlugin", name=TTY, supported_versions=["v1beta1"]
        )

    async def NotifyRegistrationStatus(  # noqa: N802
        self, request: registration.RegistrationStatus, context: Context
    ) -> registration.RegistrationStatusResponse:
        self.told.set()
        if self._answers:
            await context.abort(grpc.StatusCode.INTERNAL, "pardon?")
        await asyncio.Event().wait()
        return registration.RegistrationStatusResponse()


@pytest.mark.parametrize("answers", [True, False])
async def test_the_watcher_hangs_up_on_a_plugin_that_does_not_know_it_is_registered(
    directory: Path, make_plugin: MakePlugin, *, answers: bool
) -> None:
    async with EmbeddedKubelet(directory / "own", registry=directory) as kubelet:
        plugin = make_plugin()
        servicer = HardOfHearing(answers=answers)
        registration_rpc.add_RegistrationServicer_to_server(servicer, plugin._server)
        plugin.send(a="Healthy")
        await plugin.serve()
        await kubelet.wait_healthy(TTY, "a")
        await servicer.told.wait()
        (directory / "p.sock").unlink()
        async with asyncio.timeout(5):
            await plugin.stream_closed.wait()
        await kubelet.wait_for(lambda: not kubelet.resource(TTY).connected)


async def test_the_watcher_registers_no_instance_again(
    directory: Path, make_plugin: MakePlugin
) -> None:
    async with EmbeddedKubelet(directory / "own", registry=directory) as kubelet:
        plugins = []
        for name in ("a", "b"):
            plugin = make_plugin(f"{name}.sock")
            plugin.be_found()
            plugin.send(**{name: "Healthy"})
            await plugin.serve()
            await kubelet.wait_healthy(TTY, name)
            plugins.append(plugin)
        first, new = plugins
        (directory / "b.sock").unlink()
        async with asyncio.timeout(5):
            await new.stream_closed.wait()
        await kubelet.wait_for(lambda: len(kubelet.log.stream_ends) == 1)
        other = make_plugin("c.sock", "example.com/other")
        other.be_found()
        other.send(c="Healthy")
        await other.serve()
        await kubelet.wait_healthy("example.com/other", "c")
        resource = kubelet.resource(TTY)
        assert (resource.connected, resource.allocatable, resource.capacity) == (False, 0, 1)
        assert len(first.streams) == 1
        first.send(a="Healthy")
        await kubelet.wait_healthy(TTY, "a")
        with pytest.raises(UnexpectedAdmissionError, match=f"endpoint {TTY} has been stopped"):
            await kubelet.run_container(TTY)
        endpoints = [Path(entry.endpoint).name for entry in kubelet.log.registrations]
        assert endpoints == ["a.sock", "b.sock", "c.sock"]


async def test_the_watcher_leaves_no_meeting_behind(
    undecided: Undecided, watching: EmbeddedKubelet
) -> None:
    meetings = [task for task in asyncio.all_tasks() if "PluginWatcher._meet" in repr(task)]
    await watching.stop()
    assert [meeting.cancelled() for meeting in meetings] == [True]
    async with asyncio.timeout(5):
        await undecided.given_up.wait()


async def test_a_bug_in_registering_a_plugin_is_logged_and_the_watcher_goes_on(
    directory: Path, make_plugin: MakePlugin, caplog: pytest.LogCaptureFixture
) -> None:
    met: asyncio.Queue[str] = asyncio.Queue()

    async def register(request: v1beta1.RegisterRequest) -> str:
        met.put_nowait(request.resource_name)
        raise ZeroDivisionError

    async def hang_up(resource: str) -> None:
        raise AssertionError(f"nobody has {resource}")

    watcher = asyncio.create_task(PluginWatcher(directory, register, hang_up).run())
    for name in ("a", "b"):
        plugin = make_plugin(f"{name}.sock", f"example.com/{name}")
        plugin.be_found()
        await plugin.serve()
        async with asyncio.timeout(5):
            assert await met.get() == f"example.com/{name}"
    watcher.cancel()
    await asyncio.wait({watcher})
    assert watcher.cancelled()
    assert "registering a plugin failed" in {record.getMessage() for record in caplog.records}
