"""One resource's life with the kubelet: serve, register, be streamed from, and begin anew.

The kubelet dials once and never retries, so whatever ends a generation (a new kubelet, a lost
socket, a lost stream), the next one begins here: a new server on a new socket, then Register.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, suppress
from enum import Enum
from typing import TYPE_CHECKING, Any

import grpc

from usbplugin.api import deviceplugin_v1beta1_pb2_grpc as rpc
from usbplugin.deviceplugin.backoff import Backoff, Patience
from usbplugin.deviceplugin.service import DevicePlugin
from usbplugin.errors import KubeletError
from usbplugin.kubelet.directory import unix_target
from usbplugin.kubelet.probe import silence_of
from usbplugin.telemetry.logs import fields
from usbplugin.telemetry.observer import UNOBSERVED, Observer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from usbplugin.custody.offer import Offer
    from usbplugin.deviceplugin.service import Custody
    from usbplugin.inventory import Snapshot
    from usbplugin.kubelet.directory import Incarnation
    from usbplugin.kubelet.registration import Registrar

_log = logging.getLogger(__name__)

STREAM_TIMEOUT = 10.0
"""The kubelet opens its stream right after Register, or never: at first we wait a tenth of this."""
_STABLE_AFTER = 10.0
_STOP_GRACE = 1.0


class State(Enum):
    """Where a session stands."""

    WAITING = "waiting for the kubelet"
    REGISTERING = "registering"
    REGISTERED = "registered, no stream yet"
    STREAMING = "streaming"
    BACKING_OFF = "waiting to try again"
    CLOSED = "closed"


class Session:
    """Keeps one resource registered, through every restart of the kubelet."""

    def __init__(
        self,
        offer: Offer,
        snapshot: Snapshot,
        registrar: Registrar,
        custody: Custody,
        stream_timeout: float = STREAM_TIMEOUT,
        observer: Observer = UNOBSERVED,
    ) -> None:
        """Prepare; ``run`` does the work.

        Args:
            offer: How the resource's devices appear in containers.
            snapshot: What to stream first.
            registrar: How the kubelet comes to know of us.
            custody: Keeps what containers are given.
            stream_timeout: Seconds within which the kubelet has to open its stream.
            observer: Told of registrations, calls and messages.
        """
        self.resource = offer.resource
        self._offer = offer
        self._snapshot = snapshot
        self._registrar = registrar
        self._directory = registrar.directory
        self._custody = custody
        self._observer = observer
        self._kubelet: Incarnation | None = None
        self._socket: Path | None = None
        self._plugin: DevicePlugin | None = None
        self._wake = asyncio.Event()
        self._closing = False
        self._state = State.WAITING
        self._backoff = Backoff(registrar.longest_delay)
        self._patience = Patience(stream_timeout)

    @property
    def state(self) -> State:
        """Where it stands now."""
        return self._state

    @property
    def streams(self) -> int:
        """How many streams the kubelet has open."""
        return self._plugin.streams if self._plugin else 0

    @property
    def left_out(self) -> int:
        """How many devices the kubelet is not told of, because its list has no room for them."""
        return self._plugin.left_out if self._plugin else 0

    async def silence(self) -> str:
        """Why nobody answers on the session's own socket; empty if one does, or none has to."""
        if (socket := self._socket) is None:
            return ""
        problem = await silence_of(socket)
        return problem if socket is self._socket else ""  # a generation that has ended is silent

    def publish(self, snapshot: Snapshot, noticed: float | None = None) -> None:
        """Tell the kubelet of ``snapshot``, now or as soon as it listens.

        Args:
            snapshot: The latest.
            noticed: When a source noticed what led to it (``time.monotonic``), if one did.
        """
        self._snapshot = snapshot
        if self._plugin is not None:
            self._plugin.publish(snapshot, noticed)

    def look(self) -> None:
        """The directory has changed, or it is time to check."""
        self._wake.set()

    def close(self) -> None:
        """End the streams and make ``run`` return, its socket removed."""
        self._closing = True
        if self._plugin is not None:
            self._plugin.close()
        self._wake.set()

    async def run(self) -> None:
        """Keep the resource registered until ``close``."""
        self._directory.remove_dead_sockets(self.resource)
        while not self._closing:
            kubelet = await self._find_kubelet()
            if kubelet is None:
                break
            is_new, self._kubelet = self._kubelet not in (None, kubelet), kubelet
            if is_new:
                self._backoff.reset()
            self._observer.generation_began(self.resource, kubelet_is_new=is_new)
            try:
                await self._generation(kubelet)
            except KubeletError as error:
                self._state = State.BACKING_OFF
                delay = self._backoff.next_delay()
                _log.warning(
                    "registration failed; trying again",
                    extra=fields(resource=self.resource, reason=error, seconds=f"{delay:.2f}"),
                )
                await self._pause(delay, kubelet)
        self._state = State.CLOSED

    async def _find_kubelet(self) -> Incarnation | None:
        """Wait for kubelet.sock; None if the session was closed meanwhile."""
        said = False
        while not self._closing:
            self._wake.clear()
            if kubelet := self._registrar.kubelet():
                return kubelet
            self._state = State.WAITING
            if not said:
                said = True
                _log.info(
                    "waiting for the kubelet",
                    extra=fields(resource=self.resource, socket=self._directory.kubelet_socket),
                )
            await self._wake.wait()
        return None

    async def _generation(self, kubelet: Incarnation) -> None:
        """Serve on a new socket, register, and return once a new generation is needed."""
        path = self._directory.new_socket(self.resource)
        async with self._serving(path) as plugin:
            self._state = State.REGISTERING
            if await self._register(path, plugin, kubelet):
                await self._until_over(path, plugin, kubelet)

    async def _until_over(self, path: Path, plugin: DevicePlugin, kubelet: Incarnation) -> None:
        """Follow a registered generation, and return once a new one is needed."""
        loop = asyncio.get_running_loop()
        registered = loop.time()
        patience = self._patience.seconds
        _log.info("registered", extra=fields(resource=self.resource, socket=path.name))
        self._state = State.REGISTERED
        while not self._closing:
            self._wake.clear()
            if obstacle := self._obstacle(path, kubelet):
                return self._over(obstacle)
            age = loop.time() - registered
            if plugin.streams or plugin.has_lost_stream:
                self._patience.reset()
            if plugin.has_lost_stream:  # also if others are open: they may be a stranger's
                if age <= _STABLE_AFTER:
                    raise KubeletError("the kubelet ended its stream soon after it began")
                return self._over("the kubelet ended its stream")
            if plugin.streams:
                self._state = State.STREAMING
                if age > _STABLE_AFTER:
                    self._backoff.reset()
                await self._wake.wait()
            elif age >= patience:
                self._patience.lose()
                raise KubeletError(f"no ListAndWatch stream within {patience:.1f} s")
            else:
                await self._wait(patience - age)
        return None

    async def _register(self, path: Path, plugin: DevicePlugin, kubelet: Incarnation) -> bool:
        """Whether the kubelet has accepted us; False if the session was closed meanwhile."""
        work = asyncio.ensure_future(self._registrar.register(self.resource, path, plugin.options))
        try:
            if not await self._until_done(work, path, kubelet):
                return False
            work.result()
        except KubeletError:
            self._observer.registered(self.resource, accepted=False)
            raise
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)  # what it raised is not for anyone
        self._observer.registered(self.resource, accepted=True)
        return True

    async def _until_done(
        self, work: asyncio.Future[None], path: Path, kubelet: Incarnation
    ) -> bool:
        """Wait for ``work`` while it makes sense; False if the session was closed meanwhile.

        Raises:
            KubeletError: it cannot end well any more, and might not end for long: a dead kubelet
                does not answer, and a plugin watcher cannot find a socket that was deleted.
        """
        while not work.done():
            self._wake.clear()
            if self._closing:
                return False
            if obstacle := self._obstacle(path, kubelet):
                raise KubeletError(obstacle)
            woken = asyncio.create_task(self._wake.wait())
            awaited: set[asyncio.Future[Any]] = {work, woken}
            try:
                await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            finally:
                woken.cancel()
        return True

    def _obstacle(self, path: Path, kubelet: Incarnation) -> str:
        """Why this kubelet cannot know us by that socket any more; empty if it can."""
        if self._registrar.kubelet() != kubelet:
            return "the kubelet has gone or was restarted"
        return "" if path.exists() else "our socket was deleted"

    def _over(self, reason: str) -> None:
        _log.info("beginning a new generation", extra=fields(resource=self.resource, reason=reason))

    @asynccontextmanager
    async def _serving(self, path: Path) -> AsyncIterator[DevicePlugin]:
        """A server on ``path``; on the way out its streams are ended first, then it stops."""
        plugin = DevicePlugin(
            self._offer, self._snapshot, self._custody, self._wake.set, self._observer
        )
        server = grpc.aio.server()
        rpc.add_DevicePluginServicer_to_server(plugin, server)
        self._registrar.add_services(server, self.resource)
        try:
            server.add_insecure_port(unix_target(path))
        except RuntimeError as error:
            raise KubeletError(f"cannot serve on {path}: {error}") from error
        self._plugin = plugin  # told from here on: devices may change while the server starts
        try:
            await server.start()
            self._socket = path
            yield plugin
        finally:
            self._plugin = self._socket = None
            self._state = State.BACKING_OFF  # to stop takes a while, in which nobody is served
            plugin.close()
            await server.stop(_STOP_GRACE)
            self._directory.remove_socket(path)

    async def _pause(self, delay: float, kubelet: Incarnation) -> None:
        """Wait, but no longer than this kubelet lives."""
        loop = asyncio.get_running_loop()
        end = loop.time() + delay
        while not self._closing and self._registrar.kubelet() == kubelet:
            self._wake.clear()
            if (left := end - loop.time()) <= 0:
                return
            await self._wait(left)
        self._backoff.reset()

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
