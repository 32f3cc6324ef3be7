"""What a running agent reports when asked over its Unix socket."""

from __future__ import annotations

import asyncio
import json
import os
import select
import shutil
import socket
import threading
import time
from contextlib import aclosing, asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.node import SERIAL, Node
from usbplugin.config import Config, Flapping
from usbplugin.discovery import AllPorts, Port, Post
from usbplugin.errors import DaemonError, DiscoveryError
from usbplugin.status import listeners, site
from usbplugin.status.client import Daemon
from usbplugin.telemetry.catalogue import METRICS
from usbplugin.virtual import UnexpectedAdmissionError
from usbplugin.virtual.ttys import Descriptors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from usbplugin.agent import Agent

pytestmark = pytest.mark.timeout(30)

GPS = "usb-0403:6001-GPS-A7-if00"
SENSOR = "usb-0403:6001-SENSOR-if00"
PATIENT = Config(flapping=Flapping(times=60))


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with Node() as node:
        node.plug("ttyUSB0", "GPS-A7")
        yield node


def daemon(node: Node) -> Daemon:
    return Daemon(node.places.control_socket)


@asynccontextmanager
async def answering(node: Node) -> AsyncIterator[Agent]:
    """Start an agent, and wait only until its socket answers."""
    async with node.agent() as agent:
        async with asyncio.timeout(10):
            while not await daemon(node).is_there():
                await asyncio.to_thread(os.sched_yield)
        yield agent


async def raw(node: Node, request: str) -> tuple[str, str]:
    """Head and body of the answer."""
    reader, writer = await asyncio.open_unix_connection(node.places.control_socket)
    writer.write(f"{request}\r\n\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    head, _, body = answer.decode().partition("\r\n\r\n")
    return head, body


async def metrics(node: Node) -> dict[str, float]:
    """By ``name value value...``, the values being those of the labels."""
    _, body = await raw(node, "GET /metrics HTTP/1.1")
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }


async def until(node: Node, condition: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    """The metrics, once they are as wanted."""
    async with asyncio.timeout(10):
        while not condition(found := await metrics(node)):
            await asyncio.to_thread(os.sched_yield)
    return found


async def test_ready_means_that_the_kubelet_listens(node: Node) -> None:
    await node.kubelet.stop()
    async with answering(node):
        code, document = await daemon(node).get("/readyz")
        assert code == 503
        assert isinstance(document, dict)
        assert not document["ok"]
        (session,) = [part for part in document["parts"] if part["name"] == f"session {SERIAL}"]
        assert not session["ok"]
        code, _ = await daemon(node).get("/healthz")
        assert code == 200, "a kubelet that is away is no reason to restart the plugin"
        await node.kubelet.start()
        async with asyncio.timeout(10):
            while (answer := await daemon(node).get("/readyz"))[0] != 200:
                pass
        _, document = answer
        assert isinstance(document, dict)
        assert document["ok"] is True


async def test_alive_means_that_the_plugins_own_socket_answers(node: Node) -> None:
    async with node.agent():
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        details: dict[str, str] = {}
        async with asyncio.timeout(10):
            while details.get(f"session {SERIAL}") != "streaming":
                code, document = await daemon(node).get("/healthz")
                assert code == 200
                assert isinstance(document, dict)
                details = {part["name"]: part["detail"] for part in document["parts"]}
        assert "learns about changes by inotify" in details[f"source directory:{node.device_dir}"]


class Failing:
    """A source that lists once, then fails when told to."""

    name = "failing"

    def __init__(self) -> None:
        self.fail = threading.Event()

    def run(self, post: Post) -> None:
        post(AllPorts(self.name, (), "start"))
        self.fail.wait()
        raise DiscoveryError("went blind")

    def scan(self) -> tuple[Port, ...]:
        return ()

    def stop(self) -> None:
        self.fail.set()


async def test_a_failing_source_is_reported_and_counted(node: Node) -> None:
    source = Failing()
    async with node.run_agent([source], PATIENT):
        await node.kubelet.wait_for(lambda: node.kubelet.resource(SERIAL).connected)
        found = await metrics(node)
        assert found["usbplugin_part_failures_total source failing"] == 0
        assert found["usbplugin_source_up failing"] == 1
        source.fail.set()
        await until(node, lambda m: m["usbplugin_part_failures_total source failing"] >= 2)
        await until(node, lambda m: m["usbplugin_source_up failing"] == 0)
        code, document = await daemon(node).get("/healthz")
        assert code == 503
        assert "failed, restarting: went blind" in json.dumps(document)


async def test_devices_are_listed_with_holders_and_since(node: Node) -> None:
    async with node.agent() as agent:
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        await node.kubelet.run_container(SERIAL, pod="reader")
        await node.until_held(agent, GPS)
        (row,) = await daemon(node).rows()
        assert (row["id"], row["health"], row["holders"]) == (GPS, "ready", ["default/reader/main"])
        assert str(row["since"]).endswith("Z")
        node.bus.unplug("ttyUSB0")
        await node.kubelet.wait_healthy(SERIAL, set())
        (row,) = await daemon(node).rows()
        assert (row["health"], row["serial"]) == ("unplugged", "GPS-A7")
        assert "is gone" in str(row["reason"])


async def test_devices_show_their_current_holders(node: Node) -> None:
    async with node.agent() as agent:
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        for look in (rows_say, metrics_say):
            container = await node.kubelet.run_container(SERIAL)
            await node.until_held(agent, GPS)
            assert await look(node) == 1
            container.remove()  # which nobody tells the plugin
            async with asyncio.timeout(10):
                while await look(node):
                    pass


async def rows_say(node: Node) -> int:
    """How many hold the device, by the list."""
    (row,) = await daemon(node).rows()
    return len(row["holders"])  # type: ignore[arg-type]


async def metrics_say(node: Node) -> int:
    """The same, by the metrics."""
    found = await metrics(node)
    return int(found[f"usbplugin_device_holders {SERIAL} {GPS}"])


async def test_past_events_show_that_a_pod_is_gone(node: Node) -> None:
    async with node.agent() as agent:
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        container = await node.kubelet.run_container(SERIAL)
        await node.until_held(agent, GPS)
        container.remove()
        async with asyncio.timeout(10):
            while (await daemon(node).past())[-1]["event"] != "released":
                pass


async def test_followed_events_show_that_a_pod_is_gone(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site, "_KEEP_ALIVE", 0.1)
    async with node.agent() as agent:
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        container = await node.kubelet.run_container(SERIAL)
        await node.until_held(agent, GPS)
        container.remove()
        async with aclosing(daemon(node).follow()) as events, asyncio.timeout(10):
            while (await anext(events))["event"] != "released":
                pass


async def test_a_kubelet_that_does_not_say_who_holds_what_keeps_nobody_waiting(node: Node) -> None:
    async with node.agent() as agent:
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        await node.kubelet.run_container(SERIAL, pod="reader")
        await node.until_held(agent, GPS)
        node.places.pod_resources.unlink()
        with socket.socket(socket.AF_UNIX) as deaf:
            deaf.bind(str(node.places.pod_resources))
            deaf.listen()
            async with asyncio.timeout(10):
                while not select.select([deaf], [], [], 0)[0]:
                    assert await rows_say(node) == 1
        # It was asked, and the list came before it was given up.
        assert agent.metrics.holder_queries.value("failed") == 0


async def test_a_device_known_from_its_holder_alone_is_listed_too(node: Node) -> None:
    async with node.agent():
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        await node.kubelet.run_container(SERIAL)
    node.bus.unplug("ttyUSB0")
    shutil.rmtree(node.places.state_dir)
    async with node.agent() as agent:
        await node.until_held(agent, GPS)
        (row,) = await daemon(node).rows()
        assert (row["id"], row["node"], row["health"]) == (GPS, "", "unplugged")
        assert f"usbplugin_device_holders {SERIAL} {GPS}" in await metrics(node)


async def test_following_yields_past_events_then_new_ones(node: Node) -> None:
    async with node.agent():
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        async with aclosing(daemon(node).follow()) as events:
            assert (await anext(events))["event"] == "ready"
            node.bus.unplug("ttyUSB0")
            event = await anext(events)
            assert (event["device"], event["before"], event["after"]) == (GPS, "ready", "unplugged")
        past = await daemon(node).past()
        assert [event["sequence"] for event in past] == [1, 2]


async def test_following_ends_with_the_daemon(node: Node) -> None:
    async with node.agent():
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        events = daemon(node).follow()
        await anext(events)
    with pytest.raises(DaemonError, match="has stopped"):
        await anext(events)
    assert not await daemon(node).is_there()


async def test_a_returning_follower_gets_what_it_missed(node: Node) -> None:
    accept = "Accept: text/event-stream"
    async with node.agent():
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        first = await frames(node, accept, 1)
        seen = first[0].partition("\n")[0].removeprefix("id: ")
        node.bus.unplug("ttyUSB0")
        await node.kubelet.wait_healthy(SERIAL, set())
        (missed,) = await frames(node, f"{accept}\r\nLast-Event-ID: {seen}", 1)
        assert '"event": "unplugged"' in missed
        for of_another_life in ("1234-999", "nonsense", f"{seen}x", "-"):
            again = await frames(node, f"{accept}\r\nLast-Event-ID: {of_another_life}", 2)
            assert '"event": "ready"' in again[0]


async def frames(node: Node, headers: str, most: int) -> list[str]:
    """The first server-sent events."""
    reader, writer = await asyncio.open_unix_connection(node.places.control_socket)
    writer.write(f"GET /events HTTP/1.1\r\n{headers}\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"Content-Type: text/event-stream" in head
    assert await reader.readuntil(b"\n\n") == b"retry: 2000\n\n"
    found = [(await reader.readuntil(b"\n\n")).decode() for _ in range(most)]
    writer.close()
    return found


async def test_followers_are_so_many_and_no_more(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site, "MOST_FOLLOWERS", 1)
    monkeypatch.setattr(site, "_KEEP_ALIVE", 0.01)
    async with node.agent():
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        first = daemon(node).follow()
        await anext(first)
        with pytest.raises(DaemonError, match="too many listeners"):
            await anext(daemon(node).follow())
        await first.aclose()
        async with asyncio.timeout(10):
            while True:
                try:
                    await anext(daemon(node).follow())
                    break
                except DaemonError:  # that the first has gone is noticed by the next sign of life
                    await asyncio.to_thread(os.sched_yield)


@pytest.mark.parametrize("path", ["/nothing", "/devices/", "/../etc/passwd", "//metrics", "/-"])
async def test_other_paths_are_not_found(node: Node, path: str) -> None:
    async with answering(node) as agent:
        head, _ = await raw(node, f"GET {path} HTTP/1.1")
        assert head.startswith("HTTP/1.1 404 ")
        assert agent.metrics.http_requests.value("other", "404") == 1


async def test_the_metrics_tell_the_whole_story(node: Node) -> None:
    async with node.agent() as agent:
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        found = await until(
            node,
            lambda m: (
                m[f"usbplugin_registered {SERIAL}"] == 1
                and m[f"usbplugin_streams_open {SERIAL}"] == 1
                and m[f"usbplugin_devices {SERIAL} healthy ready"] == 1
            ),
        )
        for metric in METRICS:
            if metric.name.startswith("usbplugin_dra_"):
                continue  # there is no such front
            assert any(key.split(" ")[0].removesuffix("_bucket") == metric.name for key in found), (
                f"{metric.name} is not shown from the start"
            )
        assert found[f"usbplugin_devices {SERIAL} unhealthy unplugged"] == 0
        assert found[f"usbplugin_devices_left_out {SERIAL}"] == 0
        assert found[f"usbplugin_kubelet_calls_total {SERIAL} Allocate ok"] == 0
        assert found[f"usbplugin_kubelet_restarts_total {SERIAL}"] == 0
        assert found[f"usbplugin_device_replugs_total {SERIAL}"] == 0
        assert found["usbplugin_http_listening unix"] == 1
        assert found["usbplugin_http_listening tcp"] == 0
        assert found["process_resident_memory_bytes"] > 10e6
        assert 0 <= time.time() - found["process_start_time_seconds"] < 3600
        again = await metrics(node)
        assert again["process_start_time_seconds"] == found["process_start_time_seconds"]

        await node.kubelet.run_container(SERIAL)
        await node.until_held(agent, GPS)
        with pytest.raises(UnexpectedAdmissionError):
            await node.kubelet.run_container(SERIAL, pod="other", device_ids=["usb-none"])
        node.bus.unplug("ttyUSB0")
        await node.kubelet.wait_healthy(SERIAL, set())
        found = await metrics(node)
        assert found[f"usbplugin_devices_held {SERIAL} unhealthy"] == 1
        assert found[f"usbplugin_device_ready {SERIAL} {GPS}"] == 0
        node.bus.replug("ttyUSB0")
        await node.kubelet.restart()
        await node.kubelet.wait_for(lambda: node.kubelet.resource(SERIAL).connected)

        expected = {
            f"usbplugin_kubelet_restarts_total {SERIAL}": 1,
            f"usbplugin_kubelet_calls_total {SERIAL} Allocate ok": 1,
            f"usbplugin_kubelet_calls_total {SERIAL} Allocate not_found": 1,
            f"usbplugin_kubelet_calls_total {SERIAL} PreStartContainer ok": 1,
            f"usbplugin_kubelet_call_duration_seconds_count {SERIAL} Allocate": 2,
            f"usbplugin_registrations_total {SERIAL} accepted": 2,
            f"usbplugin_device_replugs_total {SERIAL}": 1,
            f"usbplugin_device_changes_total {SERIAL} unplugged": 1,
        }
        found = await until(node, lambda m: m.items() >= expected.items())
        # More of them if the kubelet was found to be away before it was back.
        assert found[f"usbplugin_session_generations_total {SERIAL}"] >= 2
        assert found[f"usbplugin_hotplug_to_stream_seconds_count {SERIAL}"] >= 1
        assert found[f"usbplugin_hotplug_to_stream_seconds_sum {SERIAL}"] < 5
        source = f"directory:{node.device_dir}"
        assert found[f"usbplugin_rescans_total {source} start"] == 1
        assert found[f"usbplugin_rescans_total {source} change"] >= 2
        assert found["usbplugin_holder_queries_total ok"] >= 1


async def test_a_refused_file_shows(node: Node) -> None:
    file = node.root / "etc" / "config.yaml"
    file.parent.mkdir()
    file.write_text("resources: [{name: usbplugin/serial}]")
    async with node.agent(config_file=str(file)):
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        for text, outcome, good in (
            ("resources: [{name: oops}]", "refused", 0),
            ("resources: [{name: usbplugin/gps}]", "applied", 1),
        ):
            new = file.with_suffix(".new")
            new.write_text(text)
            new.replace(file)
            key = f"usbplugin_config_reloads_total {outcome}"
            await until(
                node,
                lambda m, key=key, good=good: (  # type: ignore[misc]
                    m[key] >= 1 and m["usbplugin_config_last_reload_successful"] == good
                ),
            )
        await node.kubelet.wait_healthy("usbplugin/gps", {GPS})
        found = await metrics(node)
        assert found["usbplugin_devices usbplugin/gps healthy ready"] == 1
        assert f"usbplugin_devices {SERIAL} healthy ready" not in found, "a resource that is gone"


async def test_hostile_descriptors_stay_inside_their_label(node: Node) -> None:
    evil = 'x"} 1\nusbplugin_forged{a="b'
    node.bus.plug("ttyUSB1", Descriptors(serial=evil, manufacturer=evil, product="\\"))
    async with node.agent():
        await node.kubelet.wait_for(lambda: len(node.kubelet.resource(SERIAL).healthy) == 2)
        head, body = await raw(node, "GET /metrics HTTP/1.1")
        assert "text/plain; version=0.0.4" in head
        names = {family.name for family in text_string_to_metric_families(body)}
        assert "usbplugin_forged" not in names
        assert sum(line.startswith("usbplugin_device_info") for line in body.splitlines()) == 2
        assert len(await daemon(node).rows()) == 2


async def test_without_a_place_for_its_socket_the_plugin_works_all_the_same(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    (node.link_dir / "usbplugin.sock").mkdir(parents=True)
    async with node.agent() as agent:
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        assert b'usbplugin_http_listening{listener="unix"} 0' in agent.metrics.render(())
        assert not await daemon(node).is_there()
    assert (
        "cannot open the control socket; usbplugin list and events will not work" in caplog.messages
    )


async def test_an_address_that_is_taken_is_told_and_had_as_soon_as_it_is_free(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listeners, "_BETWEEN_ADDRESSES", 0.05)
    taken = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    async with taken, node.agent(http_address=("127.0.0.1", port)):
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        assert (await metrics(node))["usbplugin_http_listening tcp"] == 0
        code, document = await daemon(node).get("/readyz")
        assert code == HTTPStatus.SERVICE_UNAVAILABLE
        problem = f"127.0.0.1:{port}: Address already in use"
        assert isinstance(document, dict)
        assert {"name": "http address", "ok": False, "detail": problem} in document["parts"]
        (record,) = [r for r in caplog.records if "cannot listen on the HTTP" in r.message]
        assert record.levelname == "ERROR"
        taken.close()
        await taken.wait_closed()
        async with asyncio.timeout(10):
            while (await daemon(node).get("/readyz"))[0] != HTTPStatus.OK:
                await asyncio.to_thread(os.sched_yield)
        assert (await metrics(node))["usbplugin_http_listening tcp"] == 1


async def test_a_second_daemon_takes_the_socket_over_and_the_first_leaves_it(node: Node) -> None:
    async with node.agent() as first:
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        socket = node.places.control_socket
        inode = socket.stat().st_ino
        async with node.agent() as second:
            async with asyncio.timeout(10):
                while socket.stat().st_ino == inode:
                    await asyncio.to_thread(os.sched_yield)
            before = second.metrics.http_requests.value("/devices", "200")
            await daemon(node).rows()
            assert second.metrics.http_requests.value("/devices", "200") == before + 1
            assert first.metrics.http_requests.value("/devices", "200") == 0
        assert not node.places.control_socket.exists()
