"""Notices that another plugin has registered one of our resources: a kubelet tells nobody of it.

The loser's stream stays open, so the kubelet is asked which devices it counts. That wakes gRPC's
threads, and is done only when strangers' sockets have come or gone, and while we are displaced.

What the loser says on its stream still counts. So if we have said something meanwhile, the answer
proves nothing, and we register again to be sure.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from usbplugin.deviceplugin.state import State
from usbplugin.errors import KubeletError
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from usbplugin.deviceplugin.session import Session
    from usbplugin.kubelet.podresources import PodResources

_log = logging.getLogger(__name__)

_DELAYS = (0.3, 1.0, 3.0, 10.0)
"""Seconds between looks after a change: a plugin may take a while to register."""
_WHILE_DISPLACED = 0.5
_SURE_AFTER = 0.2
"""Seconds after which the kubelet, asked again, has heard of what was on its way."""


class Rivals:
    """Compares what the kubelet counts with what the sessions stream."""

    def __init__(
        self,
        pod_resources: PodResources,
        sessions: Mapping[str, Session],
        strangers: Callable[[], object],
    ) -> None:
        """Ask ``pod_resources`` about ``sessions``, which is live.

        Args:
            pod_resources: The kubelet.
            sessions: By resource.
            strangers: Describes the sockets of other plugins, so that a change can be seen.
        """
        self._pod_resources = pod_resources
        self._sessions = sessions
        self._strangers = strangers
        self._seen = strangers()
        self._changed = asyncio.Event()

    def look(self) -> None:
        """The kubelet's directory may have changed."""
        seen, self._seen = self._seen, self._strangers()
        if seen != self._seen:
            self._changed.set()

    async def watch(self) -> None:
        """Look whenever there is a reason to, for ever."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            is_sure = False
            for delay in _DELAYS:
                said = {resource: _messages(s) for resource, s in self._sessions.items()}
                await self._pause(delay)
                await self._compare()
                if not is_sure:
                    is_sure = self._renew(said)
            while any(s.state is State.DISPLACED for s in self._sessions.values()):
                await self._pause(_WHILE_DISPLACED)
                await self._compare()

    def _renew(self, said: Mapping[str, int]) -> bool:
        """Register again what has said something meanwhile; whether there was any."""
        unsure = [
            session
            for resource, session in self._sessions.items()
            if session.state is State.STREAMING and _messages(session) != said.get(resource)
        ]
        for session in unsure:
            session.renew("another plugin may have registered this resource meanwhile")
        return bool(unsure)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
                await asyncio.sleep(min(seconds, _DELAYS[0]))
        self._changed.clear()

    async def _compare(self) -> None:
        suspects = await self._suspects()
        if suspects:
            await asyncio.sleep(_SURE_AFTER)
            again = await self._suspects()
            for resource, counted in suspects.items():
                if again.get(resource) == counted:
                    self._tell(self._sessions[resource], counted)
        for resource, session in self._sessions.items():
            if session.state is State.DISPLACED and resource not in suspects:
                session.renew("the kubelet does not count another plugin's devices any more")

    def _tell(self, session: Session, counted: frozenset[str]) -> None:
        if counted:
            session.displace()
        else:
            session.renew("the kubelet counts none of our devices")

    async def _suspects(self) -> dict[str, frozenset[str]]:
        """What the kubelet counts of resources of which we stream something else."""
        if not self._pod_resources.is_there:
            return {}
        try:
            counted = await self._pod_resources.allocatable()
        except KubeletError as error:
            _log.debug("the kubelet does not say what it counts", extra=fields(reason=error))
            return {}
        return {
            resource: ids
            for resource, session in self._sessions.items()
            if session.state in (State.STREAMING, State.DISPLACED)
            and session.plugin is not None
            and (ids := counted.get(resource, frozenset())) != session.plugin.healthy
        }


def _messages(session: Session) -> int:
    return session.plugin.messages if session.plugin is not None else 0
