"""The plugins registered with the embedded kubelet: registrations, streams, and a log of both.

This module answers Register as a kubelet does, and follows each plugin's ListAndWatch stream until
it ends. It never reopens a stream and never chooses devices.

What it does when two instances of a plugin register for one resource is what kubelets do up to 1.36
at least, which know plugins by their resource's name alone:

- The one that registered last is called. The older one is not told; its stream stays open, and each
  message on it still replaces the resource's list of devices.
- Whichever stream ends first, the resource's endpoint is stopped, and the connection to the plugin
  that registered last is closed: all devices are unhealthy, and nobody is registered. If it is the
  older one's stream that remains, its devices count again from its next message on, but nobody is
  called for them, so no pod gets any.

Kubernetes' pull request 135437, of 2026, tells instances apart by their sockets instead.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from usbplugin.kubelet.names import resource_name_problem
from usbplugin.virtual.plugin_client import (
    Device,
    EmbeddedKubeletError,
    PluginClient,
    PluginOptions,
    read_devices,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
    from usbplugin.virtual.containers import DeviceManager

API_VERSION = "v1beta1"


@dataclass(frozen=True, slots=True)
class Registration:
    """One call of Register. Times are ``time.monotonic()``, seconds."""

    time: float
    """When the request came in."""
    resource: str
    endpoint: str
    options: PluginOptions | None
    """What the plugin answered when dialled back; None if it was not, or did not answer."""
    refusal: str
    """The error returned to the plugin; empty if it was accepted."""


@dataclass(frozen=True, slots=True)
class StreamMessage:
    """One message of a ListAndWatch stream."""

    time: float
    resource: str
    endpoint: str
    devices: tuple[Device, ...]


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """The end of a ListAndWatch stream."""

    time: float
    resource: str
    endpoint: str
    reason: str


@dataclass(frozen=True, slots=True)
class EndpointStop:
    """The moment from which a plugin is not called any more: "Endpoint became unhealthy"."""

    time: float
    resource: str
    endpoint: str
    """That of the plugin, which need not be the one whose stream has ended."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A breach of the API's rules by a plugin, which a kubelet would silently accept."""

    time: float
    resource: str
    what: str


class KubeletLog:
    """What plugins did, oldest first; each list keeps the last ``limit`` entries."""

    def __init__(self, limit: int) -> None:
        self.registrations: deque[Registration] = deque(maxlen=limit)
        self.messages: deque[StreamMessage] = deque(maxlen=limit)
        self.stream_ends: deque[StreamEnd] = deque(maxlen=limit)
        self.stops: deque[EndpointStop] = deque(maxlen=limit)
        self.violations: deque[Violation] = deque(maxlen=limit)

    def clear(self) -> None:
        """Drop all entries."""
        self.registrations.clear()
        self.messages.clear()
        self.stream_ends.clear()
        self.stops.clear()
        self.violations.clear()


class PluginRegistry:
    """Keeps track of registered plugins, and informs the device manager and the log.

    Args:
        directory: where endpoints are.
        manager: told about every plugin that comes or goes, and every list of devices.
        log: where everything is logged.
        changed: called after every change.
        dial_timeout: as for ``EmbeddedKubelet``.
        grace_period: as for ``EmbeddedKubelet``.
    """

    def __init__(
        self,
        directory: Path,
        manager: DeviceManager,
        log: KubeletLog,
        changed: Callable[[], None],
        *,
        dial_timeout: float,
        grace_period: float,
    ) -> None:
        self._directory = directory
        self._manager = manager
        self._log = log
        self._changed = changed
        self._dial_timeout = dial_timeout
        self._grace_period = grace_period
        self._refusals: deque[str] = deque()
        self._registering: set[asyncio.Task[str]] = set()
        self._clients: dict[str, PluginClient] = {}
        self._open: set[PluginClient] = set()
        self._streams: set[asyncio.Task[None]] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def refuse(self, count: int, message: str) -> None:
        """Answer the next ``count`` calls of Register with this error."""
        self._refusals.extend([message] * count)

    async def register(self, request: v1beta1.RegisterRequest) -> str:
        """Register a plugin; return the error to answer with, or an empty text if accepted."""
        # In a task of its own, for close(): grpc's server does not wait for methods it cancels.
        task = asyncio.create_task(self._register(request))
        self._registering.add(task)
        task.add_done_callback(self._registering.discard)
        return await task

    async def _register(self, request: v1beta1.RegisterRequest) -> str:
        received = time.monotonic()
        options: PluginOptions | None = None
        refusal = self._complaint(request)
        if not refusal:
            try:
                options = await self._connect(request.resource_name, request.endpoint)
            except EmbeddedKubeletError as error:
                refusal = str(error)
        self._log.registrations.append(
            Registration(received, request.resource_name, request.endpoint, options, refusal)
        )
        self._changed()
        return refusal

    async def disconnect(self, resource: str) -> bool:
        """Disconnect the resource's plugin; False if there is none."""
        client = self._clients.pop(resource, None)
        if client is None:
            return False
        await self._disconnect(client)
        return True

    async def close(self) -> None:
        """Abandon pending registrations, close all connections, then act as ``raise_failure``."""
        registering = list(self._registering)
        for task in registering:
            task.cancel()
        await asyncio.gather(*registering, return_exceptions=True)
        self._clients.clear()
        for client in list(self._open):
            await self._close(client)
        streams = list(self._streams)
        await asyncio.gather(*streams, return_exceptions=True)
        self._streams.clear()
        for resource in list(self._timers):
            self._keep(resource)
        _raise_failure(streams)

    def raise_failure(self) -> None:
        """Raise whatever made reading a stream fail, if anything unexpected did."""
        _raise_failure(self._streams)

    def _complaint(self, request: v1beta1.RegisterRequest) -> str:
        if self._refusals:
            return self._refusals.popleft()
        if request.version != API_VERSION:
            return (
                f"requested API version {json.dumps(request.version)} is not supported by kubelet. "
                f'Supported version is ["{API_VERSION}"]'
            )
        if resource_name_problem(request.resource_name):
            return f"the ResourceName {json.dumps(request.resource_name)} is invalid"
        return ""

    async def _connect(self, resource: str, endpoint: str) -> PluginOptions:
        deadline = time.monotonic() + self._dial_timeout
        client = PluginClient(resource, endpoint, self._directory)
        async with AsyncExitStack() as if_it_fails:
            self._open.add(client)
            if_it_fails.push_async_callback(self._close, client)
            # An older instance of the plugin is not told, and its stream goes on.
            self._clients[resource] = client
            if_it_fails.callback(self._clients.pop, resource, None)
            await client.dial(self._dial_timeout)
            options = await client.options(deadline - time.monotonic())
            if_it_fails.pop_all()
        self._keep(resource)
        self._manager.connected(client, options)
        task = asyncio.create_task(self._follow(client), name=f"stream of {resource}")
        self._streams.add(task)
        task.add_done_callback(self._stream_done)
        return options

    def _stream_done(self, task: asyncio.Task[None]) -> None:
        # A failed task stays, for raise_failure to find.
        if task.cancelled() or task.exception() is None:
            self._streams.discard(task)
        self._changed()

    async def _follow(self, client: PluginClient) -> None:
        reason = await client.follow(partial(self._receive, client))
        self._log.stream_ends.append(
            StreamEnd(time.monotonic(), client.resource, client.endpoint, reason)
        )
        # Reproduces a kubelet bug: it looks up the plugin to disconnect by resource name. So when
        # an old instance's stream ends, the new instance is disconnected; and if a new one has
        # failed to register in the meantime, or has been disconnected itself, none is.
        current = self._clients.pop(client.resource, None)
        if current is not None:
            await self._disconnect(current)
            await self._close(client)

    async def _disconnect(self, client: PluginClient) -> None:
        name = client.resource
        if (stopped := self._manager.disconnected(name)) is not None:
            self._log.stops.append(EndpointStop(time.monotonic(), name, stopped.endpoint))
        self._keep(name)
        self._timers[name] = asyncio.get_running_loop().call_later(
            self._grace_period, self._manager.forget, name
        )
        # A plugin still being dialled is taken off the list, but then accepted all the same.
        if client.dialled:
            await self._close(client)

    async def _close(self, client: PluginClient) -> None:
        self._open.discard(client)
        await client.close()

    def _keep(self, resource: str) -> None:
        if timer := self._timers.pop(resource, None):
            timer.cancel()

    def _receive(self, client: PluginClient, message: v1beta1.ListAndWatchResponse) -> None:
        received = time.monotonic()
        devices, violations = read_devices(message)
        for other in self._manager.resources.values():
            if other.name != client.resource and (shared := devices.keys() & other.devices.keys()):
                violations.append(f"devices {sorted(shared)} are also listed by {other.name}")
        for violation in violations:
            self._log.violations.append(Violation(received, client.resource, violation))
        self._log.messages.append(
            StreamMessage(received, client.resource, client.endpoint, tuple(devices.values()))
        )
        self._manager.update(client.resource, devices)


def _raise_failure(tasks: Iterable[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            raise error
