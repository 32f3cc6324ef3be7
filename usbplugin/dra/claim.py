"""A ResourceClaim as the API server tells it: which of our devices were allocated, on what terms.

Pure. What a claim says was written by whoever may write claims: nothing of it is taken for granted.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from usbplugin.dra.names import DRIVER, PARAMETERS_KIND, PARAMETERS_VERSION
from usbplugin.errors import ClaimError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from usbplugin.dra.contracts import ClaimRef

_FROM_CLASS = "FromClass"
_PATH = re.compile(r"/[A-Za-z0-9_.:@=,+/{}-]*[A-Za-z0-9_.:@=,+{}-]")
_LONGEST_PATH = 255
_FIELDS = ("{name}", "{device}", "{port}")


class Handover(msgspec.Struct, frozen=True):
    """How a request's devices are to appear in a container; None: as its resource says."""

    container_path: str | None = None
    permissions: str | None = None


class Allotted(msgspec.Struct, frozen=True):
    """One device that was allocated for a request of a claim."""

    request: str
    """As the kubelet is to be told: ``main`` or ``main/sub``."""
    pool: str
    device: str
    share_id: str = ""
    """Which allocation of a device that may be allocated several times; empty for others."""
    handover: Handover = Handover()


class Claim(msgspec.Struct, frozen=True):
    """What was allocated for a claim of our devices."""

    uid: str
    namespace: str
    name: str
    allotted: tuple[Allotted, ...]


class _Opaque(msgspec.Struct, frozen=True):
    driver: str = ""
    parameters: Any = None


class _Config(msgspec.Struct, frozen=True):
    source: str = ""
    requests: tuple[str, ...] = ()
    opaque: _Opaque | None = None


class _Result(msgspec.Struct, frozen=True, rename="camel"):
    request: str
    driver: str
    pool: str
    device: str
    admin_access: bool | None = None
    share_id: str | None = msgspec.field(name="shareID", default=None)


class _Devices(msgspec.Struct, frozen=True):
    results: tuple[_Result, ...] = ()
    config: tuple[_Config, ...] = ()


class _Allocation(msgspec.Struct, frozen=True):
    devices: _Devices = _Devices()


class _Status(msgspec.Struct, frozen=True):
    allocation: _Allocation | None = None


class _Metadata(msgspec.Struct, frozen=True):
    uid: str
    namespace: str
    name: str


class _ResourceClaim(msgspec.Struct, frozen=True):
    metadata: _Metadata
    status: _Status = _Status()


class _Parameters(
    msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, kw_only=True
):
    api_version: str
    kind: str
    container_path: str | None = None
    permissions: str | None = None


_DECODER = msgspec.json.Decoder(_ResourceClaim)


def decode(body: bytes, ref: ClaimRef) -> Claim:
    """The claim that the kubelet means, from the API server's answer.

    Raises:
        ClaimError: the answer is not about that claim, or the claim asks for what cannot be given.
    """
    try:
        found = _DECODER.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ClaimError(f"claim {ref} cannot be understood: {error}") from error
    if found.metadata.uid != ref.uid:
        raise ClaimError(
            f"claim {ref} was deleted, and another one has its name now: delete the pod"
        )
    allocation = found.status.allocation
    if allocation is None:
        raise ClaimError(f"claim {ref} is not allocated any longer: delete the pod")
    configs = [
        config
        for config in allocation.devices.config
        if config.opaque is not None and config.opaque.driver == DRIVER
    ]
    results = [result for result in allocation.devices.results if result.driver == DRIVER]
    for result in results:
        if result.admin_access:
            raise ClaimError(
                f"claim {ref}: request {result.request} asks for adminAccess, which usbplugin does"
                " not give: whoever reads a serial port takes bytes from its holder"
            )
    return Claim(
        ref.uid,
        ref.namespace,
        ref.name,
        tuple(
            Allotted(
                result.request,
                result.pool,
                result.device,
                result.share_id or "",
                _handover(result.request, configs, ref),
            )
            for result in results
        ),
    )


def uid_of(body: bytes) -> str:
    """The UID of a claim as the API server tells it.

    Raises:
        ClaimError: it is no claim.
    """
    try:
        return _DECODER.decode(body).metadata.uid
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ClaimError(f"a claim cannot be understood: {error}") from error


def narrowed(wanted: str | None, bound: str, what: str) -> str:
    """Permissions as asked for, if they are within their bound.

    Raises:
        ClaimError: they are not.
    """
    if wanted is None:
        return bound
    if excess := "".join(sorted(set(wanted) - set(bound))):
        raise ClaimError(
            f"{what} asks for permissions {wanted}, but {excess} is not granted: it"
            f" may have {bound} at most"
        )
    return wanted


def _handover(request: str, configs: Iterable[_Config], ref: ClaimRef) -> Handover:
    """What a request's configuration says: the class bounds, the claim may narrow."""
    merged = Handover()
    # Those of the class come first, whatever their order: they bound what the claim may say.
    for config in sorted(configs, key=lambda one: one.source != _FROM_CLASS):
        if config.requests and not _concerns(config.requests, request):
            continue
        found = _parameters(config, ref)
        permissions = found.permissions
        if permissions is not None and merged.permissions is not None:
            permissions = narrowed(permissions, merged.permissions, f"claim {ref}")
        merged = Handover(
            merged.container_path if found.container_path is None else found.container_path,
            merged.permissions if permissions is None else permissions,
        )
    return merged


def _concerns(requests: Iterable[str], request: str) -> bool:
    main = request.partition("/")[0]
    return any(one in (request, main) for one in requests)


def _parameters(config: _Config, ref: ClaimRef) -> Handover:
    whose = "its DeviceClass" if config.source == _FROM_CLASS else f"claim {ref}"
    parameters = config.opaque.parameters if config.opaque else None
    try:
        found = msgspec.convert(parameters, _Parameters)
    except msgspec.ValidationError as error:
        raise ClaimError(f"the parameters of {whose} are not valid: {error}") from error
    if (found.api_version, found.kind) != (PARAMETERS_VERSION, PARAMETERS_KIND):
        raise ClaimError(
            f"the parameters of {whose} are {found.api_version} {found.kind}: expected"
            f" {PARAMETERS_VERSION} {PARAMETERS_KIND}"
        )
    if (path := found.container_path) is not None and (problem := _path_problem(path)):
        raise ClaimError(f"containerPath {path!r} of {whose} is not valid: {problem}")
    if (permissions := found.permissions) is not None and (
        not permissions or set(permissions) - set("rwm") or len(set(permissions)) < len(permissions)
    ):
        raise ClaimError(
            f"permissions {permissions!r} of {whose} are not valid: expected any of r, w and m"
        )
    return Handover(found.container_path, found.permissions)


def _path_problem(path: str) -> str:
    if len(path) > _LONGEST_PATH:
        return f"it is longer than {_LONGEST_PATH} characters"
    if not _PATH.fullmatch(path):
        return "expected an absolute path of plain characters"
    if any(part in ("", ".", "..") for part in path[1:].split("/")):
        return "expected no empty, '.' or '..' parts"
    left = path
    for field in _FIELDS:
        left = left.replace(field, "")
    if "{" in left or "}" in left:
        return f"expected no placeholders but {', '.join(_FIELDS)}"
    return ""
