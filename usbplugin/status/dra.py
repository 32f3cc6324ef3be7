"""What is told of the DRA front: where it stands, and what it did, as events.

It knows no front: whoever builds one says how it stands, and tells what happens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from enum import Enum

    from usbplugin.status.history import History
    from usbplugin.telemetry.dra import DraMetrics

FRONT = "DRA front"
PUBLISHER = "DRA publisher"
REAPER = "DRA claims"
PARTS = (FRONT, PUBLISHER, REAPER)
"""The names of the front's supervised parts."""


class DraView(msgspec.Struct, frozen=True):
    """Where the front stands at one moment."""

    is_registered: bool
    state: str
    """With the kubelet, in words, and why if it was refused."""
    slices: int
    """How many the API server has."""
    problem: str = ""
    """Why the API server does not know how things are; empty if it does."""
    dropped_fields: tuple[str, ...] = ()
    """What the API server does not keep."""
    taints: dict[str, tuple[str, ...]] = {}
    """By device ID, as ``unplugged:NoExecute``."""

    @property
    def detail(self) -> str:
        """In one line."""
        plural = "" if self.slices == 1 else "s"
        told = self.problem or f"{self.slices} ResourceSlice{plural} published"
        if self.dropped_fields:
            told += f"; the API server does not keep {', '.join(self.dropped_fields)}"
        return f"{self.state}; {told}"


class DraJournal:
    """Counts and records what the front does. In the event loop only."""

    def __init__(self, metrics: DraMetrics, history: History) -> None:
        """Count into ``metrics``, record into ``history``."""
        self._metrics = metrics
        self._history = history
        self._claims: dict[str, tuple[str, ...]] | None = None
        self._is_published = False

    def dra_registered(self, *, is_registered: bool) -> None:
        """Whether the kubelet has registered the driver, as of now."""
        self._metrics.dra_registered(is_registered=is_registered)

    def dra_prepared(self, outcome: Enum, seconds: float) -> None:
        """A claim was prepared, or was not."""
        self._metrics.dra_prepared(outcome, seconds)

    def dra_refused(self, claim: str, reason: str) -> None:
        """A claim was not prepared, and why."""
        self._history.note("refused", reason=f"claim {claim}: {reason.removeprefix('claim ')}")

    def dra_claims(self, number: int) -> None:
        """So many claims are prepared now."""
        self._metrics.dra_claims(number)

    def dra_published(self, slices: int, seconds: float) -> None:
        """Slices were applied, so long after the change that asked for it."""
        self._metrics.dra_published(slices, seconds)

    def dra_unpublished(self, since: float | None) -> None:
        """Since when what is published is not what is known, in Unix seconds; None if it is."""
        self._metrics.dra_unpublished(since)
        if since is None and not self._is_published:
            self._is_published = True
            self._history.note("published", reason="the API server knows the devices of this node")

    def dra_recreated(self, slice_name: str) -> None:
        """A slice had been deleted, and was made anew."""
        self._metrics.dra_recreated(slice_name)
        self._history.note("recreated", reason=f"ResourceSlice {slice_name} had been deleted")

    def dra_dropped(self, field: str) -> None:
        """The API server did not keep a field."""
        self._metrics.dra_dropped(field)

    def dra_tainted(self, device: str, resource: str, taints: tuple[str, ...]) -> None:
        """The API server has these taints of a device now, and had others before."""
        name = "tainted" if taints else "untainted"
        self._history.note(name, device=device, resource=resource, reason=", ".join(taints))

    def claims(self, prepared: Mapping[str, tuple[str, ...]]) -> None:
        """These claims are prepared now: their devices' IDs, by ``namespace/name``.

        Those of the first call were prepared in an earlier life.
        """
        known = prepared if self._claims is None else self._claims
        for claim in known.keys() - prepared.keys():
            self._note_claim("unprepared", claim, known[claim])
        for claim in prepared.keys() - known.keys():
            self._note_claim("prepared", claim, prepared[claim])
        self._claims = dict(prepared)

    def _note_claim(self, event: str, claim: str, devices: Iterable[str]) -> None:
        for device in devices:
            self._history.note(event, device=device, reason=f"claim {claim}")
