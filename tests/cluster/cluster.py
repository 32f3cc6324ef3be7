"""The cluster under test: the plugin is installed there, the bus pod beside it; pods come and go.

This module owns what the tests make there, and takes all of it down.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from typing import TYPE_CHECKING

from tests.cluster import bus as buses
from tests.cluster import manifests, pods
from tests.cluster.ground import LABEL, MARK
from tests.cluster.kubectl import KubectlError
from tests.cluster.manifests import Install

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster.ground import Ground
    from tests.cluster.kubectl import Document, Kubectl, Sight, Watch

PLUGIN_NAMESPACE = "usbplugin-test"
PODS_NAMESPACE = "usbplugin-test-pods"
DAEMONSET = "daemonset/usbplugin"
_OURS = ("/run/usbplugin", "/var/lib/usbplugin", buses.DIRECTORY)
"""What the plugin and the bus leave on a node."""
_SHARED = (
    "/run/cdi",
    "/etc/kubernetes/node-feature-discovery/features.d",
    "/etc/kubernetes/node-feature-discovery",
    "/etc/kubernetes",
)
"""What the kubelet made for the plugin's mounts, and others may use; inner ones first."""
# Why an image cannot be had; a pod that says so gets no better.
_NO_IMAGE = ("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName")


class Cluster:
    """What is shared by all tests of a session."""

    def __init__(self, ground: Ground, kind: str) -> None:
        self.ground = ground
        self.plugin: Kubectl = ground.kubectl.within(PLUGIN_NAMESPACE)
        self.pods: Kubectl = ground.kubectl.within(PODS_NAMESPACE)
        self.node = ground.node
        self.image = ground.image
        self._kind = kind
        self._installed: Install | None = None
        self._bus: buses.Bus | None = None
        self._others: set[str] = set()
        """Directories of the node that were there before."""

    @property
    def bus(self) -> buses.Bus:
        assert self._bus is not None, "setup() has not been called"
        return self._bus

    @property
    def tells_health(self) -> bool:
        """Whether the API tells the health of a pod's devices (ResourceHealthStatus, 1.36)."""
        return self.version >= (1, 36)

    @property
    def version(self) -> tuple[int, int]:
        """The kubelet's."""
        found = re.match(r"v(\d+)\.(\d+)", self.ground.facts["kubeletVersion"])
        assert found
        return int(found[1]), int(found[2])

    @staticmethod
    def now() -> float:
        """The clock of ``Sight.at``."""
        return time.monotonic()

    def setup(self) -> None:
        """Make the namespaces and the bus, and label the node."""
        again = self._delete_namespaces()
        self.make_namespace(PODS_NAMESPACE)
        self.pods.create(buses.pod(self.image, self.node, self._kind))
        self.wait_ready(buses.POD)
        self._bus = buses.Bus(self.pods)
        if not again:
            there = (path for path in (*_OURS, *_SHARED) if self.bus.tree(path) is not None)
            self._others = {*there} - {buses.DIRECTORY}
        self.label()

    def teardown(self) -> None:
        """Take down all that was made, also on the node."""
        with contextlib.ExitStack() as steps:
            steps.callback(self._delete_namespaces)
            steps.callback(self._clean_node)
            steps.callback(self.uninstall)
            steps.callback(self.delete_pods)
            steps.callback(self.unlabel)

    def label(self) -> None:
        self.plugin.run("label", "node", self.node, f"{LABEL}=true", "--overwrite")

    def unlabel(self) -> None:
        self.plugin.run("label", "node", self.node, f"{LABEL}-")

    def _clean_node(self) -> None:
        if self._bus is not None:
            with contextlib.suppress(AssertionError):
                self._bus.unplug_all()
            for path in (*_OURS, *_SHARED):
                if path not in self._others and self._bus.tree(path) is not None:
                    self._bus.remove(path, everything=path in _OURS)
            self._bus.close()

    def _delete_namespaces(self) -> bool:
        """Delete what tests made; False if there was nothing."""
        found = self.plugin.run("get", "namespaces", f"-l{MARK}", "--output=name").split()
        self.plugin.run("delete", "namespaces", f"-l{MARK}", "--wait=true", timeout=120)
        return bool(found)

    def make_namespace(self, name: str, pod_security: str = "privileged") -> None:
        """Make a namespace that is deleted in the end, and wait until it can have pods."""
        labels = {MARK: "true", "pod-security.kubernetes.io/enforce": pod_security}
        where = self.plugin.within(name)
        where.apply(
            {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": name, "labels": labels},
            }
        )
        with where.watch("serviceaccounts", "default") as watch:
            watch.started()

    # The plugin.

    def render(self, install: Install, namespace: str = PLUGIN_NAMESPACE) -> list[Document]:
        documents = manifests.render(
            self.plugin,
            install,
            base=self.ground.base,
            image=self.image,
            namespace=namespace,
        )
        for document in documents:
            if document["kind"] == "Namespace":
                document["metadata"]["labels"][MARK] = "true"
        return documents

    def install(self, install: Install | None = None) -> None:
        """Have the plugin installed so, unless it is already; wait until it serves."""
        install = install or Install()
        if install != self._installed:
            self._installed = None
            self.plugin.apply(*self.render(install))
            self.wait_rollout()
            self._installed = install

    def uninstall(self) -> None:
        """As docs/operations.md says: pods that hold devices go first, then the DaemonSet."""
        self._installed = None
        self.plugin.run("delete", "namespace", PLUGIN_NAMESPACE, "--ignore-not-found", timeout=120)

    def wait_rollout(self, timeout: int = 60) -> None:
        try:
            self.plugin.run(
                "rollout", "status", DAEMONSET, f"--timeout={timeout}s", timeout=timeout + 10
            )
        except KubectlError as error:
            raise AssertionError(f"{error}\n{self.plugin_state()}") from error

    def plugin_state(self) -> str:
        """What a person would look at when the plugin does not come up."""
        found = []
        for command in (("get", "pods", "--output=wide"), ("logs", DAEMONSET, "--tail=20")):
            try:
                found.append(self.plugin.run(*command))
            except KubectlError as error:
                found.append(str(error))
        return "\n".join(found)

    def usbplugin(self, *arguments: str) -> str:
        """A command in the plugin's pod."""
        return self.plugin.run("exec", DAEMONSET, "--", "usbplugin", *arguments)

    def devices(self) -> list[Document]:
        """What ``usbplugin list`` tells of each device."""
        found: list[Document] = json.loads(self.usbplugin("list", "--json"))
        return found

    # The node.

    def watch_node(self) -> contextlib.AbstractContextManager[Watch]:
        return self.plugin.watch("nodes", self.node)

    def wait_allocatable(self, count: int, resource: str = pods.SERIAL) -> Sight:
        """Wait until the node offers so many devices."""
        with self.watch_node() as watch:
            return watch.until(
                lambda node: allocatable(node, resource) == count, f"{resource}: {count}"
            )

    # Pods.

    def start(self, pod: Document) -> Document:
        """Make a pod and wait until it is ready."""
        self.pods.create(pod)
        return self.wait_ready(pod["metadata"]["name"])

    def wait_ready(self, name: str) -> Document:
        with self.pods.watch("pods", name) as watch:
            sight = watch.until(lambda pod: pods.ready(pod) or _refused(pod) != "", "ready")
        if reason := _refused(sight.object):
            raise AssertionError(
                f"pod {name}: {reason}. The image {self.image} has to be on node {self.node}, or"
                " where the node can pull it from:"
                " make cluster-test IMAGE=registry.example.com/usbplugin:TAG"
            )
        return sight.object

    def wait_restarted(self, name: str) -> Document:
        """Wait until a pod is ready after a restart of its container."""
        with self.pods.watch("pods", name) as watch:
            sight = watch.until(
                lambda pod: pods.ready(pod) and pods.status(pod)["restartCount"] > 0,
                "running again",
            )
        return sight.object

    def delete_pods(self) -> None:
        """All pods of tests, until they are gone."""
        selector = ",".join(f"{key}={value}" for key, value in pods.LABELS.items())
        # A controller that is deleted in the foreground makes no new one.
        kinds = "deployments,statefulsets,services,configmaps,pods"
        self.pods.run("delete", kinds, f"-l{selector}", "--cascade=foreground", timeout=120)

    @contextlib.contextmanager
    def logs(self, pod: str, *more: str, namespace: str = PODS_NAMESPACE) -> Iterator[Log]:
        """What a container prints, from its start on."""
        log = Log(self.pods.within(namespace).command("logs", "--follow", pod, *more))
        try:
            yield log
        finally:
            log.close()


class Log:
    """The lines that a container prints, as it prints them."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            ["timeout", "60", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def until(self, text: str) -> str:
        """Wait for a line with this text; it is returned."""
        assert self._process.stdout is not None
        lines = []
        for line in self._process.stdout:
            if text in line:
                return line.strip()
            lines.append(line)
        raise AssertionError(f"the container did not say {text!r}, but: {''.join(lines)}")

    def close(self) -> None:
        self._process.terminate()
        self._process.communicate()


def allocatable(node: Document, resource: str = pods.SERIAL) -> int:
    return int(node["status"]["allocatable"].get(resource, "0"))


def capacity(node: Document, resource: str = pods.SERIAL) -> int:
    return int(node["status"]["capacity"].get(resource, "0"))


def _refused(pod: Document) -> str:
    """Why a pod will not run; empty while it may."""
    status = pod.get("status", {})
    if status.get("phase") == "Failed":
        return f"{status.get('reason', 'Failed')}: {status.get('message', '')}"
    for entry in status.get("containerStatuses", ()):
        waiting = entry.get("state", {}).get("waiting", {})
        if waiting.get("reason") in _NO_IMAGE:
            return f"{waiting['reason']}: {waiting.get('message', '')}"
    return ""
