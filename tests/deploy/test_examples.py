from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.deploy.documents import supported_versions
from tests.deploy.manifests import DEPLOY, containers, load, pod_specs, requested
from tests.deploy.tools import module
from usbplugin import __version__
from usbplugin.config import parse, warnings

if TYPE_CHECKING:
    from pathlib import Path

EXAMPLES = DEPLOY / "examples"
FILES = sorted(path for path in EXAMPLES.glob("*.yaml") if path.name != "config.yaml")
ALL = [*FILES, DEPLOY / "kind" / "reader.yaml"]


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_the_schemas_of_the_oldest_and_the_newest_kubernetes(path: Path) -> None:
    validate = module("kubernetes_validate").validate
    for manifest in load(path.read_text("utf-8")):
        for version in supported_versions():
            validate(manifest, version, strict=True)


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_what_is_requested_is_configured(path: Path) -> None:
    config = parse((EXAMPLES / "config.yaml").read_bytes())
    assert warnings(config) == []
    specs = list(pod_specs(load(path.read_text("utf-8"))))
    assert specs
    for spec in specs:
        assert requested(spec)
        assert requested(spec) <= {resource.name for resource in config.resources}


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_a_device_needs_no_privilege(path: Path) -> None:
    """The very point of a device plugin: what others do with privileged pods and host paths."""
    for spec in pod_specs(load(path.read_text("utf-8"))):
        assert spec["automountServiceAccountToken"] is False
        assert not any("hostPath" in volume for volume in spec.get("volumes", ()))
        for container in containers(spec):
            assert not container.get("securityContext", {}).get("privileged")


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_images_have_a_version(path: Path) -> None:
    for spec in pod_specs(load(path.read_text("utf-8"))):
        for container in containers(spec):
            _, colon, tag = container["image"].rpartition(":")
            assert colon
            assert tag != "latest"


def test_the_kind_reader_has_the_image_that_was_built() -> None:
    (pod,) = load((DEPLOY / "kind" / "reader.yaml").read_text("utf-8"))
    assert [c["image"] for c in containers(pod["spec"])] == [f"usbplugin:{__version__}"]
