"""One resource's life with the kubelet: serve, register, be streamed from, and begin anew.

The kubelet dials once and never retries, so whatever ends a generation (a new kubelet, a lost
socket, a lost stream), the next one begins here: a new server on a new socket, then Register.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from usbplugin.deviceplugin.backoff import Backoff, Loudness, Patience
from usbplugin.deviceplugin.service import DevicePlugin
from usbplugin.deviceplugin.serving import Generation, serving
from usbplugin.deviceplugin.state import State
from usbplugin.deviceplugin.waiting import LOOK_INTERVAL, Waiting
from usbplugin.errors import KubeletError
from usbplugin.kubelet.probe import silence_of
from usbplugin.kubelet.siblings import mark_registered, mark_standing_by
from usbplugin.telemetry.logs import fields
from usbplugin.telemetry.observer import UNOBSERVED, Observer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from usbplugin.custody.offer import Offer
    from usbplugin.deviceplugin.service import Custody
    from usbplugin.inventory import Snapshot
    from usbplugin.kubelet.directory import Incarnation
    from usbplugin.kubelet.registration import Registrar
    from usbplugin.kubelet.siblings import Sibling

_log = logging.getLogger(__name__)

STREAM_TIMEOUT = 10.0
"""The kubelet opens its stream right after Register, or never: at first a part of this will do."""
_STABLE_AFTER = 10.0
_TOO_SOON = 0.5
_PRECEDENCE = 0.3
"""Seconds for which whoever stood by lets newer instances be the first with a new kubelet."""


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
        on_state: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare; ``run`` does the work.

        Args:
            offer: How the resource's devices appear in containers.
            snapshot: What to stream first.
            registrar: How the kubelet comes to know of us.
            custody: Keeps what containers are given.
            stream_timeout: Seconds within which the kubelet has to open its stream.
            observer: Told of registrations, calls and messages.
            on_state: Called whenever ``state`` has changed.
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
        self._siblings = self._directory.siblings(offer.resource, self._wake.set)
        self._stood_by = False
        self._had_company = False
        self._repeats = False
        self._closing = False
        self._state = State.WAITING
        self._on_state = on_state
        self._is_displaced = False
        self._doubt = ""
        self._backoff = Backoff(registrar.longest_delay)
        self._loudness = Loudness()
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
    def plugin(self) -> DevicePlugin | None:
        """What the kubelet is served by now."""
        return self._plugin

    def displace(self) -> None:
        """Another plugin has registered the resource. Ours would only harm that one: be silent."""
        self._is_displaced = True
        self._wake.set()

    def renew(self, reason: str) -> None:
        """Register again, for the kubelet may not know us."""
        self._doubt = reason
        self._wake.set()

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
        """Keep the resource registered until ``close``, by us or by a newer instance."""
        self._directory.remove_dead_sockets(self.resource)
        try:
            await self._keep_registered()
        finally:
            self._siblings.stop()
            self._enter(State.CLOSED)

    async def _keep_registered(self) -> None:
        while kubelet := await self._find_kubelet():
            is_new, self._kubelet = self._kubelet not in (None, kubelet), kubelet
            if is_new:
                self._backoff.reset()
            if self._stood_by and is_new:
                await self._pause(_PRECEDENCE, kubelet)
            if newer := self._siblings.look(None).newer:
                await self._stand_by(newer)
                continue
            self._observer.generation_began(self.resource, kubelet_is_new=is_new)
            try:
                await self._generation(kubelet)
            except KubeletError as error:
                self._enter(State.BACKING_OFF)
                delay = self._backoff.next_delay()
                _log.log(
                    self._loudness.next_level(asyncio.get_running_loop().time()),
                    "registration failed; trying again",
                    extra=fields(resource=self.resource, reason=error, seconds=f"{delay:.2f}"),
                )
                await self._pause(delay, kubelet)

    async def _find_kubelet(self) -> Incarnation | None:
        """Wait for kubelet.sock; None if the session was closed meanwhile."""
        waiting = Waiting(self.resource, self._registrar)
        while not self._closing:
            self._wake.clear()
            if kubelet := waiting.look():
                return kubelet
            self._enter(State.WAITING)
            await self._wait(LOOK_INTERVAL)
        return None

    async def _generation(self, kubelet: Incarnation) -> None:
        """Serve on a new socket, register, and return once a new generation is needed."""
        path = self._directory.new_socket(self.resource)
        self._is_displaced, self._doubt = False, ""
        async with self._serving(path) as plugin:
            this = Generation(path, plugin, kubelet)
            self._enter(State.REGISTERING)
            self._repeats = True
            while self._repeats and await self._register(this):
                since = mark_registered(path)
                await self._custody.take_charge(self.resource)
                if newer := await self._until_over(this, since):
                    plugin.fall_silent()
                    mark_standing_by(path)
                    await self._stand_by(newer, since, lambda: self._loss(this))

    async def _until_over(self, this: Generation, since: int | None) -> tuple[Sibling, ...]:
        """Follow a registered generation, and return once that is not enough any more.

        Returns:
            Newer instances that have registered, if that is why. Else a new generation is needed,
            or, if it ``_repeats``, to register again.
        """
        loop = asyncio.get_running_loop()
        registered = loop.time()
        patience = self._patience.seconds
        _log.info("registered", extra=fields(resource=self.resource, socket=this.path.name))
        self._enter(State.REGISTERED)
        self._repeats = False
        before = self._siblings.look(since)
        self._had_company = self._stood_by or bool(before.alive)
        self._stood_by = False
        silent: frozenset[object] = frozenset()
        while not self._closing:
            self._wake.clear()
            view = self._siblings.look(since)
            if view.silent - silent:
                silent = view.silent
                this.plugin.repeat()  # their last word may have come after ours
            age = loop.time() - registered
            if reason := self._end_of(this, age) or view.harm_since(before):
                self._over(reason)
                break
            if view.newer:
                return view.newer
            if self._is_displaced:
                self._say_displaced(this.plugin)
                await self._wake.wait()
            elif this.plugin.streams:
                self._enter(State.STREAMING)
                if age > _STABLE_AFTER:
                    self._backoff.reset()
                await self._wake.wait()
            elif age >= patience:
                self._patience.lose()
                raise KubeletError(f"no ListAndWatch stream within {patience:.1f} s")
            else:
                await self._wait(patience - age)
        return ()

    def _end_of(self, this: Generation, age: float) -> str:
        """Why a generation that registered ``age`` seconds ago is over; empty if it is not.

        Raises:
            KubeletError: the kubelet has ended its stream too soon to be asked for another at once.
        """
        if obstacle := this.obstacle(self._registrar):
            return obstacle
        if this.plugin.streams or this.plugin.has_lost_stream:
            self._patience.reset()
        if this.plugin.has_lost_stream:  # also if others are open: they may be a stranger's
            if self._had_company and age > _TOO_SOON and this.plugin.begin_anew():
                # To use the socket again takes the least time: until then the resource has no
                # device, and pods that ask for one are rejected.
                self._repeats = self._registrar.can_repeat
                return "the kubelet hung up, as it does when another instance ends"
            if age <= _STABLE_AFTER:
                raise KubeletError("the kubelet ended its stream soon after it began")
            return "the kubelet ended its stream"
        return self._doubt

    def _say_displaced(self, plugin: DevicePlugin) -> None:
        if self._state is not State.DISPLACED:
            plugin.fall_silent()
            self._enter(State.DISPLACED)
            _log.error(
                "another plugin has registered this resource",
                extra=fields(resource=self.resource, hint="give one of the two another name"),
            )

    async def _stand_by(
        self,
        newer: Sequence[Sibling],
        since: int | None = None,
        loss: Callable[[], str] = lambda: "",
    ) -> None:
        """Leave the resource to newer instances until they have ended.

        Args:
            newer: Those that are registered.
            since: When a generation of ours registered whose stream is open still, if there is one.
            loss: Says why that is of no use any more; empty if it may be.
        """
        self._enter(State.STANDING_BY)
        self._stood_by = True
        sockets = [one.path.name for one in newer]
        _log.info("standing by", extra=fields(resource=self.resource, newer=sockets))
        self._custody.leave(self.resource)
        while not self._closing:
            self._wake.clear()
            if reason := loss():
                self._over(reason)
                return
            if not self._siblings.look(since).newer:
                self._over("the newer instance has ended")
                return
            await self._wake.wait()

    def _loss(self, this: Generation) -> str:
        if this.plugin.has_lost_stream:
            return "the kubelet ended its stream"
        return this.obstacle(self._registrar)

    async def _register(self, this: Generation) -> bool:
        """Whether the kubelet has accepted us; False if the session was closed meanwhile."""
        work = asyncio.ensure_future(
            self._registrar.register(self.resource, this.path, this.plugin.options)
        )
        try:
            if not await self._until_done(work, this):
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

    async def _until_done(self, work: asyncio.Future[None], this: Generation) -> bool:
        """Wait for ``work`` while it makes sense; False if the session was closed meanwhile.

        Raises:
            KubeletError: it cannot end well any more, and might not end for long: a dead kubelet
                does not answer, and a plugin watcher cannot find a socket that was deleted.
        """
        while not work.done():
            self._wake.clear()
            if self._closing:
                return False
            if obstacle := this.obstacle(self._registrar):
                raise KubeletError(obstacle)
            woken = asyncio.create_task(self._wake.wait())
            awaited: set[asyncio.Future[Any]] = {work, woken}
            try:
                await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            finally:
                woken.cancel()
        return True

    def _enter(self, state: State) -> None:
        if state is not self._state:
            self._state = state
            self._on_state()

    def _over(self, reason: str) -> None:
        event = "registering again" if self._repeats else "beginning a new generation"
        _log.info(event, extra=fields(resource=self.resource, reason=reason))

    @asynccontextmanager
    async def _serving(self, path: Path) -> AsyncIterator[DevicePlugin]:
        """A generation's plugin, told of devices from here on: they may change while it starts."""
        plugin = DevicePlugin(
            self._offer, self._snapshot, self._custody, self._wake.set, self._observer
        )
        self._plugin = plugin
        try:
            async with serving(plugin, path, self._registrar):
                self._socket = path
                try:
                    yield plugin
                finally:
                    self._plugin = self._socket = None
                    self._enter(State.BACKING_OFF)  # to stop takes a while
        finally:
            self._plugin = None

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
