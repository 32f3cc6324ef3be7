"""Keeps our ResourceSlices at the API server as they should be, whatever happens to them there.

Only what differs is written, and the newest state wins; nothing is listed or watched. Nothing is
written before the first ``publish``, so whoever calls that decides when enough is known.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from typing import TYPE_CHECKING

from usbplugin.dra.cluster import RefusedError
from usbplugin.dra.contracts import Publication
from usbplugin.dra.plan import Plan
from usbplugin.dra.schedule import Backoff, Bucket, Looks
from usbplugin.dra.slices import dropped_fields, slice_name
from usbplugin.errors import ApiServerError
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from usbplugin.dra.cluster import Applied, Cluster
    from usbplugin.dra.contracts import DraObserver, PublishedDevice
    from usbplugin.dra.poolfile import PoolFile
    from usbplugin.dra.slices import ResourceSlice

_log = logging.getLogger(__name__)

_DEVICE = re.compile(r"spec\.devices\[(\d+)\]")
_INVALID = 422
_MANY = 8
_AT_ONCE = 4
"""A thousand devices are some sixty slices: one after the other, they would take seconds."""
_HINTS = {
    401: "the token is not accepted: see that the pod has one that is projected and renewed",
    403: "see the ClusterRole and the ValidatingAdmissionPolicy of the dra component",
    404: "resource.k8s.io/v1 needs Kubernetes 1.34 or later, and the node's name has to be right",
    422: "see the ValidatingAdmissionPolicy of the dra component",
}


class SlicePublisher:
    """Publishes a node's devices. In the event loop only."""

    def __init__(
        self,
        cluster: Cluster,
        node: str,
        pool_file: PoolFile,
        observer: DraObserver,
        *,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with nothing to publish.

        Args:
            cluster: What the API server is asked.
            node: Our node's name.
            pool_file: Keeps how devices are divided into slices.
            observer: Told of what happens.
            clock: Seconds of the Unix epoch.
            steady: Seconds of a clock that never goes back.
        """
        self._cluster = cluster
        self._node = node
        self._pool_file = pool_file
        self._observer = observer
        self._clock = clock
        self._steady = steady
        self._plan = Plan()
        self._has_begun = False
        self._is_outdated = False
        """Whether what is wanted has to be drawn anew."""
        self._drawn_at = 0.0
        self._has_drawn = False
        """Whether that was in this pass."""
        self._is_unfinished = False
        """Whether the last pass failed."""
        self._applied: set[int] = set()
        """The slices of which this pass has heard."""
        self._looks = Looks(steady())
        self._bucket = Bucket(steady())
        self._backoff = Backoff()
        self._not_before = 0.0
        """On the steady clock: the API server is left alone until then."""
        self._node_uid = ""
        self._is_uid_old = True
        self._uids: dict[int, str] = {}
        self._leftovers_from: int | None = 0
        """From which number on slices of an earlier life may be there; None if none are."""
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        self._changed_at: float | None = None
        self._unpublished_since: float | None = clock()
        self._problem = ""
        self._dropped: set[str] = set()

    @property
    def publication(self) -> Publication:
        """How far the API server has heard of it all."""
        problem = self._problem
        if not self._has_begun:
            problem = problem or "nothing is published until every source has listed its ports"
        elif refused := self._plan.refused:
            problem = problem or f"the API server refuses {', '.join(refused)}: see the log"
        return Publication(
            self._plan.acknowledged,
            self._unpublished_since,
            problem,
            tuple(sorted(self._dropped)),
        )

    @property
    def taints(self) -> dict[str, tuple[str, ...]]:
        """The taints that the API server has, by device ID, as ``unplugged:NoExecute``."""
        return self._plan.taints

    def publish(self, devices: Sequence[PublishedDevice]) -> None:
        """These are all devices, from now on; returns at once. The newest list wins.

        Until the first call nothing is written. Order does not matter.
        """
        self._plan.want(devices)
        self._has_begun = True
        self._touch()

    def registered(self) -> None:
        """The kubelet has registered the driver: it may be about to delete our slices."""
        self._looks.restart(self._steady())
        self._is_uid_old = True
        if self._plan.keeps_taints is False:
            self._plan.keeps_taints = None  # it may be another API server by now
            self._touch()
        self._not_before = 0.0
        self._wake.set()

    def _touch(self) -> None:
        self._is_outdated = True
        if self._changed_at is None:
            self._changed_at = self._steady()
        self._wake.set()

    async def run(self) -> None:
        """Publish until cancelled."""
        self._observer.dra_unpublished(self._unpublished_since)
        while True:
            await self._wait()
            async with self._turn:
                if not self._has_begun:
                    continue  # withdrawn meanwhile
                try:
                    await self._pass()
                except ApiServerError as error:
                    self._failed(error)
                else:
                    self._succeeded()

    async def withdraw(self) -> None:
        """Delete our slices: no resource uses this front any longer.

        Raises:
            ApiServerError: it did not work.
        """
        self._has_begun = False
        self._plan.want(())
        self._is_outdated = True
        async with self._turn:
            count = self._pool_file.load().count
            for number in range(count):  # any of them may be missing
                await self._cluster.delete(slice_name(self._node, number))
            self._leftovers_from = count
            await self._delete_leftovers()
            self._plan.forget_all()
            self._uids.clear()
            self._leftovers_from = 0
            self._is_unfinished = False
            self._problem = ""
            self._tell_unpublished(is_published=True)
            _log.info("ResourceSlices deleted", extra=fields(node=self._node))

    async def _wait(self) -> None:
        """Until there is something to do, and it may be done."""
        while True:
            self._wake.clear()
            now = self._steady()
            due = self._due(now)
            if due is not None and due <= now:
                return
            try:
                async with asyncio.timeout(None if due is None else due - now):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _due(self, now: float) -> float | None:
        """When to write next, on the steady clock; None if nobody knows."""
        if not self._has_begun:
            return None
        moments = [self._looks.next]
        if self._is_outdated or self._is_unfinished:
            moments.append(now)
        if (eviction := self._plan.next_eviction(self._drawn_at)) is not None:
            moments.append(now + eviction - self._clock())
        return max(min(moments), self._not_before, self._bucket.ready_at(now))

    async def _pass(self) -> None:
        """Bring the API server up to date."""
        self._applied.clear()
        self._has_drawn = False
        if self._looks.take(self._steady()):
            self._plan.confirm()
            self._is_outdated = True  # another instance may have divided the devices anew
        if not self._node_uid:
            await self._read_node()
        while numbers := self._next_slices():
            wanted = self._plan.wanted
            await _all(self._apply(number, wanted[number]) for number in numbers)
        await self._delete_excess()
        if self._is_uid_old:
            await self._read_node()  # after the slices: an eviction does not wait for it
        if self._changed_at is not None and self._applied:
            self._observer.dra_published(len(self._applied), self._steady() - self._changed_at)

    def _next_slices(self) -> list[int]:
        """The slices to apply next, by the newest that is known: several at once if many are."""
        eviction = self._plan.next_eviction(self._drawn_at)
        is_stale = self._is_outdated or (eviction is not None and eviction <= self._clock())
        now = self._steady()
        # What changes in the middle of a burst is another burst.
        if is_stale and (not self._has_drawn or self._bucket.ready_at(now) <= now):
            self._draw()
        if changed := self._plan.changed():
            return changed[: _AT_ONCE if len(changed) >= _MANY else 1]
        number = self._plan.to_confirm()
        return [] if number is None else [number]

    def _draw(self) -> None:
        self._is_outdated = False
        self._has_drawn = True
        self._drawn_at = self._clock()
        before = self._pool_file.load()
        pool = before.arrange(self._plan.names, least_generation=int(self._drawn_at))
        if pool is not before:
            self._pool_file.save(pool)
        self._plan.draw(pool, self._node, self._node_uid, self._drawn_at)
        if self._plan.differs:
            self._bucket.take(self._steady())
            self._changed_at = self._changed_at or self._steady()
            self._tell_unpublished(is_published=False)

    async def _apply(self, number: int, wanted: ResourceSlice) -> None:
        has_taints = any(entry.taints for entry in wanted.spec.devices)
        asks = has_taints and self._plan.keeps_taints is None
        try:
            # To learn whether taints are kept: without them, an absent device would look ready.
            applied = await self._cluster.apply(wanted, dry_run=asks)
        except RefusedError as error:
            if self._leave_out(wanted, error):
                return
            raise
        self._heed_drops(wanted, applied)
        if asks:
            return
        for device, taints in self._plan.acknowledge(number, wanted):
            self._observer.dra_tainted(
                device.device.id, device.device.resource, tuple(map(str, taints))
            )
        self._applied.add(number)
        uid = applied.metadata.uid
        if self._uids.setdefault(number, uid) != uid:
            self._uids[number] = uid
            self._recreated(wanted.metadata.name)

    def _leave_out(self, wanted: ResourceSlice, error: RefusedError) -> bool:
        """Whether the API server says which devices it does not take: the others are published."""
        if error.status != _INVALID:
            return False
        named = (_DEVICE.match(path) for path in error.fields)
        names = self._plan.refuse(wanted, {int(found[1]) for found in named if found})
        for name in names:
            _log.error(
                "the API server does not take a device; it is not published",
                extra=fields(device=name, reason=error),
            )
        if names:
            self._redraw()
        return bool(names)

    def _heed_drops(self, wanted: ResourceSlice, applied: Applied) -> None:
        dropped = dropped_fields(wanted.spec.devices, applied.devices)
        for field in sorted(dropped - self._dropped):
            _log.warning(
                "the API server does not keep a field: its feature gate is off",
                extra=fields(field=field, hint=_GATES[field]),
            )
            self._observer.dra_dropped(field)
        self._dropped |= dropped
        if "taints" in dropped and self._plan.keeps_taints is not False:
            self._plan.keeps_taints = False
            self._redraw()
        elif "taints" not in dropped and any(e.taints for e in wanted.spec.devices):
            self._dropped.discard("taints")
            self._plan.keeps_taints = True

    def _redraw(self) -> None:
        """What is drawn cannot be applied: draw anew in the same burst."""
        self._is_outdated, self._has_drawn = True, False

    def _recreated(self, name: str) -> None:
        _log.warning("a ResourceSlice had been deleted; it is back", extra=fields(slice=name))
        self._observer.dra_recreated(name)
        self._is_uid_old = True
        self._plan.confirm(besides=self._applied)  # where one has gone, others may have

    async def _read_node(self) -> None:
        """Learn who owns the slices: those of a Node that was deleted are deleted too."""
        uid = await self._cluster.node_uid(self._node)
        self._is_uid_old = False
        if uid != self._node_uid:
            self._node_uid = uid
            self._is_outdated = True

    async def _delete_excess(self) -> None:
        for number in self._plan.excess:
            await self._cluster.delete(slice_name(self._node, number))
            self._plan.forget(number)
            self._uids.pop(number, None)
        if self._leftovers_from is not None:
            self._leftovers_from = len(self._plan.wanted)
            await self._delete_leftovers()

    async def _delete_leftovers(self) -> None:
        """Delete what an earlier life may have left: their names are known without a list."""
        while self._leftovers_from is not None:
            was_there = await self._cluster.delete(slice_name(self._node, self._leftovers_from))
            self._leftovers_from = self._leftovers_from + 1 if was_there else None

    def _failed(self, error: ApiServerError) -> None:
        self._is_unfinished = True
        delay = self._backoff.delay(error)
        self._not_before = self._steady() + delay
        self._tell_unpublished(is_published=False)
        hint = _HINTS.get(error.status or 0, "")
        problem = f"{error}; {hint}" if hint else str(error)
        if problem != self._problem:
            _log.warning(
                "cannot publish the devices; trying again",
                extra=fields(reason=error, hint=hint, seconds=round(delay, 2)),
            )
        self._problem = problem

    def _succeeded(self) -> None:
        self._is_unfinished = False
        self._backoff.reset()
        self._not_before = 0.0
        if self._problem:
            self._problem = ""
            _log.info("devices are published again", extra=fields(slices=self._plan.acknowledged))
            self._looks.restart(self._steady())  # nobody knows what happened meanwhile
        if not (self._is_outdated or self._plan.differs):
            self._changed_at = None
            self._tell_unpublished(is_published=True)

    def _tell_unpublished(self, *, is_published: bool) -> None:
        since = None if is_published else (self._unpublished_since or self._clock())
        if since != self._unpublished_since:
            self._unpublished_since = since
            self._observer.dra_unpublished(since)


_GATES = {
    "taints": "DRADeviceTaints: without it no pod is evicted, and absent devices are left out",
    "allowMultipleAllocations": "DRAConsumableCapacity: without it no device is shared",
}


async def _all(applications: Iterable[Awaitable[None]]) -> None:
    """Wait until all have ended.

    Raises:
        ApiServerError: one of them failed.
    """
    for outcome in await asyncio.gather(*applications, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
