"""Checks what ``front: dra`` needs: mounts, the API server's leave, and what is left of claims.

One dry run of a slice of our own tells network, TLS, token, role, policy and feature gates at once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from usbplugin.doctor.finding import Finding, Node, fail, ok, warn
from usbplugin.doctor.kubelet import shared_directory_problem
from usbplugin.errors import ApiServerError, DaemonError
from usbplugin.status.client import Daemon

if TYPE_CHECKING:
    from collections.abc import Mapping

_COMPONENT = "apply the manifests' dra component as it is (Helm: dra.enabled)"
_REMEDIES = {
    None: "see that the pod has the token, and that a NetworkPolicy lets it reach the API server;"
    f" {_COMPONENT}",
    401: f"the token is not accepted: {_COMPONENT}",
    403: "the ClusterRole or the ValidatingAdmissionPolicy does not fit this namespace, service"
    f" account and node: {_COMPONENT}",
    404: "resource.k8s.io/v1 needs Kubernetes 1.34 or later, and --node-name has to be right",
}
_GATES = {
    "taints": "switch the feature gate DRADeviceTaints on (it is by default since Kubernetes 1.36),"
    " or no pod is evicted",
    "allowMultipleAllocations": "switch the feature gate DRAConsumableCapacity on (it is by default"
    " since Kubernetes 1.36), or shares has no effect",
}


def check_dra(node: Node) -> Finding:
    """Whether claims can be served: what is mounted, and what the API server says of a dry run."""
    if not node.config.uses_dra:
        return ok("no resource uses front: dra")
    return _problem_here(node) or _problem_there(node)


def _problem_here(node: Node) -> Finding | None:
    places = node.places
    for path, flag in ((places.registry_dir, "--registry-dir"), (places.cdi_dir, "--cdi-dir")):
        if problem := shared_directory_problem(node, path, flag):
            return problem
    if not places.node_name:
        return fail("this node's name is not known", f"set --node-name; {_COMPONENT}")
    return None


def _problem_there(node: Node) -> Finding:
    """What the API server says of a dry run."""
    try:
        dropped, allocatable = asyncio.run(_ask(node))
    except ApiServerError as error:
        return fail(str(error), _REMEDIES.get(error.status, _COMPONENT))
    if dropped:
        return warn(
            f"the API server does not keep {', '.join(sorted(dropped))}",
            "; ".join(_GATES[name] for name in sorted(dropped)),
        )
    if left := _left_to_the_device_plugin(node, allocatable):
        return warn(
            f"the node still counts {left} for the device plugin: pods that are bound by that are"
            " rejected for good",
            "keep the node cordoned until the number is 0, some ten seconds after the change",
        )
    return ok("the API server takes this node's ResourceSlices, taints and shares included")


def check_claims(node: Node) -> Finding:
    """Whether anything is left of claims that nobody has, or that nobody will unprepare."""
    prepared = _prepared(node)
    if not node.config.uses_dra:
        if not prepared:
            return ok("no claim is prepared")
        return warn(
            f"{prepared} claim{'s are' if prepared > 1 else ' is'} still prepared, though no"
            " resource uses front: dra",
            "leave the dra component in place until their pods have gone: without it they stay"
            " Terminating",
        )
    try:
        rows = asyncio.run(_rows(node))
    except DaemonError as error:
        return warn(str(error), "see its log")
    claims = {str(claim) for row in rows for claim in _list(row, "claims")}
    held = {str(claim) for row in rows if row["holders"] for claim in _list(row, "claims")}
    if nobodys := sorted(claims - held):
        return warn(
            f"prepared, but no container has it by the kubelet's word: {', '.join(nobodys)}",
            "nothing, if their pods are about to start; else they are forgotten once the API server"
            " says that they are gone",
        )
    return ok(f"{prepared} claim{'' if prepared == 1 else 's'} prepared")


async def _ask(node: Node) -> tuple[set[str], Mapping[str, str]]:
    """What the API server would not keep of a slice, and what the Node's status counts.

    Raises:
        ApiServerError: it does not take it, or there is no answer.
    """
    # Only here: most never need it.
    from usbplugin.dra.access import Access  # noqa: PLC0415
    from usbplugin.dra.apiserver import ApiServer  # noqa: PLC0415
    from usbplugin.dra.cluster import Cluster  # noqa: PLC0415
    from usbplugin.dra.device import sample  # noqa: PLC0415
    from usbplugin.dra.slices import Pool, dropped_fields, slices_of  # noqa: PLC0415

    places = node.places
    if places.api_server:
        access = Access.of(places.api_server, places.service_account)
    else:
        access = Access.in_cluster(directory=places.service_account)
    server = ApiServer(access)
    try:
        cluster = Cluster(server)
        found = await cluster.node(places.node_name)
        entry = sample()
        (wanted,) = slices_of(
            Pool(1, {entry.name: 0}), {entry.name: entry}, places.node_name, found.uid
        )
        applied = await cluster.apply(wanted, dry_run=True)
        return dropped_fields([entry], applied.devices), found.allocatable
    finally:
        await server.close()


def _left_to_the_device_plugin(node: Node, allocatable: Mapping[str, str]) -> str:
    by_claim = [offer.resource for offer in node.config.offers() if offer.by_claim]
    counts = [(allocatable.get(name, "0"), name) for name in by_claim]
    return ", ".join(f"{count} {name}" for count, name in counts if count != "0")


def _prepared(node: Node) -> int:
    try:
        return sum(path.suffix == ".json" for path in node.places.claims_dir.iterdir())
    except OSError:
        return 0


async def _rows(node: Node) -> list[dict[str, object]]:
    daemon = Daemon(node.places.control_socket)
    return await daemon.rows() if await daemon.is_there() else []


def _list(row: Mapping[str, object], key: str) -> list[object]:
    found = row.get(key, [])
    return found if isinstance(found, list) else []
