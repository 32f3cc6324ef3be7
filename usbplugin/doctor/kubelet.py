"""Checks directories, mounts and sockets, the kubelet's and ours, and whether anyone answers."""

from __future__ import annotations

import asyncio
import os
import tempfile
from typing import TYPE_CHECKING

from usbplugin.config import Registration
from usbplugin.doctor.finding import SEE_SELINUX, Finding, Node, fail, ok, warn
from usbplugin.errors import DaemonError, KubeletError
from usbplugin.kubelet import Checkpoint, PluginDirectory, PodResources
from usbplugin.kubelet.checkpoint import FILE_NAME as CHECKPOINT
from usbplugin.kubelet.probe import kubelet_silence
from usbplugin.status.client import Daemon, left_in

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_READY = 200
_ALL_HELD = "until somebody says who holds devices, whatever was granted counts as held"
_LABEL = "where SELinux is enforcing, label it container_file_t"


def check_plugin_directory(node: Node) -> Finding:
    """Whether we can put our sockets where the kubelet looks for them."""
    watcher = node.config.registration is Registration.WATCHER
    path = node.places.registry_dir if watcher else node.places.kubelet_dir
    flag = "--registry-dir" if watcher else "--kubelet-dir"
    if problem := shared_directory_problem(node, path, flag):
        return problem
    try:
        for resource in node.config.resources:
            PluginDirectory(path).new_socket(resource.name)
    except KubeletError as error:
        return fail(str(error), f"choose a shorter {flag}")
    return ok(f"{path} is writable")


def check_kubelet(node: Node) -> Finding:
    """Whether the kubelet answers."""
    if node.config.registration is Registration.WATCHER:
        return ok("with registration: watcher, the kubelet finds us by itself")
    socket = PluginDirectory(node.places.kubelet_dir).kubelet_socket
    if not socket.is_socket():
        return fail(
            f"no socket at {socket}: the kubelet is not running, or uses another directory",
            "start the kubelet, or set --kubelet-dir (on MicroK8s,"
            f" /var/snap/microk8s/common{node.places.kubelet_dir})",
        )
    if problem := asyncio.run(kubelet_silence(socket)):
        return fail(problem, f"see the kubelet's log; {SEE_SELINUX}")
    return ok(f"the kubelet answers on {socket}")


def check_holders(node: Node) -> Finding:
    """Whether the kubelet reports who holds devices, or at least its checkpoint does."""
    pod_resources = PodResources(node.places.pod_resources, node.places.own_pod)
    if not pod_resources.is_there:
        return _holders_by_checkpoint(node)
    try:
        held = asyncio.run(pod_resources.list())
    except KubeletError as error:
        return warn(
            f"{error}; {_ALL_HELD}",
            "run as root, who owns the socket; if our own pod is missing, the kubelet may have only"
            " just started, or --own-pod is wrong",
        )
    count = _count_ours(node, (device.resource for device in held))
    return ok(f"the kubelet reports device holders: {count} of our devices held")


def _holders_by_checkpoint(node: Node) -> Finding:
    """What the plugin can know of holders without the PodResources socket."""
    socket = node.places.pod_resources
    remedy = (
        f"mount the host's {socket.parent} read-only at the same path"
        if node.in_container
        else "start the kubelet, or set its socket with --pod-resources"
    )
    checkpoint = Checkpoint(node.places.kubelet_dir / CHECKPOINT)
    if not checkpoint.is_there:
        return warn(
            f"neither a socket at {socket} nor the kubelet's checkpoint in"
            f" {node.places.kubelet_dir}: {_ALL_HELD}",
            remedy,
        )
    try:
        replays = checkpoint.read()
    except KubeletError as error:
        return warn(f"no socket at {socket}, and {error}; {_ALL_HELD}", remedy)
    held = (replay.resource for replay in replays for _ in replay.device_ids)
    return warn(
        f"no socket at {socket}; the kubelet's checkpoint stands in ({_count_ours(node, held)} of"
        " our devices held). A pod that has gone may stay in it, and keep its device, until the"
        " kubelet admits another one",
        remedy,
    )


def _count_ours(node: Node, resources: Iterable[str]) -> int:
    ours = {resource.name for resource in node.config.resources}
    return sum(resource in ours for resource in resources)


def check_links(node: Node) -> Finding:
    """Whether links to nodes can be kept where the container runtime finds them."""
    path = node.places.link_dir
    remedy = "set another one with --link-dir"
    if node.in_container:
        remedy = (
            f"mount a directory of the host read-write at {path}, which must be its path on the"
            f" host too; {_LABEL}"
        )
        if not node.is_mounted(path):
            found = f"{path} is the container's own, so the host cannot see it: no container that"
            return fail(f"{found} is given a device can start", remedy)
    return (
        _no_offer_without(path, remedy) or _to_be_made(path) or ok(f"links can be kept in {path}")
    )


def check_state(node: Node) -> Finding:
    """Whether the plugin can keep what it has to know after a restart, its own or the node's."""
    path = node.places.state_dir
    remedy = "set another one with --state-dir"
    if node.in_container:
        remedy = f"mount a directory of the host read-write at {path}; {_LABEL}"
    if problem := _no_offer_without(path, remedy):
        return problem
    if node.in_container and not node.is_mounted(path):
        found = f"{path} is the container's own: what was granted is forgotten when it ends"
        return warn(found, remedy)
    if node.is_in_memory(path):
        found = f"{path} is in memory: what was granted is forgotten when the node reboots"
        return warn(found, remedy)
    return _to_be_made(path) or ok(f"state can be kept in {path}")


def check_cdi(node: Node) -> Finding:
    """Whether CDI specs can be written, if any are needed."""
    if not (node.config.uses_dra or any(offer.cdi for offer in node.config.offers())):
        return ok("no resource uses CDI")
    if problem := shared_directory_problem(node, node.places.cdi_dir, "--cdi-dir"):
        return problem
    return ok(f"CDI specs can be written to {node.places.cdi_dir}")


def check_daemon(node: Node) -> Finding:
    """Whether the daemon is running on this node, and ready."""
    daemon = Daemon(node.places.control_socket)
    try:
        code, document = asyncio.run(_readiness(daemon))
    except DaemonError as error:
        return warn(str(error), "see its log")
    if code is None:
        socket = node.places.control_socket
        if socket.is_socket():
            return warn(
                f"usbplugin serve has ended: its socket is left at {socket}",
                "see how it ended: its log, or kubectl describe of its pod",
            )
        return ok("usbplugin serve is not running here")
    if code == _READY:
        left = left_in(document)
        stands = f"; it stands by for a newer instance, which serves {', '.join(left)}"
        return ok(f"usbplugin serve is running and ready{stands if left else ''}")
    parts = document.get("parts", []) if isinstance(document, dict) else []
    troubles = [f"{part['name']}: {part['detail']}" for part in parts if not part["ok"]]
    return warn(f"usbplugin serve is running but not ready: {'; '.join(troubles)}", "see its log")


async def _readiness(daemon: Daemon) -> tuple[int | None, object]:
    return await daemon.get("/readyz") if await daemon.is_there() else (None, None)


def shared_directory_problem(node: Node, path: Path, flag: str) -> Finding | None:
    """Why a directory shared with the host cannot be used; None if it can."""
    remedy = f"set the right one with {flag}"
    if node.in_container:
        remedy = f"mount the host's {path} read-write at the same path"
        if not node.is_mounted(path):
            return fail(f"{path} is the container's own, so the host cannot see it", remedy)
    if not path.is_dir():
        return fail(f"there is no directory {path}", remedy)
    if error := _obstacle(path):
        return fail(f"cannot write to {path}: {error.strerror}", remedy + _or_root())
    return None


def _no_offer_without(path: Path, remedy: str) -> Finding | None:
    """Why a directory that devices are not offered without cannot be written; None if it can.

    ``serve`` makes it if it is missing, so the nearest parent that exists decides.
    """
    there = next(place for place in (path, *path.parents) if place.exists())
    if error := _obstacle(there):
        found = f"cannot write to {there}: {error.strerror}; no device can be offered"
        return fail(found, remedy + _or_root())
    return None


def _to_be_made(path: Path) -> Finding | None:
    return None if path.exists() else ok(f"{path} does not exist yet; serve will create it")


def _obstacle(directory: Path) -> OSError | None:
    """Why nothing can be written to a directory; None if something can."""
    try:
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".usbplugin-doctor-"):
            return None
    except OSError as error:
        return error


def _or_root() -> str:
    return "" if os.getuid() == 0 else ", or run as root"
