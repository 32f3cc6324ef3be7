"""The composition root: builds sources, inventory and sessions, and keeps them all running.

Everything but the sources lives in one event loop; facts come in from the sources' threads, and
are turned into snapshots there.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from usbplugin.agent.config_file import configurations
from usbplugin.agent.dra import DraPart
from usbplugin.config import Registration
from usbplugin.custody import CdiDirectory, Custody, LinkDirectory, StateStore
from usbplugin.custody.holders import Holders
from usbplugin.deviceplugin import DevicePluginFront
from usbplugin.deviceplugin.rivals import Rivals
from usbplugin.discovery import AllPorts, FactQueue
from usbplugin.foundation.boot import boot_id
from usbplugin.foundation.supervision import Part, supervise
from usbplugin.foundation.title import Title
from usbplugin.foundation.workers import Workers
from usbplugin.kubelet import (
    Checkpoint,
    ClassicRegistrar,
    PluginDirectory,
    PodResources,
    WatcherRegistrar,
)
from usbplugin.kubelet.checkpoint import FILE_NAME as CHECKPOINT
from usbplugin.kubelet.siblings import Instance
from usbplugin.status.health import session_part, source_part
from usbplugin.status.journal import Journal
from usbplugin.status.listeners import Listeners
from usbplugin.status.nodefeatures import NodeFeatures
from usbplugin.status.status import Status
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
    from pathlib import Path

    from usbplugin.config import Config
    from usbplugin.custody import Offer
    from usbplugin.discovery import Fact, Source
    from usbplugin.foundation.places import Places
    from usbplugin.inventory import Change, ResourceRule, Snapshot
    from usbplugin.kubelet import Registrar
    from usbplugin.status.dra import DraView
    from usbplugin.status.listeners import Address
    from usbplugin.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)

_FIRST_SCAN_TIMEOUT = 3.0


class Agent:
    """A running usbplugin."""

    def __init__(
        self,
        config: Config,
        sources: Sequence[Source],
        places: Places,
        config_file: Path | None = None,
        http_address: Address | None = None,
        adapt: Callable[[Config], Config] = lambda config: config,
    ) -> None:
        """Put the parts together; ``run`` starts them.

        Args:
            config: What the operator wants.
            sources: Where ports are discovered; their names are unique.
            places: Where on this node things are.
            config_file: Where ``config`` came from: followed, and applied when it changes.
            http_address: Where to serve metrics and health, if anywhere.
            adapt: What flags change in whatever configuration.
        """
        self._config = adapt(config)
        self._adapt = adapt
        self._config_file = config_file
        self._sources = tuple(sources)
        self._places = places
        self._instance = Instance.begin()
        self._directory = self._sockets_in(places.kubelet_dir)
        self._helpers: list[asyncio.Task[None]] = []
        self._parts = {
            part.name: part for part in (Part(source_part(s.name)) for s in self._sources)
        }
        self._http_address = http_address
        self._journal = Journal()
        self._metrics = self._journal.metrics
        self._facts = FactQueue(self._take)
        pod_resources = PodResources(places.pod_resources, places.own_pod)
        checkpoint = Checkpoint(places.kubelet_dir / CHECKPOINT)
        workers = Workers()
        self._custody = Custody(
            config.rules(),
            config.offers(),
            config.health_policy(),
            LinkDirectory(places.link_dir),
            StateStore(places.state_dir, places.link_dir),
            CdiDirectory(places.cdi_dir),
            self._publish,
            self._changed,
            self._facts.wake_at,
            workers=workers,
            checkpoint=checkpoint,
            holders_can_tell=True,  # sooner or later: until then, what was granted counts as held
            boot=boot_id(),
        )
        self._front = DevicePluginFront(
            self._custody,
            self._custody.snapshot,
            observer=self._metrics,
            on_state=self._show_readiness,
        )
        self._holders = Holders(pod_resources, checkpoint, workers, self._custody, self._metrics)
        self._dra = DraPart(
            self._custody,
            places,
            self._sockets_in(places.registry_dir),
            self._metrics,
            self._journal.history,
            self._holders.refresh,
            self._show_readiness,
        )
        self._dra.check(self._config)
        self._features = NodeFeatures(places.features_dir)
        self._rivals = Rivals(pod_resources, self._front.sessions, self._directory.strangers)
        self._title = Title()
        self._status = Status(
            self._custody,
            self._rules,
            self._sources,
            self._front.sessions,
            self._parts,
            self._journal.listed_at,
            self._holders.refresh,
            self._dra.view,
        )
        self._listeners = Listeners(
            self._status,
            self._metrics,
            self._journal.history,
            self._show_readiness,
            places.node_name,
        )
        self._early: list[Fact] | None = []
        """What was found before all sources were heard; None since then."""
        self._is_clean = True
        """Whether what earlier runs left was removed, or is not known well enough to be."""
        self._unheard = {source.name for source in self._sources}
        self._heard = asyncio.Event()
        self._stopping = asyncio.Event()

    @property
    def custody(self) -> Custody:
        """The devices, as they are now."""
        return self._custody

    @property
    def dra_view(self) -> DraView | None:
        """Where the DRA front stands; None if there is none."""
        return self._dra.view()

    @property
    def metrics(self) -> Metrics:
        """What has been counted so far."""
        return self._metrics

    async def run(self, stopping: asyncio.Event) -> None:
        """Serve until ``stopping`` is set; then end streams and remove our sockets.

        Links stay: containers that run may be restarted while no plugin does.
        """
        self._stopping = stopping
        with ThreadPoolExecutor(len(self._sources) or 1, "source") as threads:
            try:
                async with asyncio.TaskGroup() as tasks:
                    self._helpers = [
                        tasks.create_task(
                            self._listeners.open(self._http_address, self._places.control_socket)
                        ),
                        # A defect in there ends the process: what it knows is worth nothing then.
                        tasks.create_task(self._facts.run()),
                        *(
                            tasks.create_task(self._run_source(source, threads))
                            for source in self._sources
                        ),
                    ]
                    # The kubelet takes the first list for the whole truth: know it before.
                    await self._learn_everything()
                    self._open_front(self._config.offers(), tasks)
                    self._dra.open(lambda name, start: self._help(name, start, tasks))
                    self._watch(self._directory, tasks)
                    self._watch(self._registrar().directory, tasks)
                    self._watch(self._dra.registry, tasks)
                    self._help("holders", self._holders.watch, tasks)
                    self._help("rivals", self._rivals.watch, tasks)
                    if file := self._config_file:
                        self._help(
                            "configuration", partial(self._follow_config, file, tasks), tasks
                        )
                    await stopping.wait()
                    _log.info("stopping")
                    await asyncio.gather(
                        self._close_front(list(self._front.sessions)), self._dra.close()
                    )
                    for task in self._helpers:
                        task.cancel()
                    if self._early is None:  # else nothing is known, and nothing was changed
                        await self._holders.ask()
                        self._custody.release(is_last=not self._directory.is_shared)
                    if self._config.node_features and not self._directory.is_shared:
                        self._features.remove()
            finally:
                for source in self._sources:
                    source.stop()
                await self._listeners.close()

    def _help(
        self, name: str, start: Callable[[], Awaitable[None]], tasks: asyncio.TaskGroup
    ) -> asyncio.Task[None]:
        part = self._parts[name] = Part(name)
        task = tasks.create_task(supervise(part, start, self._stopping))
        self._helpers.append(task)
        return task

    def _watch(self, directory: PluginDirectory, tasks: asyncio.TaskGroup) -> None:
        """See what happens to the sockets in a directory, if nobody does yet."""
        name = f"watch {directory.path}"
        if name not in self._parts:
            self._help(name, partial(directory.watch, self._look), tasks)

    def _open_front(self, offers: Iterable[Offer], tasks: asyncio.TaskGroup) -> None:
        own = (offer for offer in offers if not offer.by_claim)
        self._front.open(own, self._registrar, tasks, self._supervise_session)

    def _supervise_session(
        self, resource: str, start: Callable[[], Awaitable[None]]
    ) -> Coroutine[object, object, None]:
        self._metrics.expect_resource(resource)
        part = Part(session_part(resource))
        self._parts[part.name] = part
        return supervise(part, start, self._stopping)

    def _rules(self) -> Sequence[ResourceRule]:
        return self._config.rules()

    def _registrar(self) -> Registrar:
        if self._config.registration is Registration.WATCHER:
            return WatcherRegistrar(self._sockets_in(self._places.registry_dir))
        return ClassicRegistrar(self._directory)

    def _sockets_in(self, directory: Path) -> PluginDirectory:
        # Another instance may be registered the other way.
        everywhere = (self._places.kubelet_dir, self._places.registry_dir)
        return PluginDirectory(directory, self._instance, everywhere)

    async def _close_front(self, resources: Sequence[str]) -> None:
        for name in resources:
            del self._parts[session_part(name)]
        await self._front.close(resources)

    async def _run_source(self, source: Source, threads: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        self._metrics.expect_source(source.name)
        await supervise(
            self._parts[source_part(source.name)],
            lambda: loop.run_in_executor(threads, source.run, self._facts.post),
            self._stopping,
        )

    async def _learn_everything(self) -> None:
        """Wait for all sources' first listing, and ask who holds devices."""
        waits = {
            asyncio.ensure_future(self._heard.wait()),
            asyncio.ensure_future(self._stopping.wait()),
        }
        if self._unheard:
            await asyncio.wait(
                waits, timeout=_FIRST_SCAN_TIMEOUT, return_when=asyncio.FIRST_COMPLETED
            )
        for wait in waits:
            wait.cancel()
        if self._stopping.is_set():
            return
        offered = (offer.resource for offer in self._config.offers())
        self._custody.begin(
            name for name in offered if self._directory.siblings(name).is_any_registered
        )
        self._dra.begin(self._config)
        # Before links are changed: what they lead to is what containers were started with.
        notes = await self._custody.notes()
        early, self._early = self._early or [], None
        self._custody.apply(early)
        self._custody.heed(notes)
        await self._holders.ask()
        if self._unheard:
            _log.warning(
                "registering before every source has listed its ports",
                extra=fields(missing=sorted(self._unheard)),
            )
            return  # what is not known yet may still be there
        if not self._holders.can_be_asked:
            _log.info(
                "no PodResources socket; cannot tell who holds devices",
                extra=fields(socket=self._places.pod_resources),
            )
        self._clean_up()

    def _clean_up(self) -> None:
        """Remove what earlier runs left, unless that may be what another instance needs."""
        self._is_clean = not self._directory.is_shared
        if self._is_clean:
            self._custody.clean_up()

    def _take(self, facts: Sequence[Fact]) -> None:
        if self._early is None:
            self._custody.apply(facts)
        else:
            # A device that a source has not listed yet is not away: nothing is to be done about it.
            self._early += facts
        # The streams first, then the books.
        asyncio.get_running_loop().call_soon(self._note, facts)

    def _note(self, facts: Sequence[Fact]) -> None:
        self._journal.found(facts)
        if self._unheard:
            self._unheard -= {fact.source for fact in facts if isinstance(fact, AllPorts)}
            if not self._unheard:
                self._heard.set()
                self._dra.heard()
                self._show_readiness()

    def _publish(self, snapshot: Snapshot, noticed: float | None) -> None:
        self._front.publish(snapshot, noticed)

    def _changed(self, changes: Sequence[Change]) -> None:
        self._offer_features()
        self._journal.changed(changes)

    def _offer_features(self) -> None:
        # What the kubelet's last answer changed is told when our file has already been removed.
        if self._config.node_features and not self._stopping.is_set():
            self._features.write(self._custody.devices)

    def _look(self) -> None:
        if self._early is None:
            self._custody.look()
            if not self._is_clean:
                self._clean_up()
        self._front.look()
        self._dra.look()
        self._rivals.look()
        self._listeners.look()

    def _show_readiness(self) -> None:
        self._title.show(is_ready=self._status.readiness().ok)

    async def _follow_config(self, file: Path, tasks: asyncio.TaskGroup) -> None:
        refused = partial(self._metrics.config_looked_at, "refused")
        async for found in configurations(file, refused):
            config = self._adapt(found)
            if config == self._config:
                self._metrics.config_looked_at("unchanged")
            else:
                await self._reconfigure(config, tasks)
                self._metrics.config_looked_at("applied")

    async def _reconfigure(self, config: Config, tasks: asyncio.TaskGroup) -> None:
        before, self._config = self._config, config
        if config.nodes != before.nodes:
            _log.warning("nodes changed; restart the plugin to apply that")
        kept = {
            offer.resource
            for offer in config.offers()
            if offer in before.offers() and config.registration is before.registration
        }
        if before.node_features and not config.node_features:
            self._features.remove()
        await self._close_front([name for name in self._front.sessions if name not in kept])
        self._custody.reconfigure(config.rules(), config.offers(), config.health_policy())
        self._watch(self._registrar().directory, tasks)
        self._dra.configure(config)
        self._open_front((o for o in config.offers() if o.resource not in kept), tasks)
        self._offer_features()
        _log.info(
            "configuration applied",
            extra=fields(
                file=self._config_file, kept=sorted(kept), now=sorted(self._front.sessions)
            ),
        )
