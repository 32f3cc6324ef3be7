"""The deployment as the cluster would get it: rendered by the real kubectl and helm."""

from __future__ import annotations

import copy
import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tests.deploy.tools import ROOT, output, program

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

DEPLOY = ROOT / "deploy"
OVERLAYS = ("k3s", "k0s", "microk8s", "kind", "cdi", "nfd", "dra")
CHART = DEPLOY / "helm" / "usbplugin"
HELM_VARIANTS = {
    "helm": (),
    "helm-microk8s": (
        "kubelet.devicePluginsDir=/var/snap/microk8s/common/var/lib/kubelet/device-plugins",
        "kubelet.podResourcesDir=/var/snap/microk8s/common/var/lib/kubelet/pod-resources",
    ),
    "helm-k0s": ("kubelet.podResourcesDir=/var/lib/k0s/kubelet/pod-resources",),
    "helm-watcher": (
        "config.registration=watcher",
        "kubelet.pluginsRegistryDir=/var/lib/kubelet/plugins_registry",
    ),
    "helm-cdi": (
        "cdi.enabled=true",
        "config.cdi=true",
        "config.resources[0].name=usbplugin/serial",
        "config.resources[0].containerPath=/dev/serial",
    ),
    "helm-nfd": ("nodeFeatures.enabled=true", "config.nodeFeatures=true"),
    "helm-dra": (
        "dra.enabled=true",
        "config.resources[0].name=usbplugin/serial",
        "config.resources[0].front=dra",
    ),
    "helm-monitored": (
        "http.enabled=true",
        "podMonitor.enabled=true",
        "seLinuxType=container_device_plugin_t",
    ),
}
TARGETS = ("base", *OVERLAYS, "components", *HELM_VARIANTS)
"""All that people apply. A Helm variant stands for the overlay after its dash."""

WITH_DRA = {"dra", "helm-dra", "components"}
"""Those that speak to the API server."""

POD = "usbplugin/usbplugin-7xk2p"
"""A pod of the DaemonSet, by namespace and name."""

Manifest = dict[str, Any]
REMEDY = "make deploy-tools"


def load(text: str) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(text) if document is not None]


def rendered(target: str) -> list[Manifest]:
    return copy.deepcopy(_render(target))


@functools.cache
def _render(target: str) -> list[Manifest]:
    if target in HELM_VARIANTS:
        return load(helm_template(*HELM_VARIANTS[target]))
    folders = {
        "base": DEPLOY / "kustomize" / "base",
        "components": Path(__file__).with_name(target),
    }
    folder = folders.get(target, DEPLOY / "kustomize" / "overlays" / target)
    return load(output(program("kubectl", REMEDY), "kustomize", str(folder)))


def helm_template(*values: str) -> str:
    settings = [part for value in values for part in ("--set", value)]
    helm = program("helm", REMEDY)
    return output(helm, "template", "usbplugin", str(CHART), "--namespace=usbplugin", *settings)


def environment(container: Manifest, pod: str = POD) -> dict[str, str]:
    """The variables as the kubelet would set them: a reference knows what stands before it."""
    namespace, _, name = pod.partition("/")
    fields = {
        "metadata.namespace": namespace,
        "metadata.name": name,
        "spec.nodeName": "node-1",
    }
    found: dict[str, str] = {}
    for each in container.get("env", ()):
        if "valueFrom" in each:
            value = fields[each["valueFrom"]["fieldRef"]["fieldPath"]]
        else:
            value = re.sub(r"\$\((\w+)\)", lambda name: found.get(name[1], name[0]), each["value"])
        found[each["name"]] = value
    return found


def of_kind(kind: str, manifests: Iterable[Manifest]) -> Iterator[Manifest]:
    return (manifest for manifest in manifests if manifest["kind"] == kind)


def pod_specs(manifests: Iterable[Manifest]) -> Iterator[Manifest]:
    for manifest in manifests:
        if manifest["kind"] == "Pod":
            yield manifest["spec"]
        elif "template" in manifest.get("spec", {}):
            yield manifest["spec"]["template"]["spec"]


def containers(spec: Manifest) -> list[Manifest]:
    return [*spec.get("initContainers", ()), *spec["containers"]]


def plugin(manifests: Iterable[Manifest]) -> Manifest:
    """The pod spec of the plugin itself."""
    (spec,) = (
        daemon_set["spec"]["template"]["spec"]
        for daemon_set in of_kind("DaemonSet", manifests)
        if daemon_set["metadata"]["name"] == "usbplugin"
    )
    return dict(spec)


def host_paths(spec: Manifest) -> set[tuple[str, str, str]]:
    """Path on the host, path in the pod, and ``ro`` or ``rw``, of each."""
    paths = {
        volume["name"]: volume["hostPath"]["path"]
        for volume in spec.get("volumes", ())
        if "hostPath" in volume
    }
    return {
        (paths[mount["name"]], mount["mountPath"], "ro" if mount.get("readOnly") else "rw")
        for container in containers(spec)
        for mount in container.get("volumeMounts", ())
        if mount["name"] in paths
    }


def host_path_types(spec: Manifest) -> dict[str, str]:
    """What the kubelet checks or makes before it mounts each path of the host."""
    return {
        volume["hostPath"]["path"]: volume["hostPath"]["type"]
        for volume in spec.get("volumes", ())
        if "hostPath" in volume
    }


def configuration(manifests: Iterable[Manifest]) -> bytes:
    """The configuration file that comes along."""
    (text,) = (
        config_map["data"]["config.yaml"]
        for config_map in of_kind("ConfigMap", manifests)
        if "config.yaml" in config_map["data"]
    )
    return str(text).encode()


def requested(spec: Manifest) -> set[str]:
    """The extended resources that a pod asks for."""
    return {
        name
        for container in containers(spec)
        for name in container.get("resources", {}).get("limits", {})
        if "/" in name
    }
