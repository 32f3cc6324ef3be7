"""What the kubelet calls: Registration, DRAPlugin and health, all on one socket.

It decodes and answers; what a claim is given, the preparer decides.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import grpc

from usbplugin.api import dra_health_v1alpha1_pb2 as health
from usbplugin.api import dra_health_v1alpha1_pb2_grpc as health_rpc
from usbplugin.api import dra_v1_pb2 as v1
from usbplugin.api import dra_v1_pb2_grpc as rpc
from usbplugin.api import pluginregistration_v1_pb2 as registration
from usbplugin.api import pluginregistration_v1_pb2_grpc as registration_rpc
from usbplugin.dra.contracts import ClaimRef, Outcome
from usbplugin.dra.names import DRIVER
from usbplugin.errors import ApiServerError, UsbPluginError
from usbplugin.foundation.pulse import Pulse
from usbplugin.inventory import Health
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from usbplugin.dra.contracts import DraObserver, PublishedDevice
    from usbplugin.dra.preparer import Preparer

_log = logging.getLogger(__name__)

SUPPORTED = ("v1.DRAPlugin", "v1.DRAResourceHealth", "v1alpha1.DRAResourceHealth")
"""The kubelet takes the first DRAPlugin that it knows, and ignores names that it does not know."""

HEALTH_LEASE = 300
"""Seconds for which the kubelet believes what it was told."""
HEALTH_INTERVAL = 120.0
"""Seconds between two messages when nothing changes: each wakes gRPC for a quarter of a minute."""
_LONGEST_MESSAGE = 1024
_ON_ITS_WAY = 0.05
"""Seconds that gRPC is given to write an answer that it was handed."""
_PLUGIN_TYPE = "DRAPlugin"
_HEALTHY = frozenset({Health.READY, Health.RETIRED})
"""The states in which whoever has a device may go on using it."""

_Context = grpc.aio.ServicerContext[object, object]


class Registration(registration_rpc.RegistrationServicer):
    """Tells the plugin watcher who we are, and hears its verdict."""

    def __init__(self, on_verdict: Callable[[str], None]) -> None:
        """Call ``on_verdict`` with why we were refused; empty if the kubelet has registered us."""
        self._on_verdict = on_verdict

    async def GetInfo(  # noqa: N802 -- the API's name
        self, request: registration.InfoRequest, context: _Context
    ) -> registration.PluginInfo:
        """Who we are; no endpoint, for it is the socket on which this is asked."""
        del request, context
        return registration.PluginInfo(type=_PLUGIN_TYPE, name=DRIVER, supported_versions=SUPPORTED)

    async def NotifyRegistrationStatus(  # noqa: N802
        self, request: registration.RegistrationStatus, context: _Context
    ) -> registration.RegistrationStatusResponse:
        """Whether we are registered: also each time after the kubelet was restarted."""
        del context
        refusal = "" if request.plugin_registered else request.error or "no reason given"
        self._on_verdict(refusal)
        return registration.RegistrationStatusResponse()


class DraPlugin(rpc.DRAPluginServicer):
    """Prepares and unprepares claims for the kubelet."""

    def __init__(self, preparer: Preparer, observer: DraObserver) -> None:
        """Have ``preparer`` do it, and tell ``observer``."""
        self._preparer = preparer
        self._observer = observer
        self._idle = asyncio.Event()
        self._idle.set()
        self._in_flight = 0

    async def NodePrepareResources(  # noqa: N802
        self, request: v1.NodePrepareResourcesRequest, context: _Context
    ) -> v1.NodePrepareResourcesResponse:
        """Prepare claims, each on its own."""
        del context
        with self._counted():
            answers = await asyncio.gather(*map(self._prepare, request.claims))
        response = v1.NodePrepareResourcesResponse()
        for claim, answer in zip(request.claims, answers, strict=True):
            response.claims[claim.uid].CopyFrom(answer)
        return response

    async def NodeUnprepareResources(  # noqa: N802
        self, request: v1.NodeUnprepareResourcesRequest, context: _Context
    ) -> v1.NodeUnprepareResourcesResponse:
        """Unprepare claims, each on its own; one that is unknown is unprepared."""
        del context
        with self._counted():
            answers = await asyncio.gather(*map(self._unprepare, request.claims))
        response = v1.NodeUnprepareResourcesResponse()
        for claim, answer in zip(request.claims, answers, strict=True):
            response.claims[claim.uid].CopyFrom(answer)
        return response

    async def drain(self, patience: float) -> None:
        """Wait until no call is in flight, but no longer than ``patience`` seconds.

        A call that the kubelet sees cut off is made again after more than a minute.
        """
        try:
            async with asyncio.timeout(patience):
                while self._in_flight:
                    await self._idle.wait()
                    await asyncio.sleep(_ON_ITS_WAY)
        except TimeoutError:
            _log.warning("calls are still in flight", extra=fields(calls=self._in_flight))

    def _counted(self) -> _Counted:
        return _Counted(self)

    def count(self, change: int) -> None:
        """One call more or less is in flight."""
        self._in_flight += change
        if self._in_flight:
            self._idle.clear()
        else:
            self._idle.set()

    async def _prepare(self, claim: v1.Claim) -> v1.NodePrepareResourceResponse:
        ref = ClaimRef(claim.uid, claim.namespace, claim.name)
        began, outcome = time.perf_counter(), Outcome.FAILED
        try:
            outcome, given = await self._preparer.prepare(ref)
        except UsbPluginError as error:
            outcome = _outcome_of(error)
            _log.warning("claim not prepared", extra=fields(claim=str(ref), reason=error))
            self._observer.dra_refused(str(ref), str(error))
            return v1.NodePrepareResourceResponse(error=str(error))
        finally:
            self._observer.dra_prepared(outcome, time.perf_counter() - began)
        response = v1.NodePrepareResourceResponse()
        for device, cdi_devices in given:
            response.devices.add(
                request_names=[device.request],
                pool_name=device.pool,
                device_name=device.name,
                cdi_device_ids=cdi_devices,
                share_id=device.share_id or None,
            )
        return response

    async def _unprepare(self, claim: v1.Claim) -> v1.NodeUnprepareResourceResponse:
        ref = ClaimRef(claim.uid, claim.namespace, claim.name)
        try:
            await self._preparer.unprepare(ref)
        except UsbPluginError as error:
            _log.warning("claim not unprepared", extra=fields(claim=str(ref), reason=error))
            return v1.NodeUnprepareResourceResponse(error=str(error))
        return v1.NodeUnprepareResourceResponse()


class _Counted:
    """Counts a call as long as it is in flight."""

    def __init__(self, plugin: DraPlugin) -> None:
        self._plugin = plugin

    def __enter__(self) -> None:
        self._plugin.count(1)

    def __exit__(self, *_: object) -> None:
        self._plugin.count(-1)


class ResourceHealth(health_rpc.DRAResourceHealthServicer):
    """Streams the devices' health: the whole list on each change, and again now and then."""

    def __init__(
        self,
        pool: str,
        interval: float = HEALTH_INTERVAL,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Tell of the devices of ``pool``, every ``interval`` seconds at least, by this clock."""
        self._pool = pool
        self._wall = wall
        self._interval = interval
        self._message: health.NodeWatchResourcesResponse | None = None
        self._edition = 0
        self._changed = Pulse()
        self._closed = False

    def publish(self, devices: Sequence[PublishedDevice]) -> None:
        """These are all devices."""
        message = health.NodeWatchResourcesResponse(
            devices=[_health(self._pool, device) for device in devices]
        )
        if message == self._message:
            return
        self._message = message
        self._edition += 1
        self._changed.beat()

    def close(self) -> None:
        """End the streams."""
        self._closed = True
        self._changed.beat()

    async def NodeWatchResources(  # noqa: N802 -- the API's name
        self, request: health.NodeWatchResourcesRequest, context: _Context
    ) -> AsyncIterator[health.NodeWatchResourcesResponse]:
        """Tell of all devices again and again; of none before anything is known."""
        del request, context
        while not self._closed:
            edition = self._edition
            if self._message is not None:
                yield _as_of(self._message, int(self._wall()))
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    while self._edition == edition and not self._closed:
                        await self._changed.wait()


def add_services(
    server: grpc.aio.Server,
    registration_servicer: Registration,
    plugin: DraPlugin,
    watch: ResourceHealth,
) -> None:
    """Serve all of it, health under both of its names, which mean the same messages."""
    registration_rpc.add_RegistrationServicer_to_server(registration_servicer, server)
    rpc.add_DRAPluginServicer_to_server(plugin, server)
    health_rpc.add_DRAResourceHealthServicer_to_server(watch, server)
    handler = grpc.unary_stream_rpc_method_handler(
        watch.NodeWatchResources,
        request_deserializer=health.NodeWatchResourcesRequest.FromString,
        response_serializer=health.NodeWatchResourcesResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "v1.DRAResourceHealth", {"NodeWatchResources": handler}
            ),
        )
    )


def _health(pool: str, published: PublishedDevice) -> health.DeviceHealth:
    device = published.device
    is_healthy = device.health in _HEALTHY
    return health.DeviceHealth(
        device=health.DeviceIdentifier(pool_name=pool, device_name=published.name),
        health=health.HEALTHY if is_healthy else health.UNHEALTHY,
        health_check_timeout_seconds=HEALTH_LEASE,
        message="" if is_healthy else f"{device.health.value}: {device.reason}"[:_LONGEST_MESSAGE],
    )


def _as_of(
    message: health.NodeWatchResourcesResponse, moment: int
) -> health.NodeWatchResourcesResponse:
    told = health.NodeWatchResourcesResponse()
    told.CopyFrom(message)
    for device in told.devices:
        device.last_updated_time = moment
    return told


def _outcome_of(error: UsbPluginError) -> Outcome:
    return Outcome.FAILED if isinstance(error, ApiServerError) else Outcome.REFUSED
