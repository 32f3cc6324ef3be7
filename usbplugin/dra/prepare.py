"""From a claim to what its containers are given: a CDI spec and an answer, or a refusal. Pure.

All or nothing, as with the device plugin: a claim that cannot be met in full is refused, with a
text that people read in the pod's events.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from usbplugin.custody.cdi import edits
from usbplugin.custody.container import clash, environment, placements, variable_prefix
from usbplugin.discovery import DeviceNumber
from usbplugin.dra.claim import narrowed
from usbplugin.dra.names import CDI_KIND
from usbplugin.errors import ClaimError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from usbplugin.custody import Offer
    from usbplugin.dra.claim import Allotted, Claim
    from usbplugin.inventory import Device

_CDI_VERSION = "0.5.0"
"""The first with hostPath, as in ``custody.cdi``."""
_NOT_IN_NAME = re.compile(r"[^A-Za-z0-9-]")
_DIGEST_LENGTH = 6


class PreparedDevice(msgspec.Struct, frozen=True):
    """One device as a claim was given it."""

    request: str
    pool: str
    name: str
    """As slices and claims call it."""
    device_id: str
    resource: str
    container_path: str
    permissions: str
    by_id_links: bool = False
    share_id: str = ""
    is_shared: bool = False
    """Whether others were to have it at the same time; a claim that had it alone keeps it so."""
    numbers: dict[str, DeviceNumber] = {}
    """By slot, those that its containers were given."""
    may_have: dict[str, tuple[DeviceNumber, ...]] = {}
    """By slot, those that they may have been restarted with since: nobody tells us of that."""

    def restartable(self, device: Device) -> PreparedDevice:
        """The same, once containers may be restarted with the numbers that the device has now."""
        more = {
            port.slot: (*self.may_have.get(port.slot, ()), port.number)
            for port in device.ports
            if port.number != self.numbers.get(port.slot)
            and port.number not in self.may_have.get(port.slot, ())
        }
        return msgspec.structs.replace(self, may_have=self.may_have | more) if more else self


class PreparedClaim(msgspec.Struct, frozen=True):
    """What a claim was given; its file, so that it outlives this process."""

    uid: str
    namespace: str
    name: str
    boot: str
    """The boot of which the numbers are."""
    devices: tuple[PreparedDevice, ...]

    @property
    def full_name(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"

    def restartable(self, devices: Mapping[str, Device]) -> PreparedClaim:
        """The same, once a spec tells of the numbers that its devices have now."""
        return msgspec.structs.replace(
            self, devices=tuple(one.restartable(devices[one.name]) for one in self.devices)
        )


class UnknownDeviceError(ClaimError):
    """The scheduler has allocated what is not known here."""

    def __init__(self, names: Sequence[str], message: str) -> None:
        """Carry the devices' names."""
        super().__init__(message)
        self.names = names


def prepared(
    claim: Claim,
    pool: str,
    devices: Mapping[str, Device],
    offers: Mapping[str, Offer],
    boot: str,
) -> PreparedClaim:
    """What the claim is to be given.

    Args:
        claim: As allocated.
        pool: This node's.
        devices: All devices by the names that slices have for them.
        offers: The terms of those resources that claims may have, by their name.
        boot: The present boot.

    Raises:
        UnknownDeviceError: a device is not known here.
        ClaimError: it cannot be met.
    """
    full_name = f"{claim.namespace}/{claim.name}"
    if not claim.allotted:
        raise ClaimError(f"claim {full_name} has no device of usbplugin's")
    if strange := [one.device for one in claim.allotted if one.pool != pool]:
        raise ClaimError(f"claim {full_name}: {', '.join(strange)} is not of this node, {pool}")
    if missing := [one.device for one in claim.allotted if one.device not in devices]:
        raise UnknownDeviceError(
            missing,
            f"claim {full_name}: {', '.join(missing)} is unknown on this node: it has not been seen"
            " since the plugin started, or was unplugged so long ago that it was forgotten",
        )
    times = Counter(one.device for one in claim.allotted)
    if twice := [name for name, count in times.items() if count > 1]:
        raise ClaimError(f"claim {full_name} was allocated {', '.join(twice)} more than once")
    given = tuple(_given(one, devices[one.device], offers) for one in claim.allotted)
    made = PreparedClaim(claim.uid, claim.namespace, claim.name, boot, given)
    spec(made, {one.name: devices[one.name] for one in given})  # to see that it can be written
    return made


def conflict(
    wanted: PreparedClaim, others: Iterable[PreparedClaim], shares: Mapping[str, int]
) -> str:
    """Which other claims have its devices already; empty if none does.

    Args:
        wanted: About to be prepared.
        others: All that are prepared now.
        shares: By resource, how many claims may have one device.
    """
    rivals = [other for other in others if other.uid != wanted.uid]
    for other in rivals:
        if other.full_name == wanted.full_name:
            return f"an older claim of the name {other.full_name} is still prepared here"
    for one in wanted.devices:
        held = [
            (other.full_name, theirs)
            for other in rivals
            for theirs in other.devices
            if theirs.device_id == one.device_id
        ]
        has_owner = any(not theirs.is_shared for _, theirs in held)
        if has_owner or len(held) >= shares.get(one.resource, 1):
            names = ", ".join(name for name, _ in held)
            return f"{one.device_id} is still prepared for claim {names}"
    return ""


def spec(claim: PreparedClaim, devices: Mapping[str, Device]) -> dict[str, object]:
    """The CDI spec of a claim: a device for each request, with all its nodes and variables.

    Args:
        claim: What it was given.
        devices: As they are now, by the names that slices have for them; all of them.

    Raises:
        ClaimError: two ports would have one path in a container.
    """
    entries = []
    by_resource = Counter(
        resource for request in _requests(claim) for resource in _resources(claim, request)
    )
    for request in _requests(claim):
        given = [one for one in claim.devices if one.request == request]
        places = []
        for position, one in enumerate(given):
            # Each on its own terms, and counted over the whole request.
            path = one.container_path.replace("{device}", str(position))
            places += [
                (place, one)
                for place in placements([devices[one.name]], path, by_id_links=one.by_id_links)
            ]
        if found := clash(place for place, _ in places):
            raise ClaimError(
                f"claim {claim.full_name}: {found.first.node} and {found.second.node} would both be"
                f" {found.path} in the container: give it a containerPath with {{device}}, {{port}}"
                " or {name} in it"
            )
        variables: dict[str, str] = {}
        for resource in _resources(claim, request):
            if by_resource[resource] == 1:  # else the last of several requests would win, silently
                own = [one for one in given if one.resource == resource]
                variables |= environment(
                    variable_prefix(resource),
                    [devices[one.name] for one in own],
                    [place for place, one in places if one.resource == resource],
                )
        main = request.partition("/")[0]
        variables |= environment(
            variable_prefix(f"usbplugin/request/{main}"),
            [devices[one.name] for one in given],
            [place for place, _ in places],
        )
        entries.append(
            {
                "name": _cdi_name(claim.uid, request),
                "containerEdits": {
                    "env": [f"{name}={value}" for name, value in variables.items()],
                    **edits((place.path, place.port, one.permissions) for place, one in places),
                },
            }
        )
    return {"cdiVersion": _CDI_VERSION, "kind": CDI_KIND, "devices": entries}


def cdi_ids(claim: PreparedClaim) -> list[tuple[PreparedDevice, tuple[str, ...]]]:
    """Each device, and the CDI devices that the kubelet is to be told of with it.

    The CDI device of a request comes with its first device alone: a container runtime would apply
    it once for each time that it is named.
    """
    told: set[str] = set()
    found: list[tuple[PreparedDevice, tuple[str, ...]]] = []
    for one in claim.devices:
        is_first = one.request not in told
        told.add(one.request)
        name = f"{CDI_KIND}={_cdi_name(claim.uid, one.request)}"
        found.append((one, (name,) if is_first else ()))
    return found


def _given(one: Allotted, device: Device, offers: Mapping[str, Offer]) -> PreparedDevice:
    offer = offers.get(device.resource)
    if offer is None:
        raise ClaimError(f"{device.id} is of {device.resource}, which claims may not have here")
    if not device.health.is_usable:
        raise ClaimError(f"{device.id} is {device.health.value}: {device.reason}")
    handover = one.handover
    return PreparedDevice(
        one.request,
        one.pool,
        one.device,
        device.id,
        device.resource,
        handover.container_path or offer.container_path,
        narrowed(handover.permissions, offer.permissions, f"request {one.request}"),
        # A path of its own is all that the claim wants.
        by_id_links=offer.by_id_links and handover.container_path is None,
        share_id=one.share_id,
        is_shared=offer.shares > 1,
        numbers={port.slot: port.number for port in device.ports},
    )


def _requests(claim: PreparedClaim) -> list[str]:
    return list(dict.fromkeys(one.request for one in claim.devices))


def _resources(claim: PreparedClaim, request: str) -> list[str]:
    return list(dict.fromkeys(one.resource for one in claim.devices if one.request == request))


def _cdi_name(uid: str, request: str) -> str:
    """A request's CDI device; one whose name CDI cannot spell gets a digest."""
    clean = _NOT_IN_NAME.sub("-", request)
    if clean != request:
        clean += f"-{hashlib.sha256(request.encode()).hexdigest()[:_DIGEST_LENGTH]}"
    return f"{uid}-{clean}"
