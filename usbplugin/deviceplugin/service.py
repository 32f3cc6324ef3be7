"""One resource's ``v1beta1.DevicePlugin`` service: streams snapshots, answers the kubelet.

It reads the latest snapshot and never changes one; a stream that is slow skips to the newest.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import wraps
from typing import TYPE_CHECKING, Protocol, TypeVar

import grpc

from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.api import deviceplugin_v1beta1_pb2_grpc as rpc
from usbplugin.deviceplugin.allocation import allocate
from usbplugin.deviceplugin.list_writer import HEALTHY, ListWriter
from usbplugin.deviceplugin.preference import prefer
from usbplugin.errors import AllocationError
from usbplugin.foundation.pulse import Pulse
from usbplugin.inventory.shares import device_of
from usbplugin.telemetry.logs import fields
from usbplugin.telemetry.observer import UNOBSERVED, Observer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence

    from usbplugin.custody import Offer
    from usbplugin.discovery import Port
    from usbplugin.inventory import Device, Snapshot

_log = logging.getLogger(__name__)

_MOST_NAMED = 5
"""How many devices that were left out of the list a log line names."""


class Custody(Protocol):
    """What a plugin asks of the rest of the program, which keeps what containers are given."""

    def host_path(self, device: Device, port: Port) -> str:
        """Where on the host a port's node is found."""

    def locate(self, device_id: str) -> str | None:
        """The resource that knows a device ID."""

    async def grant_problem(self, devices: Sequence[Device]) -> str:
        """Why these devices are not at this moment what they are known to be; empty if they are."""

    def grant(self, device: Device, paths: Mapping[str, str], listed_ids: Sequence[str]) -> str:
        """A container gets the device; why it must not, or empty if it may.

        By slot, the path that it is given (empty by CDI); and the IDs that the kubelet knows.
        """

    async def start(self, resource: str, listed_ids: Sequence[str]) -> str:
        """A container that holds these asks to be started; why it must not, or empty if it may."""

    def leave(self, resource: str) -> None:
        """Another instance is registered for the resource, and keeps what containers are given."""

    async def catch_up(self, resource: str) -> None:
        """Learn what another instance has granted of the resource, if one may have."""

    async def take_charge(self, resource: str) -> None:
        """We are registered for the resource, and keep what containers are given."""


_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Context = grpc.aio.ServicerContext[object, object]


def _answered(
    method: Callable[[DevicePlugin, _Request, _Context], Awaitable[_Response]],
) -> Callable[[DevicePlugin, _Request, _Context], Awaitable[_Response]]:
    """Answer an ``AllocationError`` with its status, and tell of the call once it is answered."""

    @wraps(method)
    async def call(self: DevicePlugin, request: _Request, context: _Context) -> _Response:
        began, outcome = time.perf_counter(), "internal"
        try:
            response = await method(self, request, context)
            outcome = "ok"
        except AllocationError as error:
            outcome = error.status.name.lower()
            await context.abort(error.status, str(error))
        finally:
            asyncio.get_running_loop().call_soon(
                self.observer.kubelet_called,
                self.resource,
                method.__name__,
                outcome,
                time.perf_counter() - began,
            )
        return response

    return call


class DevicePlugin(rpc.DevicePluginServicer):
    """The service of one generation: it begins with a socket, and is closed with it."""

    def __init__(
        self,
        offer: Offer,
        snapshot: Snapshot,
        custody: Custody,
        on_stream: Callable[[], None],
        observer: Observer = UNOBSERVED,
    ) -> None:
        """Serve ``snapshot`` until the next is published.

        Args:
            offer: How the resource's devices appear in containers.
            snapshot: The latest.
            custody: Keeps what containers are given.
            on_stream: Called whenever a ListAndWatch stream opens or ends.
            observer: Told of calls and messages.
        """
        self.resource = offer.resource
        self.observer = observer
        self._offer = offer
        self._snapshot = snapshot
        self._writer = ListWriter(offer.shares)
        self._left_out: set[str] = set()
        self._list = self._write(snapshot)
        self._custody = custody
        self._on_stream = on_stream
        self._noticed: float | None = None
        self.messages = 0
        """How many lists were sent on all streams."""
        self._streams = 0
        self._opened = 0
        self._closed = False
        self._silent = False
        self._edition = 0
        self._changed = Pulse()

    @property
    def options(self) -> v1beta1.DevicePluginOptions:
        """What the kubelet is to ask of us."""
        return v1beta1.DevicePluginOptions(
            pre_start_required=self._offer.pre_start, get_preferred_allocation_available=True
        )

    @property
    def healthy(self) -> frozenset[str]:
        """The IDs that are listed as healthy."""
        listed = v1beta1.ListAndWatchResponse.FromString(self._list).devices
        return frozenset(device.ID for device in listed if device.health == HEALTHY)

    @property
    def streams(self) -> int:
        """How many ListAndWatch streams are open."""
        return self._streams

    @property
    def has_lost_stream(self) -> bool:
        """Whether a stream has ended. If there were several, nobody can tell whose it was."""
        return self._opened > self._streams

    @property
    def left_out(self) -> int:
        """How many devices the kubelet is not told of, because its list has no room for them."""
        return len(self._left_out)

    def begin_anew(self) -> bool:
        """Forget the streams that have ended; False if others are open, which may be the older."""
        if self._streams:
            return False
        self._opened = 0
        return True

    def publish(self, snapshot: Snapshot, noticed: float | None = None) -> None:
        """Send ``snapshot`` on all streams, unless a newer one comes before they get to it.

        Args:
            snapshot: The latest.
            noticed: When a source noticed what led to it (``time.monotonic``), if one did.
        """
        self._snapshot = snapshot
        written = self._write(snapshot)
        if written != self._list:  # what changed may be nothing that the kubelet is told
            self._list = written
            self._edition += 1
            if self._noticed is None:  # what nobody was sent yet counts from its beginning
                self._noticed = noticed
            self._changed.beat()

    def repeat(self) -> None:
        """Send the list once more, as if it had changed."""
        self._edition += 1
        self._changed.beat()

    def fall_silent(self) -> None:
        """Send nothing more on the streams that are open, and leave them open.

        To a kubelet that has another plugin by now, a further message would be that one's, and the
        end of a stream the end of that one.
        """
        self._silent = True

    def close(self) -> None:
        """End all streams."""
        self._closed = True
        self._changed.beat()

    def _write(self, snapshot: Snapshot) -> bytes:
        """The list; which devices it has no room for is logged whenever others are left out."""
        written = self._writer.write(snapshot)
        ids = [device.id for device in self._writer.left_out]
        if self._left_out != set(ids):
            self._left_out = set(ids)
            if ids:
                _log.warning(
                    "devices left out of the kubelet's list, which would be too large: lower"
                    " shares or retention",
                    extra=fields(resource=self.resource, count=len(ids), some=ids[:_MOST_NAMED]),
                )
            else:
                _log.info(
                    "no device is left out of the kubelet's list any more",
                    extra=fields(resource=self.resource),
                )
        return written

    def _unsent_since(self) -> float | None:
        """When that was noticed which is about to be sent; asked once."""
        noticed, self._noticed = self._noticed, None
        return noticed

    async def GetDevicePluginOptions(  # noqa: N802, D102 -- the API's name
        self, request: v1beta1.Empty, context: _Context
    ) -> v1beta1.DevicePluginOptions:
        del request, context
        return self.options

    async def ListAndWatch(  # noqa: N802, D102
        self, request: v1beta1.Empty, context: _Context
    ) -> AsyncIterator[v1beta1.ListAndWatchResponse]:
        del request, context
        self._streams += 1
        self._opened += 1
        self._unsent_since()  # the kubelet was not there to be told
        self._on_stream()
        try:
            sent = -1
            while not self._closed:
                if sent == self._edition or (self._silent and sent >= 0):
                    await self._changed.wait()
                    continue
                sent = self._edition
                noticed = self._unsent_since()
                self.messages += 1
                yield v1beta1.ListAndWatchResponse.FromString(self._list)
                if noticed is not None:
                    self.observer.streamed(self.resource, time.monotonic() - noticed)
        finally:
            self._streams -= 1
            self._on_stream()

    @_answered
    async def GetPreferredAllocation(  # noqa: N802, D102
        self,
        request: v1beta1.PreferredAllocationRequest,
        context: _Context,
    ) -> v1beta1.PreferredAllocationResponse:
        del context
        return v1beta1.PreferredAllocationResponse(
            container_responses=[
                prefer(container, self._snapshot, self._offer.shares)
                for container in request.container_requests
            ]
        )

    @_answered
    async def Allocate(  # noqa: N802, D102
        self, request: v1beta1.AllocateRequest, context: _Context
    ) -> v1beta1.AllocateResponse:
        del context
        ids = [list(container.devices_ids) for container in request.container_requests]
        try:
            response = await self._allocate(request, ids)
        except AllocationError as error:
            self._log_refusal("allocation refused", ids, error)
            raise
        # The answer first, then the log.
        asyncio.get_running_loop().call_soon(self._log_allocation, ids)
        return response

    async def _allocate(
        self, request: v1beta1.AllocateRequest, ids: Iterable[Sequence[str]]
    ) -> v1beta1.AllocateResponse:
        await self._custody.catch_up(self.resource)
        response, devices = self._answer_to(request)
        if not self._offer.pre_start:
            # Nobody will ask again before the container starts. Else a refusal here would only be
            # worse: it fails the pod for good, and a refused start is tried again.
            if problem := await self._custody.grant_problem(devices):
                raise _refused(problem)
            response, devices = self._answer_to(request)  # things may have changed meanwhile
        for device in devices:
            paths = {port.slot: self._host_path(device, port) for port in device.ports}
            listed = [
                listed_id
                for container in ids
                for listed_id in container
                if device_of(listed_id, self._offer.shares) == device.id
            ]
            if problem := self._custody.grant(device, paths, listed):
                raise _refused(f"{device.id}: {problem}")
        return response

    def _answer_to(
        self, request: v1beta1.AllocateRequest
    ) -> tuple[v1beta1.AllocateResponse, tuple[Device, ...]]:
        return allocate(
            request, self._snapshot, self._offer, self._custody.host_path, self._custody.locate
        )

    def _host_path(self, device: Device, port: Port) -> str:
        # By CDI the spec names the node.
        return "" if self._offer.cdi else self._custody.host_path(device, port)

    def _log_allocation(self, ids: list[list[str]]) -> None:
        _log.info("allocated", extra=fields(resource=self.resource, devices=ids))

    @_answered
    async def PreStartContainer(  # noqa: N802, D102
        self,
        request: v1beta1.PreStartContainerRequest,
        context: _Context,
    ) -> v1beta1.PreStartContainerResponse:
        del context
        listed_ids = list(dict.fromkeys(request.devices_ids))
        if problem := await self._custody.start(self.resource, listed_ids):
            error = _refused(problem)
            self._log_refusal("container start refused", listed_ids, error)
            raise error
        return v1beta1.PreStartContainerResponse()

    def _log_refusal(self, event: str, device_ids: object, error: AllocationError) -> None:
        _log.warning(
            event,
            extra=fields(
                resource=self.resource,
                devices=device_ids,
                status=error.status.name,
                reason=error,
            ),
        )


def _refused(problem: str) -> AllocationError:
    return AllocationError(grpc.StatusCode.FAILED_PRECONDITION, problem)
