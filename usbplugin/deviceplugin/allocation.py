"""From requested device IDs to what a container gets. Pure.

Every rule here is all or nothing: a request that cannot be met in full is refused, with a text
that an operator reads in the pod's events.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import grpc

from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.custody.cdi import qualified_name
from usbplugin.custody.container import clash, environment, placements, variable_prefix
from usbplugin.discovery.port import printable
from usbplugin.errors import AllocationError
from usbplugin.inventory.shares import device_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from usbplugin.custody.offer import Offer
    from usbplugin.discovery import Port
    from usbplugin.inventory import Device, Snapshot

    HostPath = Callable[[Device, Port], str]
    """Where on the host a port's node is found."""
    Locate = Callable[[str], str | None]
    """The resource that a device ID belongs to; None if no resource knows it."""

_LONGEST_ID = 80


def allocate(
    request: v1beta1.AllocateRequest,
    snapshot: Snapshot,
    offer: Offer,
    host_path: HostPath,
    locate: Locate,
) -> tuple[v1beta1.AllocateResponse, tuple[Device, ...]]:
    """Answer ``Allocate`` for all containers of the request.

    Returns:
        The answer, and the devices that it hands over.

    Raises:
        AllocationError: INVALID_ARGUMENT for a request that makes no sense, NOT_FOUND for an ID
            nobody knows, FAILED_PRECONDITION for a device that is not ready.
    """
    requested = [list(container.devices_ids) for container in request.container_requests]
    if not requested or not all(requested):
        raise _invalid(f"the kubelet requested no device of {offer.resource}")
    times = Counter(share_id for ids in requested for share_id in ids)
    for share_id, count in times.items():
        if count > 1:
            raise _invalid(
                f"{_named(share_id)} was requested {count} times; it can be allocated once"
            )
    devices = _usable_devices(times, snapshot, offer.shares, locate)
    response = v1beta1.AllocateResponse()
    for ids in requested:
        # Two shares of one device are still one node.
        given = dict.fromkeys(device_of(share_id, offer.shares) for share_id in ids)
        response.container_responses.append(
            _container_response([devices[device_id] for device_id in given], offer, host_path)
        )
    return response, tuple(devices.values())


def _usable_devices(
    listed_ids: Iterable[str], snapshot: Snapshot, shares: int, locate: Locate
) -> Mapping[str, Device]:
    """The devices of these IDs, all of which may be handed to a container now."""
    found = {}
    for listed_id in listed_ids:
        device_id = device_of(listed_id, shares)
        device = snapshot.by_id.get(device_id)
        if device is None:
            if other := locate(listed_id):
                raise _invalid(
                    f"{_named(listed_id)} belongs to {other}, not to {snapshot.resource}"
                )
            raise AllocationError(
                grpc.StatusCode.NOT_FOUND,
                f"{_named(listed_id)} is unknown to {snapshot.resource}: it has not been seen since"
                " the plugin started, or was unplugged so long ago that it was forgotten",
            )
        if not device.health.is_usable:
            raise AllocationError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"{_named(listed_id)} is {device.health.value}: {device.reason}",
            )
        found[device_id] = device
    return found


def _container_response(
    devices: Sequence[Device], offer: Offer, host_path: HostPath
) -> v1beta1.ContainerAllocateResponse:
    response = v1beta1.ContainerAllocateResponse()
    places = placements(devices, offer.container_path, by_id_links=offer.by_id_links)
    if found := clash(places):
        of_one = any({found.first, found.second} <= set(device.ports) for device in devices)
        needed = "{port}" if of_one else "{name}" if offer.cdi else "{device} or {name}"
        raise _invalid(
            f"{found.first.node} and {found.second.node} would both be {found.path} in the"
            f" container: give {offer.resource} a containerPath with {needed} in it"
        )
    for path, device, port, _ in places if not offer.cdi else ():
        _add_node(response, path, host_path(device, port), port, offer)
    for device in devices if offer.cdi else ():
        response.cdi_devices.add(name=qualified_name(offer.resource, device.id))
    prefix = variable_prefix(offer.resource)
    response.envs.update(environment(prefix, devices, places))
    return response


def _add_node(
    response: v1beta1.ContainerAllocateResponse,
    container_path: str,
    host_path: str,
    port: Port,
    offer: Offer,
) -> None:
    if port.number.is_pty:
        # A node with a pty slave's numbers works nowhere but in its own devpts: mount the file.
        response.mounts.add(
            container_path=container_path,
            host_path=host_path,
            read_only="w" not in offer.permissions,
        )
    else:
        response.devices.add(
            container_path=container_path, host_path=host_path, permissions=offer.permissions
        )


def _named(share_id: str) -> str:
    """An ID as it was asked for, which may be anything."""
    cut = share_id if len(share_id) <= _LONGEST_ID else f"{share_id[:_LONGEST_ID]}..."
    return printable(cut.encode())


def _invalid(message: str) -> AllocationError:
    return AllocationError(grpc.StatusCode.INVALID_ARGUMENT, message)
