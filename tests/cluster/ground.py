"""Which cluster and node the tests may use, and whether they may: nothing here changes anything.

What is not a test cluster by the look of it is touched only if somebody says so, at the terminal or
by USBPLUGIN_CLUSTER_CONTEXT.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.cluster.kubectl import Kubectl, KubectlError
from usbplugin import __version__

if TYPE_CHECKING:
    from tests.cluster.kubectl import Document

LABEL = "usbplugin/serial-capable"
MARK = "usbplugin-cluster-test"
"""The label of the namespaces that these tests make."""

# Contexts as kind, k3d, minikube and the desktops call them.
_TEST_CONTEXT = re.compile(r"(kind|k3d)-.+|minikube|docker-desktop|rancher-desktop|colima.*")
_SYSTEM_NAMESPACE = re.compile(r"kube-.+|local-path-storage|usbplugin-test.*")


class NoGroundError(Exception):
    """There is nothing to run the tests on; the text says why."""


class RefusedError(Exception):
    """There is a cluster, but the tests must not run there; the text says why and what to do."""


@dataclass(frozen=True)
class Ground:
    """The cluster and node that the tests use."""

    kubectl: Kubectl
    context: str
    node: str
    facts: Document
    """The node's ``status.nodeInfo``."""
    image: str
    base: str


def find(terminal: Path = Path("/dev/tty")) -> Ground:
    """Look at the cluster of the current kubeconfig.

    Args:
        terminal: where a person may be asked; pytest's capturing does not hold it.

    Raises:
        NoGroundError: there is no kubectl, or no cluster answers.
        RefusedError: it has no node that will do, usbplugin is installed there already, or nobody
            said that this cluster may be touched.
    """
    program = os.environ.get("KUBECTL") or shutil.which("kubectl")
    if not program:
        raise NoGroundError("kubectl is not here: https://kubernetes.io/docs/tasks/tools")
    kubectl = Kubectl(program)
    try:
        context = kubectl.run("config", "current-context").strip()
        nodes = kubectl.get("nodes", "--request-timeout=10s")["items"]
    except KubectlError as error:
        raise NoGroundError(f"no cluster answers (KUBECONFIG says which): {error}") from error
    _check_nobody_is_there(kubectl, nodes)
    node = _choose(nodes)
    _ask(kubectl, context, node["metadata"]["name"], terminal)
    return Ground(
        kubectl=kubectl,
        context=context,
        node=node["metadata"]["name"],
        facts=node["status"]["nodeInfo"],
        image=os.environ.get("USBPLUGIN_CLUSTER_IMAGE") or f"usbplugin:{__version__}",
        base=os.environ.get("USBPLUGIN_CLUSTER_BASE") or "deploy/kustomize/base",
    )


def _check_nobody_is_there(kubectl: Kubectl, nodes: list[Document]) -> None:
    installed = [
        item["metadata"]["namespace"]
        for item in kubectl.get("daemonsets", "--all-namespaces")["items"]
        if item["metadata"]["labels"].get("app.kubernetes.io/name") == "usbplugin"
    ]
    ours = {item["metadata"]["name"] for item in kubectl.get("namespaces", f"-l{MARK}")["items"]}
    if others := sorted(set(installed) - ours):
        raise RefusedError(
            f"usbplugin is installed in namespace {', '.join(others)}: two installs would share the"
            " nodes' devices. Remove that one first, or use another cluster."
        )
    labelled = [n["metadata"]["name"] for n in nodes if LABEL in n["metadata"]["labels"]]
    if labelled and not ours:
        raise RefusedError(
            f"node {', '.join(labelled)} has the label {LABEL} already. If nothing needs it any"
            f" more: kubectl label node {labelled[0]} {LABEL}-"
        )


def _choose(nodes: list[Document]) -> Document:
    wanted = os.environ.get("USBPLUGIN_CLUSTER_NODE", "")
    fit = [node for node in nodes if _is_fit(node)]
    if wanted:
        fit = [node for node in fit if node["metadata"]["name"] == wanted]
    if not fit:
        raise RefusedError(f"{wanted or 'no node'} is Ready, schedulable and runs Linux")
    # A worker before one that runs the control plane.
    return min(
        fit, key=lambda node: (len(node["spec"].get("taints", ())), node["metadata"]["name"])
    )


def _is_fit(node: Document) -> bool:
    ready = any(
        c["type"] == "Ready" and c["status"] == "True" for c in node["status"]["conditions"]
    )
    linux = node["status"]["nodeInfo"]["operatingSystem"] == "linux"
    return ready and linux and not node["spec"].get("unschedulable", False)


def _ask(kubectl: Kubectl, context: str, node: str, terminal: Path) -> None:
    if os.environ.get("USBPLUGIN_CLUSTER_CONTEXT") == context or _TEST_CONTEXT.fullmatch(context):
        return
    workloads = {
        item["metadata"]["namespace"]
        for item in kubectl.get("pods", "--all-namespaces")["items"]
        if not _SYSTEM_NAMESPACE.fullmatch(item["metadata"]["namespace"])
    }
    if not workloads:
        return
    server = kubectl.run(
        "config", "view", "--minify", "--output=jsonpath={.clusters[0].cluster.server}"
    )
    what = (
        f"context {context} ({server}) does not look like a test cluster: there are pods in"
        f" {', '.join(sorted(workloads))}. The tests would label node {node}, run pods"
        " there that can read and write all of its files, and remove them again."
    )
    if _confirmed(terminal, f"\n{what}\nType the context's name to go on: ", context):
        return
    raise RefusedError(
        f"{what} To have them run there: make cluster-test USBPLUGIN_CLUSTER_CONTEXT={context}"
    )


def _confirmed(terminal: Path, question: str, expected: str) -> bool:
    try:
        with terminal.open("r+b", buffering=0) as person:
            person.write(question.encode())
            return person.readline().decode(errors="replace").strip() == expected
    except OSError:
        return False
