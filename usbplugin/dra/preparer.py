"""Prepares claims and unprepares them, and keeps their files and CDI specs true. Event loop only.

The order is kept: file, spec, answer. What ended this process in the middle is completed by the
kubelet's next Prepare. Whether a device may be given, custody decides, for both fronts.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol

from usbplugin.dra.claim import decode
from usbplugin.dra.claims import UID
from usbplugin.dra.contracts import Outcome
from usbplugin.dra.names import device_name
from usbplugin.dra.prepare import UnknownDeviceError, cdi_ids, conflict, prepared, spec
from usbplugin.dra.turns import Turns
from usbplugin.errors import ApiServerError, ClaimError
from usbplugin.foundation.pulse import Pulse
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from usbplugin.custody import Offer
    from usbplugin.custody.claims import ClaimedDevices
    from usbplugin.dra.claim import Claim
    from usbplugin.dra.claims import ClaimStore
    from usbplugin.dra.contracts import ClaimReader, ClaimRef
    from usbplugin.dra.prepare import PreparedClaim, PreparedDevice
    from usbplugin.dra.specs import ClaimSpecs
    from usbplugin.inventory import Change, Device

_log = logging.getLogger(__name__)

_RIVAL_PATIENCE = 10.0
_RIVAL_PAUSE = 0.1

Answer = list["tuple[PreparedDevice, tuple[str, ...]]"]
"""Each device of a claim, with its CDI devices."""


class Custody(Protocol):
    """What the front asks of the rest of the program."""

    @property
    def claimed(self) -> ClaimedDevices:
        """What claims have."""

    @property
    def devices(self) -> tuple[Device, ...]:
        """All devices of all resources, then those that are here for their holders alone."""

    async def grant_problem(self, devices: Sequence[Device]) -> str:
        """Why these devices are not at this moment what they are known to be; empty if they are."""


class Preparer:
    """Gives devices to claims."""

    def __init__(
        self,
        custody: Custody,
        store: ClaimStore,
        specs: ClaimSpecs,
        reader: ClaimReader,
        pool: str,
        boot: str,
        on_change: Callable[[], None] = lambda: None,
        patience: float = _RIVAL_PATIENCE,
    ) -> None:
        """Begin with what an earlier process prepared, which custody is told.

        Args:
            custody: Decides about devices.
            store: The prepared claims on disk.
            specs: Their CDI specs.
            reader: Reads claims from the API server.
            pool: This node's name.
            boot: The present boot: what was prepared before it is not any longer.
            on_change: Called whenever it has changed what is prepared, missed or wanted.
            patience: Seconds for which a device's former claim is waited for.
        """
        self._custody = custody
        self._store = store
        self._specs = specs
        self._reader = reader
        self._pool = pool
        self._boot = boot
        self._on_change = on_change
        self._patience = patience
        self._offers: dict[str, Offer] = {}
        self._claims: dict[str, PreparedClaim] = {}
        self._turns = Turns()
        self._attends = False
        self._unprepared = Pulse()
        self.missed: dict[str, None] = {}
        """The names of devices that were to be prepared, and are not known here."""
        self.urgent: set[str] = set()
        """The IDs of devices that were to be prepared, and were not there."""

    @property
    def claims(self) -> Mapping[str, PreparedClaim]:
        """What is prepared, by UID, as last read."""
        return self._claims

    def offer(self, offers: Iterable[Offer]) -> None:
        """From now on, claims may have devices of these resources, on these terms."""
        self._offers = {offer.resource: offer for offer in offers}

    def begin(self) -> None:
        """Take up what an earlier process left, before anybody is served."""
        for uid, claim in self._store.load().items():
            if claim.boot != self._boot:
                # No container of that boot runs; the kubelet has each claim prepared again.
                _log.info("claim of an earlier boot forgotten", extra=fields(claim=claim.full_name))
                self._remove(uid)
        self._store.is_disturbed()
        self._know(self._store.load())
        self._specs.keep_only(self._claims)

    def attend(self) -> None:
        """What is plugged in is known from now on: until then, specs are better left alone."""
        self._attends = True
        self.look()

    def look(self) -> None:
        """See what other instances have prepared or unprepared, and mend what was deleted."""
        if not self._attends:
            return
        if self._store.is_disturbed():
            self._know(self._store.load())
        for claim in tuple(self._claims.values()):
            self._make_true(claim)

    def make_true(self, changes: Sequence[Change]) -> None:
        """Take away the specs that these changes make untrue, and write those that are true now."""
        changed = {change.device.id for change in changes}
        for change in changes:
            if change.after is not None and change.after.is_there:
                self.urgent.discard(change.device.id)
        if not self._attends:
            return
        for claim in tuple(self._claims.values()):
            if any(one.device_id in changed for one in claim.devices):
                self._make_true(claim)

    async def prepare(self, ref: ClaimRef) -> tuple[Outcome, Answer]:
        """Give a claim its devices, or say once more what it was given.

        Raises:
            ClaimError: it cannot have them now.
            ApiServerError: nobody says what it is to have.
        """
        if not UID.fullmatch(ref.uid):
            raise ClaimError(f"claim {ref} has no UID that could be one: {ref.uid!r}")
        async with self._turns.of(ref.uid):
            self._know(self._store.load())
            if known := self._claims.get(ref.uid):
                return Outcome.KNOWN, self._once_more(known)
            claim = decode(await self._read(ref), ref)
            try:
                made = await self._give(claim)
            except UnknownDeviceError as error:
                self.missed |= dict.fromkeys(error.names)
                self._on_change()
                raise
            except ClaimError:
                self._note_absent(claim)
                raise
            _log.info(
                "claim prepared",
                extra=fields(claim=made.full_name, devices=[one.device_id for one in made.devices]),
            )
            return Outcome.PREPARED, cdi_ids(made)

    async def unprepare(self, ref: ClaimRef) -> None:
        """A claim's pod has gone: it has nothing any longer. One that is unknown has nothing.

        Raises:
            ClaimError: what it had cannot be taken away.
        """
        if not UID.fullmatch(ref.uid):
            return
        async with self._turns.of(ref.uid):
            async with self._store.locked():
                self._know(self._store.load())
                self._specs.withdraw(ref.uid)
                self._store.forget(ref.uid)
            if known := self._claims.get(ref.uid):
                self._know({u: claim for u, claim in self._claims.items() if u != ref.uid})
                _log.info("claim unprepared", extra=fields(claim=known.full_name))
            self._unprepared.beat()

    def devices_by_name(self) -> dict[str, Device]:
        """All devices, by the names that slices have for them."""
        return {device_name(device.id): device for device in self._custody.devices}

    async def _give(self, claim: Claim) -> PreparedClaim:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience
        shares = {name: offer.shares for name, offer in self._offers.items()}
        while True:
            devices = self.devices_by_name()
            made = prepared(claim, self._pool, devices, self._offers, self._boot)
            listed = [devices[one.name] for one in made.devices]
            if problem := await self._custody.grant_problem(listed):
                raise ClaimError(f"claim {made.full_name}: {problem}")
            async with self._store.locked():
                others = self._store.load()
                self._know(others)
                # Time has passed since: what is known now decides.
                devices = self.devices_by_name()
                made = prepared(claim, self._pool, devices, self._offers, self._boot)
                problem = conflict(made, others.values(), shares)
                if not problem:
                    self._keep(made, devices)
                    return made
            if loop.time() >= deadline:
                raise ClaimError(f"claim {made.full_name}: {problem}")
            await self._until_unprepared()

    async def _until_unprepared(self) -> None:
        try:
            async with asyncio.timeout(_RIVAL_PAUSE):
                await self._unprepared.wait()
        except TimeoutError:
            return  # another instance may have done it

    def _keep(self, made: PreparedClaim, devices: Mapping[str, Device]) -> None:
        """Write down what a claim is given; all of it, or nothing."""
        self._store.save(made)
        try:
            self._specs.write(made.uid, spec(made, devices))
        except ClaimError:
            self._store.forget(made.uid)
            raise
        self._know({**self._claims, made.uid: made})

    def _once_more(self, known: PreparedClaim) -> Answer:
        devices = self._devices_of(known)
        for one in known.devices:
            device = devices.get(one.name)
            if device is None or not device.health.is_there:
                self.urgent.add(one.device_id)
                self._on_change()
                why = device.reason if device else "it is not known any longer"
                raise ClaimError(f"claim {known.full_name}: {one.device_id}: {why}")
        if problem := self._problem_of(known, devices):
            raise ClaimError(f"claim {known.full_name}: {problem}")
        self._write_spec(known, devices)
        return cdi_ids(known)

    def _note_absent(self, claim: Claim) -> None:
        """Pods wait a minute and more until Prepare is tried again: have this one evicted now."""
        devices = self.devices_by_name()
        held = {one.device_id for other in self._claims.values() for one in other.devices}
        absent = {
            device.id
            for one in claim.allotted
            if (device := devices.get(one.device)) is not None
            and not device.health.is_there
            and device.id not in held
        }
        if absent:
            self.urgent |= absent
            self._on_change()

    async def _read(self, ref: ClaimRef) -> bytes:
        """What the API server says of the claim.

        Raises:
            ApiServerError: it was refused, or nobody has answered for a while.
            ClaimError: there is no such claim.
        """
        try:
            return await self._reader.claim(ref)
        except ApiServerError as error:
            if error.status == 404:  # noqa: PLR2004 -- HTTP's
                raise ClaimError(f"claim {ref} is no more: delete the pod") from error
            raise

    def _know(self, claims: Mapping[str, PreparedClaim]) -> None:
        """These are all prepared claims: tell custody how that differs from what it knows."""
        before, self._claims = self._claims, dict(claims)
        if before == self._claims:
            return
        for uid in before.keys() - claims.keys():
            self._custody.claimed.release(before[uid].full_name)
        for uid, claim in claims.items():
            if before.get(uid) == claim:
                continue
            for one in claim.devices:
                self._custody.claimed.prepare(
                    claim.full_name,
                    one.device_id,
                    one.name,
                    one.resource,
                    one.numbers,
                    one.may_have,
                )
        self._on_change()

    def _make_true(self, claim: PreparedClaim) -> None:
        """Write the claim's spec if its containers may be started, and take it away if not."""
        devices = self._devices_of(claim)
        try:
            if not self._problem_of(claim, devices):
                self._write_spec(claim, devices)
            else:
                self._specs.withdraw(claim.uid)
        except ClaimError as error:
            self._specs.complain(error)
            self._withdraw(claim.uid)

    def _problem_of(self, claim: PreparedClaim, devices: Mapping[str, Device]) -> str:
        """Why containers of the claim must not be started now; empty if they may.

        Nobody asks before they are: what the spec says is all that holds one back.
        """
        for one in claim.devices:
            if one.name not in devices or not devices[one.name].health.is_there:
                return f"{one.device_id} is not there"
            if rival := self._custody.claimed.conflict(one.device_id, claim.full_name):
                return f"{one.device_id}: {rival}"
        return ""

    def _withdraw(self, uid: str) -> None:
        """A spec that cannot be made true is taken away, if that can be done."""
        try:
            self._specs.withdraw(uid)
        except ClaimError as error:
            self._specs.complain(error)

    def _write_spec(self, claim: PreparedClaim, devices: Mapping[str, Device]) -> None:
        """Have the claim's spec tell of its devices as they are now.

        Raises:
            ClaimError: it cannot be written, or not what follows from it.
        """
        wanted = spec(claim, devices)
        # From now on, a restarted container has these numbers, and nobody tells.
        if (known := claim.restartable(devices)) != claim:
            self._store.update(known)
            self._claims[claim.uid] = known  # of which custody has seen to itself
        if not self._specs.is_kept(claim.uid, wanted):
            self._specs.write(claim.uid, wanted)

    def _devices_of(self, claim: PreparedClaim) -> dict[str, Device]:
        found = ((one.name, self._custody.claimed.find(one.device_id)) for one in claim.devices)
        return {name: device for name, device in found if device is not None}

    def _remove(self, uid: str) -> None:
        try:
            self._specs.withdraw(uid)
            self._store.forget(uid)
        except ClaimError as error:
            self._specs.complain(error)
