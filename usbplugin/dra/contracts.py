"""What the two halves of the DRA front know of each other: no behaviour, no I/O.

The kubelet's side (registration, claims, health) tells the API server's side what is to be
published, and asks it for claims; it hears nothing back but what people are to be shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

import msgspec

from usbplugin.inventory import Device

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Terms(Enum):
    """On what terms a device is published, besides its health."""

    OFFERED = "offered"
    """A claim may have it; whether now, its health says."""
    HELD_ELSEWHERE = "held-elsewhere"
    """A container has it through the device plugin: no claim may have it until that ends."""
    DRAINING = "draining"
    """Its resource is being moved to the device plugin: no new claim may have it."""
    GHOST = "ghost"
    """A claim was allocated it, and nobody here knows it: published so that its pod is evicted."""


class PublishedDevice(msgspec.Struct, frozen=True):
    """One device as it is to be published."""

    name: str
    """``names.device_name`` of its ID, or of a ghost what the claim calls it."""
    device: Device
    """As the inventory describes it; a ghost's has no ports, and is unplugged."""
    since: float
    """When its health became what it is, in seconds of the Unix epoch; the same each time the same
    state is published, whatever becomes of the clock meanwhile."""
    is_unique: bool = True
    """Whether no other device has shown its serial number."""
    shares: int = 1
    """How many claims may have it at once."""
    evict_after: float | None = 5.0
    """Seconds from its unplugging until pods that hold it are evicted; None if they never are."""
    terms: Terms = Terms.OFFERED

    @property
    def is_ghost(self) -> bool:
        """Whether it is known by a claim alone."""
        return self.terms is Terms.GHOST


@dataclass(frozen=True, slots=True)
class ClaimRef:
    """A ResourceClaim, as the kubelet names it."""

    uid: str
    namespace: str
    name: str

    def __str__(self) -> str:
        """For people."""
        return f"{self.namespace}/{self.name}"


class ClaimReader(Protocol):
    """Reads claims from the API server."""

    async def claim(self, ref: ClaimRef) -> bytes:
        """The claim of that namespace and name as JSON, whatever its UID.

        Raises:
            ApiServerError: there is none (``status`` 404), it is refused (another ``status``), or
                the server did not answer (``status`` None).
        """


@dataclass(frozen=True, slots=True)
class Publication:
    """How far the API server has heard of our devices, for people."""

    slices: int = 0
    """How many are acknowledged."""
    unpublished_since: float | None = None
    """Seconds of the Unix epoch since when what is published is not what is known; None if it is.
    """
    problem: str = ""
    """Why, if something is wrong: what happened, and what to do."""
    dropped_fields: tuple[str, ...] = ()
    """What the API server did not keep of what it was sent: a feature gate is off."""


class Publisher(Protocol):
    """Keeps the API server's slices as they should be."""

    def publish(self, devices: Sequence[PublishedDevice]) -> None:
        """These are all devices, from now on; returns at once. The newest list wins.

        Until the first call nothing is written. Order does not matter.
        """

    def registered(self) -> None:
        """The kubelet has registered the driver: it may be about to delete our slices."""

    async def run(self) -> None:
        """Publish until cancelled."""

    async def withdraw(self) -> None:
        """Delete our slices: no resource uses this front any longer.

        Raises:
            ApiServerError: it did not work.
        """

    @property
    def taints(self) -> Mapping[str, tuple[str, ...]]:
        """The taints that the API server has, by device ID, as ``unplugged:NoExecute``."""

    @property
    def publication(self) -> Publication:
        """How far the API server has heard of it all."""


class Outcome(Enum):
    """What became of a Prepare."""

    PREPARED = "prepared"
    KNOWN = "known"
    """Prepared before, answered from its file."""
    REFUSED = "refused"
    """Something is not as the claim needs it."""
    FAILED = "failed"
    """The API server could not be asked, or a file could not be written."""


class DraObserver(Protocol):
    """Counts what happens."""

    def dra_registered(self, *, is_registered: bool) -> None:
        """Whether the kubelet has registered the driver, as of now."""

    def dra_prepared(self, outcome: Outcome, seconds: float) -> None:
        """A claim was prepared, or was not."""

    def dra_claims(self, number: int) -> None:
        """So many claims are prepared now."""

    def dra_published(self, slices: int, seconds: float) -> None:
        """Slices were applied, so long after the change that asked for it."""

    def dra_unpublished(self, since: float | None) -> None:
        """Since when what is published is not what is known, in Unix seconds; None if it is."""

    def dra_recreated(self, slice_name: str) -> None:
        """A slice had been deleted, and was made anew."""

    def dra_dropped(self, field: str) -> None:
        """The API server did not keep a field."""

    def dra_refused(self, claim: str, reason: str) -> None:
        """A claim, ``namespace/name``, was not prepared, and why."""

    def dra_tainted(self, device: str, resource: str, taints: tuple[str, ...]) -> None:
        """The API server has these taints of a device now, and had others before.

        Args:
            device: Its ID.
            resource: Its resource.
            taints: As ``unplugged:NoExecute``; empty if there are none any longer.
        """
