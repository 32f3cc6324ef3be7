"""The plugin's own manifests, as they are installed on the cluster under test.

What differs from what a user applies is what has to: the image's place, the namespace, and that the
ports are those of a directory, which the patch of the kind overlay says (it is read, not copied).
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from tests.deploy.tools import ROOT

if TYPE_CHECKING:
    from tests.cluster.kubectl import Document, Kubectl

NAME = "usbplugin"
KUSTOMIZE = Path("deploy/kustomize")
DEFAULT_CONFIG = (ROOT / KUSTOMIZE / "base" / "config.yaml").read_text("utf-8")


@dataclass(frozen=True)
class Install:
    """One way to install the plugin."""

    config: str = DEFAULT_CONFIG
    components: tuple[str, ...] = ()
    patches: tuple[str, ...] = field(default=(), kw_only=True)
    """More patches, as YAML."""


def virtual_patch() -> str:
    """What makes the plugin take its ports from a directory: the kind overlay's patch."""
    overlay = yaml.safe_load((ROOT / KUSTOMIZE / "overlays/kind/kustomization.yaml").read_text())
    (patch,) = (entry["patch"] for entry in overlay["patches"])
    assert isinstance(patch, str)
    return patch


def render(
    kubectl: Kubectl, install: Install, *, base: str, image: str, namespace: str
) -> list[Document]:
    """What kustomize makes of an installation.

    Args:
        kubectl: whose kustomize is asked.
        install: what to install.
        base: the overlay (or base) of the checkout that suits the cluster.
        image: where the nodes find the plugin's image, NAME:TAG.
        namespace: in place of the manifests' own.
    """
    name, _, tag = image.rpartition(":")
    # In the checkout, for kustomize loads no absolute path.
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=build, prefix="cluster-") as folder:
        here = Path(folder)
        (here / "config.yaml").write_text(install.config, "utf-8")
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": namespace,
            "resources": [os.path.relpath(ROOT / base, here)],
            "components": [
                os.path.relpath(ROOT / KUSTOMIZE / "components" / component, here)
                for component in install.components
            ],
            "images": [{"name": NAME, "newName": name, "newTag": tag}],
            "patches": [{"patch": patch} for patch in (virtual_patch(), *install.patches)],
            "configMapGenerator": [
                {
                    "name": NAME,
                    "namespace": NAME,
                    "behavior": "replace",
                    "files": ["config.yaml"],
                }
            ],
        }
        (here / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), "utf-8")
        return [
            document
            for document in yaml.safe_load_all(kubectl.run("kustomize", str(here)))
            if document
        ]
