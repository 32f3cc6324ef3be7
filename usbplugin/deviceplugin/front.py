"""The device plugin front as the agent sees it: a session for each resource that is offered."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from usbplugin.deviceplugin.session import Session

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping

    from usbplugin.custody.offer import Offer
    from usbplugin.deviceplugin.service import Custody
    from usbplugin.inventory import Snapshot
    from usbplugin.kubelet import Registrar
    from usbplugin.telemetry.observer import Observer

    Supervise = Callable[[str, Callable[[], Awaitable[None]]], Coroutine[object, object, None]]
    """Runs a session, by its resource's name, until it returns by itself."""

_STOP_TIMEOUT = 3.0


class DevicePluginFront:
    """Opens, feeds and closes the sessions. In the event loop only."""

    def __init__(
        self,
        custody: Custody,
        snapshot: Callable[[str], Snapshot],
        observer: Observer,
        on_state: Callable[[], None],
    ) -> None:
        """Begin with no session.

        Args:
            custody: Keeps what containers are granted.
            snapshot: The latest snapshot of a resource.
            observer: Told of registrations, calls and messages.
            on_state: Called whenever a session's state has changed.
        """
        self._on_state = on_state
        self._custody = custody
        self._snapshot = snapshot
        self._observer = observer
        self._sessions: dict[str, Session] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def sessions(self) -> Mapping[str, Session]:
        """The open sessions by resource; the mapping is live."""
        return self._sessions

    def open(
        self,
        offers: Iterable[Offer],
        registrar: Callable[[], Registrar],
        tasks: asyncio.TaskGroup,
        supervise: Supervise,
    ) -> None:
        """Begin a session for each of these offers.

        Args:
            offers: Of resources that have no session.
            registrar: Makes a new session's way to be known to the kubelet.
            tasks: Runs the sessions.
            supervise: Keeps a session running.
        """
        for offer in offers:
            name = offer.resource
            session = Session(
                offer,
                self._snapshot(name),
                registrar(),
                self._custody,
                observer=self._observer,
                on_state=self._on_state,
            )
            self._sessions[name] = session
            self._tasks[name] = tasks.create_task(supervise(name, session.run))

    def publish(self, snapshot: Snapshot, noticed: float | None) -> None:
        """Tell the kubelet of a resource's devices, if the resource has a session."""
        if session := self._sessions.get(snapshot.resource):
            session.publish(snapshot, noticed)

    def look(self) -> None:
        """Something has changed in a directory of the kubelet's."""
        for session in self._sessions.values():
            session.look()

    async def close(self, resources: Collection[str]) -> None:
        """End these resources' sessions; one that takes more than three seconds is cut off."""
        for name in resources:
            self._sessions.pop(name).close()
        if closing := [self._tasks.pop(name) for name in resources]:
            _, late = await asyncio.wait(closing, timeout=_STOP_TIMEOUT)
            for task in late:
                task.cancel()
