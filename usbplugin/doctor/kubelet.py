"""Checks of the kubelet's side: directories, mounts, sockets, and whether anybody answers there."""

from __future__ import annotations

import asyncio
import os
import tempfile
from typing import TYPE_CHECKING

from usbplugin.config import Registration
from usbplugin.doctor.finding import Finding, Node, fail, ok, warn
from usbplugin.errors import DaemonError, KubeletError
from usbplugin.kubelet import PluginDirectory, PodResources
from usbplugin.kubelet.probe import kubelet_silence
from usbplugin.status.client import Daemon

if TYPE_CHECKING:
    from pathlib import Path

_READY = 200


def check_plugin_directory(node: Node) -> Finding:
    """Whether our sockets can be where the kubelet looks for them."""
    watcher = node.config.registration is Registration.WATCHER
    path = node.places.registry_dir if watcher else node.places.kubelet_dir
    flag = "--registry-dir" if watcher else "--kubelet-dir"
    if problem := _shared_directory_problem(node, path, flag):
        return problem
    try:
        for resource in node.config.resources:
            PluginDirectory(path).new_socket(resource.name)
    except KubeletError as error:
        return fail(str(error), f"choose a shorter {flag}")
    return ok(f"{path} is there, and can be written to")


def check_kubelet(node: Node) -> Finding:
    """Whether the kubelet answers."""
    if node.config.registration is Registration.WATCHER:
        return ok("with registration: watcher, the kubelet finds us by itself")
    socket = PluginDirectory(node.places.kubelet_dir).kubelet_socket
    if not socket.is_socket():
        return fail(
            f"{socket} is no socket: no kubelet runs, or its directory is another one",
            f"start the kubelet; MicroK8s has /var/snap/microk8s/common{node.places.kubelet_dir}",
        )
    if problem := asyncio.run(kubelet_silence(socket)):
        return fail(
            problem, "see the kubelet's log; where SELinux enforces, see the finding about it"
        )
    return ok(f"the kubelet answers on {socket}")


def check_holders(node: Node) -> Finding:
    """Whether the kubelet tells who holds devices."""
    socket = node.places.pod_resources
    consequence = (
        "who holds devices is not known: a device that came back elsewhere is not told from one"
        " that is free"
    )
    pod_resources = PodResources(socket, node.places.own_pod)
    if not pod_resources.is_there:
        return warn(
            f"{socket} is no socket; {consequence}",
            f"mount the host's {socket.parent}, read-only, at the same path"
            if node.in_container
            else "start the kubelet, or name its socket with --pod-resources",
        )
    try:
        held = asyncio.run(pod_resources.list())
    except KubeletError as error:
        return warn(
            f"{error}; {consequence}",
            "the socket is root's: run as root; if our own pod is missing, the kubelet may just"
            " have started, or --own-pod is wrong",
        )
    ours = {resource.name for resource in node.config.resources}
    count = sum(device.resource in ours for device in held)
    return ok(f"the kubelet tells who holds devices: {count} of ours are held")


def check_links(node: Node) -> Finding:
    """Whether links to nodes can be kept where the container runtime finds them."""
    path = node.places.link_dir
    consequence = "a container that is restarted after a replug may find its node gone or taken"
    if not path.exists() and not node.in_container:
        return ok(f"{path} is not there yet; serve makes it")
    if problem := _shared_directory_problem(node, path, "--link-dir"):
        return warn(f"{problem.found}: {consequence}", problem.remedy)
    return ok(f"links can be kept in {path}")


def check_cdi(node: Node) -> Finding:
    """Whether CDI specs can be written, if any are to be."""
    if not any(offer.cdi for offer in node.config.offers()):
        return ok("no resource is handed over by CDI")
    if problem := _shared_directory_problem(node, node.places.cdi_dir, "--cdi-dir"):
        return problem
    return ok(f"CDI specs can be written to {node.places.cdi_dir}")


def check_daemon(node: Node) -> Finding:
    """Whether a usbplugin runs on this node, and how it is."""
    daemon = Daemon(node.places.control_socket)
    try:
        code, document = asyncio.run(_readiness(daemon))
    except DaemonError as error:
        return warn(str(error), "see its log")
    if code is None:
        return ok("no usbplugin serve runs here now")
    if code == _READY:
        return ok("usbplugin serve runs here, and is ready")
    parts = document.get("parts", []) if isinstance(document, dict) else []
    troubles = [f"{part['name']}: {part['detail']}" for part in parts if not part["ok"]]
    return warn(
        f"usbplugin serve runs here, but is not ready: {'; '.join(troubles)}", "see its log"
    )


async def _readiness(daemon: Daemon) -> tuple[int | None, object]:
    return await daemon.get("/readyz") if await daemon.is_there() else (None, None)


def _shared_directory_problem(node: Node, path: Path, flag: str) -> Finding | None:
    """Why a directory that we share with the host cannot be used; None if it can."""
    remedy = f"name the right one with {flag}"
    if node.in_container:
        remedy = f"mount the host's {path}, writable, at the same path"
        if not node.is_mounted(path):
            return fail(f"{path} is the container's own: nobody on the host sees it", remedy)
    if not path.is_dir():
        return fail(f"{path} is no directory", remedy)
    try:
        with tempfile.NamedTemporaryFile(dir=path, prefix=".usbplugin-doctor-"):
            return None
    except OSError as error:
        who = "" if os.getuid() == 0 else ", as root"
        return fail(f"{path} cannot be written to: {error.strerror}", remedy + who)
