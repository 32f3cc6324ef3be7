"""What we ask of the API server: claims, our Node, our own slices. Nothing is listed or watched.

``nodes`` get, ``resourceclaims`` get, ``resourceslices`` create, patch and delete: that is all the
role has to allow.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

import msgspec

from usbplugin.dra.names import DRIVER
from usbplugin.dra.slices import API_VERSION
from usbplugin.errors import ApiServerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from usbplugin.dra.apiserver import ApiServer, Reply
    from usbplugin.dra.contracts import ClaimRef
    from usbplugin.dra.slices import ResourceSlice

_T = TypeVar("_T")

CLAIM_SECONDS = 5.0
"""For how long a claim is asked for: the kubelet has just read it itself, so an outage is short."""
_PAUSE = 0.25
_APPLY = "application/apply-patch+yaml"
_GROUP = f"/apis/{API_VERSION}"
_NOT_FOUND = 404
_TOO_MANY = 429
_SERVER_ERRORS = 500


class AppliedMetadata(msgspec.Struct, frozen=True):
    """What tells whether it is the slice that it was before."""

    uid: str


class AppliedSpec(msgspec.Struct, frozen=True):
    """The devices, as far as the API server knows of what they say."""

    devices: list[dict[str, object]] = []


class Applied(msgspec.Struct, frozen=True):
    """What the API server has of a slice after it was applied."""

    metadata: AppliedMetadata
    spec: AppliedSpec

    @property
    def devices(self) -> dict[str, dict[str, object]]:
        """What it has of each device, by name."""
        return {str(device.get("name")): device for device in self.spec.devices}


class NodeStatus(msgspec.Struct, frozen=True):
    """What a node offers."""

    allocatable: dict[str, str] = {}
    """By resource, those of device plugins included."""


class Node(msgspec.Struct, frozen=True):
    """As much of a Node as we look at."""

    metadata: AppliedMetadata
    status: NodeStatus = NodeStatus()

    @property
    def uid(self) -> str:
        """What tells it from an earlier one of its name."""
        return self.metadata.uid

    @property
    def allocatable(self) -> dict[str, str]:
        """What it offers to the scheduler, by resource."""
        return self.status.allocatable


class Cluster:
    """The requests, each with the answers that are as good as none turned into errors."""

    def __init__(self, server: ApiServer, clock: Callable[[], float] = time.monotonic) -> None:
        """Ask that server."""
        self._server = server
        self._clock = clock

    async def claim(self, ref: ClaimRef) -> bytes:
        """The claim of that namespace and name as JSON, whatever its UID.

        An API server that does not answer, or cannot at the moment, is asked again for five
        seconds.

        Raises:
            ApiServerError: there is none (``status`` 404), it is refused (another ``status``), or
                the server did not answer (``status`` None).
        """
        target = (
            f"{_GROUP}/namespaces/{quote(ref.namespace, safe='')}"
            f"/resourceclaims/{quote(ref.name, safe='')}"
        )
        deadline = self._clock() + CLAIM_SECONDS
        while True:
            left = deadline - self._clock()
            try:
                reply = await self._server.request("GET", target, seconds=max(left, _PAUSE))
                if reply.is_ok:
                    return reply.body
                raise refusal(reply, f"ResourceClaim {ref}")
            except ApiServerError as failure:
                if not is_passing(failure) or self._clock() + _PAUSE >= deadline:
                    raise
            await asyncio.sleep(_PAUSE)

    async def node_uid(self, node: str) -> str:
        """The UID of our Node, which owns our slices.

        Raises:
            ApiServerError: it cannot be read.
        """
        return (await self.node(node)).uid

    async def node(self, node: str) -> Node:
        """Our Node.

        Raises:
            ApiServerError: it cannot be read.
        """
        reply = await self._server.request("GET", f"/api/v1/nodes/{quote(node, safe='')}")
        if not reply.is_ok:
            raise refusal(reply, f"Node {node}")
        return _decoded(reply, Node)

    async def apply(self, wanted: ResourceSlice, *, dry_run: bool = False) -> Applied:
        """Make a slice what we say it is, whoever else has had a hand in it.

        Args:
            wanted: All that is to be in it.
            dry_run: Whether only to see if it would be taken.

        Raises:
            RefusedError: it is refused.
            ApiServerError: there was no answer.
        """
        name = wanted.metadata.name
        reply = await self._server.request(
            "PATCH",
            f"{_slice(name)}?fieldManager={DRIVER}&force=true{'&dryRun=All' if dry_run else ''}",
            msgspec.json.encode(wanted),  # which is YAML, too
            _APPLY,
        )
        if not reply.is_ok:
            raise refusal(reply, f"ResourceSlice {name}")
        return _decoded(reply, Applied)

    async def delete(self, name: str) -> bool:
        """Delete a slice; returns whether there was one.

        Raises:
            ApiServerError: it is refused, or there was no answer.
        """
        reply = await self._server.request("DELETE", _slice(name))
        if not (reply.is_ok or reply.status == _NOT_FOUND):
            raise refusal(reply, f"ResourceSlice {name}")
        return reply.is_ok


class RefusedError(ApiServerError):
    """An answer other than the one that was asked for."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        fields: tuple[str, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        """Carry what the answer says besides its status.

        Args:
            status: The HTTP status.
            message: For people.
            fields: The paths of what is wrong in what was sent, such as ``spec.devices[3].name``.
            retry_after: Seconds that the server asks to be left alone.
        """
        super().__init__(status, message)
        self.fields = fields
        self.retry_after = retry_after


class _Cause(msgspec.Struct):
    field: str = ""


class _Details(msgspec.Struct):
    causes: list[_Cause] = []


class _Status(msgspec.Struct):
    details: _Details | None = None


def refusal(reply: Reply, thing: str) -> RefusedError:
    """The error that an answer is."""
    try:
        details = msgspec.json.decode(reply.body, type=_Status).details
    except (msgspec.MsgspecError, UnicodeDecodeError):
        details = None
    return RefusedError(
        reply.status,
        f"{thing}: the API server answers {reply.status}: {reply.message}",
        fields=tuple(c.field for c in details.causes if c.field) if details else (),
        retry_after=reply.retry_after,
    )


def is_passing(error: ApiServerError) -> bool:
    """Whether the same request may well be answered in a moment."""
    return error.status is None or error.status == _TOO_MANY or error.status >= _SERVER_ERRORS


def _slice(name: str) -> str:
    return f"{_GROUP}/resourceslices/{quote(name, safe='')}"


def _decoded(reply: Reply, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(reply.body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ApiServerError(
            None, f"the API server's answer is none: {error}; is a proxy in between?"
        ) from error
