"""A small API server for tests: real TLS and tokens, and as much of DRA as a driver meets.

It keeps nodes, claims and ResourceSlices; takes server-side apply and DELETE of slices as a real
one does, holds slices to the API's rules, and drops fields whose feature gates are off. It can be
down, hang, hang up, or answer whatever a test wants, and it evicts: ``evicting`` names the devices
whose taints drive pods away. Where it differs from a real one, it is wrong.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import ssl
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import h11

from tests.certificates import Authority
from usbplugin.dra.access import Access

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Json = dict[str, Any]

SLICES = "/apis/resource.k8s.io/v1/resourceslices/"
NODE = "node-1"
TOKEN = "token-of-the-plugin"


@dataclass(frozen=True)
class Asked:
    """A request that arrived."""

    method: str
    target: str
    at: float
    token: str
    body: Json

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query)

    @property
    def name(self) -> str:
        return unquote(self.path.rsplit("/", 1)[1])


@dataclass(frozen=True)
class Answer:
    """What the server says."""

    status: int
    body: Json = field(default_factory=dict)
    headers: tuple[tuple[str, str], ...] = ()


class HangUpError(Exception):
    """End the connection without an answer."""


class FakeApiServer:
    """Listens on 127.0.0.1 once it is started; the port stays the same over an outage."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority.new()
        self.authority.write(directory / "ca.crt")
        self.authority.certify("127.0.0.1", directory / "server.pem")
        (directory / "token").write_text(TOKEN)
        self.tokens = {TOKEN: NODE}
        """By token, the node of its pod."""
        self.nodes = {NODE: "uid-of-the-node"}
        self.allocatable = {"cpu": "4"}
        self.claims: dict[tuple[str, str], Json] = {}
        self.slices: dict[str, Json] = {}
        self.gates = {"DRADeviceTaints", "DRAConsumableCapacity"}
        self.is_reason_given = True
        """Whether the policy says ``reason: Forbidden``."""
        self.asked: list[Asked] = []
        self.writes: list[tuple[float, str]] = []
        """When slices were really changed, and which."""
        self.connections = 0
        self.interfere: Callable[[Asked], Answer | None] = lambda asked: None
        """Asked first: its answer, if any, is given in place of the right one. May hang up."""
        self.delay: Callable[[Asked], float] = lambda asked: 0.0
        """For how many seconds a request is left waiting before it is looked at."""
        self._port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)
        self._news = asyncio.Event()

    @property
    def access(self) -> Access:
        return Access("127.0.0.1", self._port, self.directory / "token", self.directory / "ca.crt")

    async def start(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.directory / "server.pem")
        self._server = await asyncio.start_server(
            self._connected, "127.0.0.1", self._port, ssl=context
        )
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """As if the machine were gone: connections end, new ones are refused."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.hang_up()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def hang_up(self) -> None:
        """End all connections."""
        for writer in self._writers:
            writer.transport.abort()

    def wipe(self) -> None:
        """As the kubelet does when it starts."""
        self.slices.clear()

    # What tests look at.

    async def until(self, is_so: Callable[[], bool], seconds: float = 10.0) -> None:
        """Wait until something is so; looked at after each request."""
        async with asyncio.timeout(seconds):
            while not is_so():
                self._news.clear()
                await self._news.wait()

    @property
    def devices(self) -> dict[str, Json]:
        """All that consumers see: of a pool that is complete, and of its newest generation."""
        pools = [one["spec"]["pool"] for one in self.slices.values()]
        newest = max((pool["generation"] for pool in pools), default=0)
        current = [
            one["spec"]
            for one in self.slices.values()
            if one["spec"]["pool"]["generation"] == newest
        ]
        if not current or len(current) != current[0]["pool"]["resourceSliceCount"]:
            return {}
        found = [device for spec in current for device in spec["devices"]]
        names = [device["name"] for device in found]
        assert len(names) == len(set(names)), "a device is in two slices"
        return {device["name"]: device for device in found}

    def taints(self, name: str) -> list[tuple[str, str]]:
        """Key and effect of a device's taints."""
        found = self.devices[name].get("taints", [])
        return [(taint["key"].partition("/")[2], taint["effect"]) for taint in found]

    @property
    def evicting(self) -> set[str]:
        """Devices from which pods are driven away now."""
        return {
            name
            for name, device in self.devices.items()
            if any(taint["effect"] == "NoExecute" for taint in device.get("taints", ()))
        }

    def count(self, method: str, path: str = "") -> int:
        return sum(a.method == method and a.path.startswith(path) for a in self.asked)

    # The server.

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        try:
            await self._serve(reader, writer)
        except (ConnectionError, HangUpError, asyncio.CancelledError, h11.RemoteProtocolError):
            pass
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        http = h11.Connection(h11.SERVER)
        while True:
            request, body = None, b""
            while not isinstance(event := http.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    data = await reader.read(65536)
                    http.receive_data(data)
                elif isinstance(event, h11.Request):
                    request = event
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                else:
                    return
            assert request is not None
            headers = {name.decode(): value.decode() for name, value in request.headers}
            asked = Asked(
                request.method.decode(),
                request.target.decode(),
                time.monotonic(),
                headers.get("authorization", "").removeprefix("Bearer "),
                json.loads(body) if body else {},
            )
            self.asked.append(asked)
            if seconds := self.delay(asked):
                await asyncio.sleep(seconds)
            try:
                answer = self.interfere(asked) or self._answer(asked)
            finally:
                self._news.set()
            raw = json.dumps(answer.body).encode()
            head = [("Content-Type", "application/json"), ("Content-Length", str(len(raw)))]
            response = h11.Response(status_code=answer.status, headers=[*head, *answer.headers])
            for piece in (response, h11.Data(data=raw), h11.EndOfMessage()):
                writer.write(http.send(piece) or b"")
            await writer.drain()
            http.start_next_cycle()

    def _answer(self, asked: Asked) -> Answer:
        if asked.token not in self.tokens:
            return status(401, "Unauthorized")
        match = re.fullmatch("/api/v1/nodes/([^/]+)", asked.path)
        if match and asked.method == "GET":
            uid = self.nodes.get(unquote(match[1]))
            node = {"metadata": {"uid": uid}, "status": {"allocatable": self.allocatable}}
            return Answer(200, node) if uid else status(404, "no such node")
        claim = re.fullmatch(
            "/apis/resource.k8s.io/v1/namespaces/([^/]+)/resourceclaims/([^/]+)", asked.path
        )
        if claim:
            found = self.claims.get((unquote(claim[1]), unquote(claim[2])))
            return Answer(200, found) if found else status(404, "no such claim")
        if asked.path.startswith(SLICES) and asked.method == "PATCH":
            return self._apply(asked)
        if asked.path.startswith(SLICES) and asked.method == "DELETE":
            return self._delete(asked)
        return status(403, f"{asked.method} {asked.path} is not in the role")

    def _apply(self, asked: Asked) -> Answer:
        node, wanted, before = self.tokens[asked.token], asked.body, self.slices.get(asked.name)
        spec = wanted["spec"]
        for one in (spec, before["spec"] if before else spec):
            if problem := policy_problem(one, node):
                return self._denied(problem)
        if faults := slice_faults(wanted):
            causes = [{"field": where, "message": what} for where, what in faults]
            text = f'ResourceSlice "{asked.name}" is invalid: {faults[0][0]}: {faults[0][1]}'
            return status(422, text, "Invalid", causes)
        kept = json.loads(json.dumps(spec))
        for device in kept["devices"]:
            if "DRADeviceTaints" not in self.gates:
                device.pop("taints", None)
            if "DRAConsumableCapacity" not in self.gates:
                device.pop("allowMultipleAllocations", None)
                for capacity in device.get("capacity", {}).values():
                    capacity.pop("requestPolicy", None)
        if before and before["spec"] == kept:
            return Answer(200, before)
        metadata = before["metadata"] if before else {"uid": f"uid-{next(self._numbers)}"}
        changed = {"metadata": {**metadata, "name": asked.name}, "spec": kept}
        if "All" not in asked.query.get("dryRun", []):
            self.slices[asked.name] = changed
            self.writes.append((time.monotonic(), asked.name))
        return Answer(200 if before else 201, changed)

    def _delete(self, asked: Asked) -> Answer:
        found = self.slices.get(asked.name)
        if found is None:
            return status(404, "no such slice", "NotFound")
        if problem := policy_problem(found["spec"], self.tokens[asked.token]):
            return self._denied(problem)
        del self.slices[asked.name]
        return Answer(200, {"kind": "Status", "status": "Success"})

    def _denied(self, text: str) -> Answer:
        text = f"ValidatingAdmissionPolicy 'usbplugin' denied request: {text}"
        if self.is_reason_given:
            return status(403, text, "Forbidden", [{"message": text}])
        return status(422, text, "Invalid", [{"message": text}])


def status(code: int, message: str, reason: str = "", causes: list[Json] | None = None) -> Answer:
    """A ``Status`` object."""
    body: Json = {"kind": "Status", "status": "Failure", "code": code, "message": message}
    body["reason"] = reason
    if causes:
        body["details"] = {"causes": causes}
    return Answer(code, body)


_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,31}")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def policy_problem(spec: Json, node: str) -> str:
    """What the manifests' policy has against a slice of a pod's on ``node``."""
    if spec["nodeName"] != node:
        return "only ResourceSlices of the node this pod runs on"
    if spec["driver"] != "usbplugin":
        return "only ResourceSlices of the driver usbplugin"
    return "" if spec["pool"]["name"] == node else "only the pool named after the node"


def slice_faults(wanted: Json) -> list[tuple[str, str]]:
    """What the API's validation has against a slice, as path and text."""
    faults = []
    spec = wanted["spec"]
    devices = spec["devices"]
    if wanted["apiVersion"] != "resource.k8s.io/v1" or wanted["kind"] != "ResourceSlice":
        faults.append(("kind", "is not a ResourceSlice"))
    if spec["pool"]["generation"] < 0 or spec["pool"]["resourceSliceCount"] < 1:
        faults.append(("spec.pool", "must be greater than zero"))
    if len(devices) > (64 if any(device.get("taints") for device in devices) else 128):
        faults.append(("spec.devices", "Too many"))
    if len({device["name"] for device in devices}) < len(devices):
        faults.append(("spec.devices", "Duplicate value"))
    for index, device in enumerate(devices):
        faults += _device_faults(device, f"spec.devices[{index}]")
    return faults


def _device_faults(device: Json, path: str) -> list[tuple[str, str]]:
    faults = []
    if not _LABEL.fullmatch(device["name"]):
        faults.append((f"{path}.name", "must be a DNS label"))
    attributes, taints = device["attributes"], device.get("taints", [])
    if len(attributes) + len(device.get("capacity", {})) > 32:
        faults.append((path, "too many attributes and capacities"))
    for name, value in attributes.items():
        if not _IDENTIFIER.fullmatch(name.rpartition("/")[2]):
            faults.append((f"{path}.attributes[{name}]", "a valid C identifier"))
        if len(value) != 1 or len(str(value.get("string", "")).encode()) > 64:
            faults.append((f"{path}.attributes[{name}].string", "may not be more than 64"))
    if len(taints) > 16:
        faults.append((f"{path}.taints", "Too many"))
    for number, taint in enumerate(taints):
        if taint["effect"] not in {"NoSchedule", "NoExecute"}:
            faults.append((f"{path}.taints[{number}].effect", "Unsupported value"))
        if not _MOMENT.fullmatch(taint["timeAdded"]):
            faults.append((f"{path}.taints[{number}].timeAdded", "is no time"))
    return faults


async def wait_until(is_so: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for what no request tells of."""
    deadline = time.monotonic() + seconds
    while not is_so() and time.monotonic() < deadline:  # noqa: ASYNC110 -- nobody tells
        await asyncio.sleep(0.005)
    assert is_so()
