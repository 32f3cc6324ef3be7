"""As much of a cluster's API server as the demo needs: a Node, claims, ResourceSlices. No TLS.

It listens on this machine alone, believes whoever asks, and keeps all in memory. There is neither a
scheduler nor an eviction controller: who uses it looks at the taints, and acts as those would.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from usbplugin.foundation.pulse import Pulse

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_SLICES = "/apis/resource.k8s.io/v1/resourceslices/"
_CLAIMS = "/apis/resource.k8s.io/v1/namespaces/"
_REASONS = {200: "OK", 201: "Created", 404: "Not Found"}

_Json = dict[str, Any]


class VirtualApiServer:
    """Answers a DRA driver. As an async context manager it starts and stops."""

    def __init__(self, node: str) -> None:
        """Know one node."""
        self._node = node
        self._node_uid = str(uuid.uuid4())
        self._slices: dict[str, _Json] = {}
        self._claims: dict[tuple[str, str], _Json] = {}
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = Pulse()
        self._versions = itertools.count(1)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        """Where it listens."""
        if self._server is None:
            raise RuntimeError("the virtual API server is not running; start it first")
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"http://{host}:{port}"

    @property
    def devices(self) -> dict[str, _Json]:
        """All published devices by name."""
        return {
            device["name"]: device
            for one in self._slices.values()
            for device in one["spec"].get("devices", ())
        }

    def effects(self, device: str) -> set[str]:
        """What a device's taints do; empty if it is not published."""
        taints = self.devices.get(device, {}).get("taints", ())
        return {taint["effect"] for taint in taints}

    def wipe(self) -> None:
        """Delete the node's slices, as a kubelet does when it starts."""
        self._slices.clear()
        self._changed.beat()

    def allocate(self, namespace: str, name: str, request: str, device: str) -> str:
        """Make a claim to which a device is allocated; returns its UID."""
        uid = str(uuid.uuid4())
        result = {"request": request, "driver": "usbplugin", "pool": self._node, "device": device}
        self._claims[namespace, name] = {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceClaim",
            "metadata": {"namespace": namespace, "name": name, "uid": uid},
            "status": {"allocation": {"devices": {"results": [result]}}},
        }
        return uid

    def delete_claim(self, namespace: str, name: str) -> None:
        """A claim is gone."""
        self._claims.pop((namespace, name), None)

    async def until(self, condition: Callable[[], bool], within: float = 10.0) -> None:
        """Wait until a condition on the slices holds.

        Raises:
            TimeoutError: it did not.
        """
        async with asyncio.timeout(within):
            while not condition():
                await self._changed.wait()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if task := asyncio.current_task():
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, target, _ = head[0].split(" ")
                length = next(
                    (int(line[15:]) for line in head if line.lower().startswith("content-length:")),
                    0,
                )
                body = await reader.readexactly(length)
                status, answer = self._answer(method, urlsplit(target).path, body)
                raw = json.dumps(answer).encode()
                writer.write(
                    f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: application/json\r\n"
                    f"Content-Length: {len(raw)}\r\n\r\n".encode()
                    + raw
                )
                await writer.drain()
        writer.close()

    def _answer(self, method: str, path: str, body: bytes) -> tuple[int, _Json]:
        found: _Json | None = None
        if path == f"/api/v1/nodes/{self._node}":
            found = {"metadata": {"name": self._node, "uid": self._node_uid}}
        elif path.startswith(_CLAIMS):
            namespace, _, name = path.removeprefix(_CLAIMS).partition("/resourceclaims/")
            found = self._claims.get((namespace, name))
        elif path.startswith(_SLICES) and method == "PATCH":
            return self._apply(path.removeprefix(_SLICES), json.loads(body))
        elif path.startswith(_SLICES) and method == "DELETE":
            found = self._slices.pop(path.removeprefix(_SLICES), None)
            self._changed.beat()
        if found is None:
            return 404, {"kind": "Status", "code": 404, "message": f"there is no {path}"}
        return 200, found

    def _apply(self, name: str, wanted: _Json) -> tuple[int, _Json]:
        before = self._slices.get(name)
        metadata = before["metadata"] if before else {"name": name, "uid": str(uuid.uuid4())}
        if before is None or before["spec"] != wanted["spec"]:
            metadata = {**metadata, "resourceVersion": str(next(self._versions))}
        self._slices[name] = {**wanted, "metadata": metadata}
        self._changed.beat()
        return (200 if before else 201), self._slices[name]
