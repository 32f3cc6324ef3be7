"""Counts what the DRA front does; there is one only while there is a front."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usbplugin.telemetry import catalogue
from usbplugin.telemetry.instruments import Counter, Histogram, Readings

if TYPE_CHECKING:
    from enum import Enum

OUTCOMES = ("prepared", "known", "refused", "failed")


class DraMetrics:
    """Counters and histograms of claims and slices. For use in the event loop only."""

    def __init__(self) -> None:
        """Start at zero, with nothing published."""
        self._prepare_seconds = Histogram(catalogue.DRA_PREPARE_SECONDS)
        self._publish_seconds = Histogram(catalogue.DRA_PUBLISH_SECONDS)
        self._recreated = Counter(catalogue.DRA_SLICES_RECREATED)
        self._dropped = Counter(catalogue.DRA_FIELDS_DROPPED)
        self._is_registered = False
        self._claims = 0
        self._unpublished_since: float | None = None
        for outcome in OUTCOMES:
            self._prepare_seconds.expect(outcome)
        self._publish_seconds.expect()
        self._recreated.expect()

    def dra_registered(self, *, is_registered: bool) -> None:
        """Whether the kubelet has registered the driver, as of now."""
        self._is_registered = is_registered

    def dra_prepared(self, outcome: Enum, seconds: float) -> None:
        """A claim was prepared, or was not."""
        self._prepare_seconds.observe(seconds, str(outcome.value))

    def dra_claims(self, number: int) -> None:
        """So many claims are prepared now."""
        self._claims = number

    def dra_published(self, slices: int, seconds: float) -> None:
        """Slices were applied, so long after the change that asked for it."""
        del slices
        self._publish_seconds.observe(seconds)

    def dra_unpublished(self, since: float | None) -> None:
        """Since when what is published is not what is known, in Unix seconds; None if it is."""
        self._unpublished_since = since

    def dra_recreated(self, slice_name: str) -> None:
        """A slice had been deleted, and was made anew."""
        del slice_name
        self._recreated.add()

    def dra_dropped(self, field: str) -> None:
        """The API server did not keep a field."""
        self._dropped.add(field)

    def instruments(self, now: float) -> list[Counter | Histogram | Readings]:
        """All of it, at ``now`` (Unix seconds)."""
        since = self._unpublished_since
        return [
            Readings(catalogue.DRA_REGISTERED, {(): int(self._is_registered)}),
            Readings(catalogue.DRA_CLAIMS, {(): self._claims}),
            Readings(
                catalogue.DRA_UNPUBLISHED, {(): 0.0 if since is None else max(now - since, 0.0)}
            ),
            self._prepare_seconds,
            self._publish_seconds,
            self._recreated,
            self._dropped,
        ]
