from __future__ import annotations

import os
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.deploy.documents import (
    documented_host_paths,
    first_version_with_dra,
    supported_versions,
)
from tests.deploy.manifests import (
    DEPLOY,
    POD,
    REMEDY,
    TARGETS,
    WITH_DRA,
    configuration,
    containers,
    environment,
    host_path_types,
    host_paths,
    load,
    of_kind,
    plugin,
    pod_specs,
    rendered,
)
from tests.deploy.tools import ROOT, module, output, program
from usbplugin import __version__
from usbplugin.config import parse, warnings
from usbplugin.foundation.places import Places
from usbplugin.foundation.title import NOT_READY, READY

if TYPE_CHECKING:
    from pathlib import Path

FILES = sorted(
    path
    for path in DEPLOY.rglob("*.yaml")
    if "templates" not in path.parts  # Helm's are not YAML yet
)
# Not in the API server's own schemas.
CUSTOM = ("monitoring.coreos.com/",)
ALLOWED_VOLUMES = {"configMap", "emptyDir", "hostPath"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_every_file_is_yaml(path: Path) -> None:
    assert load(path.read_text("utf-8"))


@pytest.mark.parametrize("target", TARGETS)
def test_the_schemas_of_the_oldest_and_the_newest_kubernetes(target: str) -> None:
    validate = module("kubernetes_validate").validate
    for manifest in rendered(target):
        if not manifest["apiVersion"].startswith(CUSTOM):
            oldest, newest = supported_versions()
            if "dra" in target:
                oldest = first_version_with_dra()
            for version in (oldest, newest):
                validate(manifest, version, strict=True)


@pytest.mark.parametrize("target", TARGETS)
def test_least_privilege(target: str) -> None:
    specs = list(pod_specs(rendered(target)))
    assert specs
    for spec in specs:
        assert not any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(spec):
            context = container["securityContext"]
            assert context["privileged"] is False
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert not {"seccompProfile", "procMount", "runAsUser"} & context.keys()
            assert set(container["resources"]["limits"]) == {"memory"}
        kinds = {key for volume in spec["volumes"] for key in volume if key != "name"}
        assert kinds <= ALLOWED_VOLUMES | ({"projected"} if target in WITH_DRA else set())


@pytest.mark.parametrize("target", TARGETS)
def test_nobody_gets_a_token_by_itself(target: str) -> None:
    for account in of_kind("ServiceAccount", rendered(target)):
        assert account["automountServiceAccountToken"] is False


@pytest.mark.parametrize("target", [target for target in TARGETS if target not in WITH_DRA])
def test_without_dra_nobody_gets_a_token_or_a_role(target: str) -> None:
    kinds = {manifest["kind"] for manifest in rendered(target)}
    assert not {kind for kind in kinds if "Role" in kind or kind == "Secret"}
    for spec in pod_specs(rendered(target)):
        assert not any("projected" in volume for volume in spec["volumes"])
    for policy in of_kind("NetworkPolicy", rendered(target)):
        assert "egress" not in policy["spec"]


@pytest.mark.parametrize("target", TARGETS)
def test_host_paths_are_exactly_the_documented_ones(target: str) -> None:
    assert host_paths(plugin(rendered(target))) == documented_host_paths(target)


@pytest.mark.parametrize("target", TARGETS)
def test_of_udevd_there_is_its_database_and_nothing_else(target: str) -> None:
    """Its control socket is beside it, and a read-only mount keeps nobody from a socket."""
    udevd = PurePosixPath("/run/udev")
    seen = set()
    for spec in pod_specs(rendered(target)):
        for host, pod, access in host_paths(spec):
            path = PurePosixPath(host.replace("/var/run", "/run"))
            if path.is_relative_to(udevd) or udevd.is_relative_to(path):
                seen.add((host, pod, access))
    assert seen == {("/run/udev/data", "/run/udev/data", "ro")}


@pytest.mark.parametrize("target", TARGETS)
def test_a_node_without_udevd_can_start_the_pod(target: str) -> None:
    assert host_path_types(plugin(rendered(target)))["/run/udev/data"] == "DirectoryOrCreate"


@pytest.mark.parametrize("target", TARGETS)
def test_a_node_that_never_had_the_plugin_can_start_the_pod(target: str) -> None:
    types = host_path_types(plugin(rendered(target)))
    for path in (Places().link_dir, Places().state_dir):
        assert types[str(path)] == "DirectoryOrCreate"


@pytest.mark.parametrize("target", TARGETS)
def test_the_pod_keeps_its_state_where_a_reboot_leaves_it(target: str) -> None:
    spec = plugin(rendered(target))
    (container,) = spec["containers"]
    assert "USBPLUGIN_STATE_DIR" not in environment(container), "the default is what is mounted"
    (host,) = (host for host, pod, _ in host_paths(spec) if pod == str(Places().state_dir))
    assert not re.match(r"(/var)?/run/|/tmp/|/dev/", host)


@pytest.mark.parametrize("target", TARGETS)
def test_dev_is_never_a_place_for_the_runtimes_own_file(target: str) -> None:
    """With a host's /dev mounted read-only, a container with the default path does not start."""
    for spec in pod_specs(rendered(target)):
        for container in containers(spec):
            assert not container["terminationMessagePath"].startswith("/dev/")


@pytest.mark.parametrize("target", TARGETS)
def test_a_rollout_goes_node_by_node_and_leaves_none_without_a_plugin(target: str) -> None:
    (daemon_set,) = (
        each
        for each in of_kind("DaemonSet", rendered(target))
        if each["metadata"]["name"] == "usbplugin"
    )
    update = daemon_set["spec"]["updateStrategy"]
    assert update == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
    }
    assert daemon_set["spec"]["minReadySeconds"] > 0, "one that ends at once replaces nobody"
    assert plugin([daemon_set])["priorityClassName"] == "system-node-critical"


@pytest.mark.parametrize("target", TARGETS)
def test_ready_means_registered_and_is_asked_in_one_way(target: str) -> None:
    (container,) = plugin(rendered(target))["containers"]
    word = READY.partition(":")[2]
    assert word not in NOT_READY
    way: object = {"exec": {"command": ["grep", "-q", word, "/proc/1/comm"]}}
    if "USBPLUGIN_HTTP_ADDRESS" in environment(container):
        way = {"httpGet": {"path": "/readyz", "port": "http"}}
    for kind in ("startupProbe", "readinessProbe"):
        probe = container[kind]
        asked = {key: value for key, value in probe.items() if key in ("exec", "httpGet") and value}
        assert asked == way, kind
    assert container["startupProbe"]["periodSeconds"] == 1, "a rollout waits for it"


@pytest.mark.parametrize("target", TARGETS)
def test_the_configuration_is_one_that_the_plugin_takes(target: str) -> None:
    config = parse(configuration(rendered(target)))
    assert warnings(config) == []


def test_the_kustomization_of_the_readme_names_the_image_that_was_pushed(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    found = re.search(
        r"^cat > kustomization.yaml <<'EOF'\n(.*?)^EOF$", readme, re.DOTALL | re.MULTILINE
    )
    assert found
    base = os.path.relpath(DEPLOY / "kustomize", tmp_path.resolve())  # kustomize wants it relative
    text = found[1].replace("deploy/kustomize", base)
    (tmp_path / "kustomization.yaml").write_text(text, "utf-8")
    written = re.search(
        r"Write a `config.yaml`.*?^```yaml\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE
    )
    assert written
    (tmp_path / "config.yaml").write_text(written[1], "utf-8")
    manifests = load(output(program("kubectl", REMEDY), "kustomize", str(tmp_path)))
    assert configuration(manifests) == written[1].encode()
    pushed = f"registry.example.com/usbplugin:{__version__}"
    assert [container["image"] for container in containers(plugin(manifests))] == [pushed]
    assert f"docker push {pushed}" in readme


def test_the_commented_part_of_the_configuration_is_valid_too() -> None:
    """What people uncomment has to work as well."""
    lines = (DEPLOY / "kustomize" / "base" / "config.yaml").read_text("utf-8").splitlines()
    first = lines.index("resources:")
    text = "\n".join(
        line.replace("  # ", "  ", 1) for line in lines[first:] if "No selectors" not in line
    )
    config = parse(text.encode())
    assert [resource.name for resource in config.resources] == [
        "usbplugin/zigbee",
        "usbplugin/modem",
        "usbplugin/serial",
    ]
    assert warnings(config) == []


@pytest.mark.parametrize("target", TARGETS)
def test_the_plugin_knows_its_own_pod(target: str) -> None:
    (container,) = plugin(rendered(target))["containers"]
    assert environment(container)["USBPLUGIN_OWN_POD"] == POD


@pytest.mark.parametrize("target", TARGETS)
def test_all_speak_of_this_version(target: str) -> None:
    images = {
        container["image"] for spec in pod_specs(rendered(target)) for container in containers(spec)
    }
    assert images == {f"usbplugin:{__version__}"}


def test_the_build_lock_agrees_with_the_development_lock() -> None:
    def pins(path: str) -> set[str]:
        lines = (ROOT / path).read_text("utf-8").splitlines()
        return {line.split(" ")[0] for line in lines if "==" in line}

    assert pins("deploy/image/requirements-build.lock") <= pins("requirements-dev.lock")


def test_the_kind_cluster_is_told_apart_from_others() -> None:
    cluster = yaml.safe_load((DEPLOY / "kind" / "cluster.yaml").read_text("utf-8"))
    assert (cluster["kind"], cluster["name"]) == ("Cluster", "usbplugin")


def test_on_k3s_the_imported_image_is_never_pulled() -> None:
    """Docker Hub's image of that name, if there is one, is not ours."""
    (container,) = containers(plugin(rendered("k3s")))
    assert container["imagePullPolicy"] == "Never"
