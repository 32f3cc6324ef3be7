"""Whether the parts of a running usbplugin are alive (liveness), and whether it serves (readiness).

Liveness is honest: it dials our own sockets as the kubelet would, and requires recent news from
each source. A missing kubelet makes us not ready, but still alive.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import msgspec

from usbplugin.deviceplugin import State
from usbplugin.discovery import Listener
from usbplugin.status import dra
from usbplugin.status.client import SESSION

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from usbplugin.deviceplugin import Session
    from usbplugin.discovery import Source
    from usbplugin.foundation.supervision import Part
    from usbplugin.status.dra import DraView

LONGEST_SILENCE = 180.0
"""Seconds; a source lists all its ports at least once a minute."""


_IN_SERVICE = (State.STREAMING, State.STANDING_BY)
"""Who stands by is as well as can be: the resource is served."""


class Verdict(msgspec.Struct, frozen=True):
    """The health of one part."""

    name: str
    ok: bool
    detail: str


class Report(msgspec.Struct, frozen=True):
    """The health of all parts."""

    verdicts: tuple[Verdict, ...]

    @property
    def ok(self) -> bool:
        """Whether all parts are healthy."""
        return all(verdict.ok for verdict in self.verdicts)

    def document(self) -> dict[str, object]:
        """The JSON document with which a probe is answered."""
        return {
            "ok": self.ok,
            "parts": [msgspec.structs.asdict(verdict) for verdict in self.verdicts],
        }


async def liveness(
    sources: Iterable[Source],
    listed_at: Mapping[str, float],
    sessions: Iterable[Session],
    parts: Mapping[str, Part],
    began: float,
    *,
    has_dra: bool = False,
) -> Report:
    """Whether every source, every session and the DRA front is alive.

    Args:
        sources: All of them.
        listed_at: When each source last listed its ports, ``time.monotonic`` seconds.
        sessions: All of them.
        parts: Their state according to the supervisor, by name.
        began: When the sources were started, ``time.monotonic`` seconds; a source that has never
            listed its ports counts as silent since then.
        has_dra: Whether there is a DRA front.
    """
    of_sources = [
        _source(s, listed_at.get(s.name), parts[source_part(s.name)], began) for s in sources
    ]
    of_sessions = [_session(s, parts[session_part(s.resource)]) for s in sessions]
    of_dra = [_running(parts[name]) for name in dra.PARTS if has_dra and name in parts]
    return Report((*of_sources, *await asyncio.gather(*of_sessions), *of_dra))


def readiness(
    sources: Iterable[Source],
    listed_at: Mapping[str, float],
    resources: Iterable[str],
    sessions: Mapping[str, Session],
    http_problem: str = "",
    *,
    serves_claims: bool = False,
    view: DraView | None = None,
) -> Report:
    """Whether every source has listed its ports, and every resource is served, by us or another.

    Args:
        sources: All of them.
        listed_at: When each source last listed its ports.
        resources: Those that the device plugin serves.
        sessions: Its sessions, by resource.
        http_problem: Why nobody listens on the HTTP address that was asked for: what nobody can
            ask is not monitored.
        serves_claims: Whether there are resources that are given out by claim.
        view: Where the DRA front stands; None if there is none.
    """
    listings = {s.name: "listed" if s.name in listed_at else "not listed yet" for s in sources}
    states = {name: sessions[name].state if name in sessions else None for name in resources}
    return Report(
        (
            *(
                Verdict(source_part(name), ok=name in listed_at, detail=detail)
                for name, detail in listings.items()
            ),
            *(
                Verdict(
                    session_part(name),
                    ok=state in _IN_SERVICE,
                    detail=state.value if state else "not started yet",
                )
                for name, state in states.items()
            ),
            *((Verdict("http address", ok=False, detail=http_problem),) if http_problem else ()),
            *([_front(view)] if serves_claims or view is not None else []),
        )
    )


def source_part(name: str) -> str:
    """A source's part name."""
    return f"source {name}"


def session_part(resource: str) -> str:
    """A session's part name."""
    return f"{SESSION}{resource}"


def learns_by(source: Source) -> str:
    """How a source learns about changes; empty if it is not running or cannot say."""
    return source.learns_by if isinstance(source, Listener) else ""


def _source(source: Source, listed_at: float | None, part: Part, began: float) -> Verdict:
    if not part.running:
        return Verdict(part.name, ok=False, detail=_failure(part))
    silent = time.monotonic() - (began if listed_at is None else listed_at)
    if listed_at is None:
        detail = f"has not listed its ports for {silent:.0f} s"
    else:
        detail = f"listed its ports {silent:.0f} s ago"
        if by := learns_by(source):
            detail += f", learns about changes by {by}"
    return Verdict(part.name, ok=silent < LONGEST_SILENCE, detail=detail)


async def _session(session: Session, part: Part) -> Verdict:
    if not part.running:
        return Verdict(part.name, ok=False, detail=_failure(part))
    problem = await session.silence()
    return Verdict(part.name, ok=not problem, detail=problem or session.state.value)


def _front(view: DraView | None) -> Verdict:
    """Whether the kubelet can have claims prepared.

    Not whether the API server knows of us: while that is away, all on this node goes on.
    """
    if view is None:
        return Verdict(dra.FRONT, ok=False, detail="not started yet")
    return Verdict(dra.FRONT, ok=view.is_registered, detail=view.detail)


def _running(part: Part) -> Verdict:
    return Verdict(part.name, ok=part.running, detail="running" if part.running else _failure(part))


def _failure(part: Part) -> str:
    return f"failed, restarting: {part.last_error}" if part.last_error else "not running"
