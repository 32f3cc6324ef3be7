"""What the pod may do at the API server, and what pods ask for, where ``front: dra`` is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.deploy.manifests import (
    DEPLOY,
    WITH_DRA,
    configuration,
    environment,
    helm_template,
    load,
    of_kind,
    plugin,
    rendered,
)
from usbplugin.config import parse
from usbplugin.dra.access import SERVICE_ACCOUNT
from usbplugin.dra.classes import device_class

if TYPE_CHECKING:
    from tests.deploy.manifests import Manifest

TARGETS = sorted(WITH_DRA)
ALLOWED = {
    ("resource.k8s.io", "resourceslices"): {"create", "patch", "delete"},
    ("resource.k8s.io", "resourceclaims"): {"get"},
    ("", "nodes"): {"get"},
}


def only(kind: str, target: str) -> Manifest:
    """The one of that kind; of policies, the one that ties the token to its node."""
    (found,) = (
        one
        for one in of_kind(kind, rendered(target))
        if "tolerations" not in one["metadata"]["name"]
    )
    return found


def cluster_wide(target: str) -> list[Manifest]:
    """What has no namespace, without names and labels, which differ."""
    found = []
    for manifest in rendered(target):
        if manifest["apiVersion"].startswith(("rbac.", "admissionregistration.")):
            manifest["metadata"] = {}
            manifest.get("roleRef", {}).pop("name", None)
            manifest.get("spec", {}).pop("policyName", None)
            found.append(manifest)
    return sorted(found, key=str)


@pytest.mark.parametrize("target", TARGETS)
def test_the_role_allows_what_is_done_and_nothing_else(target: str) -> None:
    rules = only("ClusterRole", target)["rules"]
    allowed = {
        (group, resource): set(rule["verbs"])
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert allowed == ALLOWED
    assert not any(rule.keys() - {"apiGroups", "resources", "verbs"} for rule in rules)


@pytest.mark.parametrize("target", TARGETS)
def test_the_role_is_the_plugins_and_nobody_elses(target: str) -> None:
    account = only("ServiceAccount", target)["metadata"]
    binding = only("ClusterRoleBinding", target)
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
    ]
    assert binding["roleRef"]["name"] == only("ClusterRole", target)["metadata"]["name"]
    (condition,) = only("ValidatingAdmissionPolicy", target)["spec"]["matchConditions"]
    user = f"system:serviceaccount:{account['namespace']}:{account['name']}"
    assert condition["expression"] == f'request.userInfo.username == "{user}"'


@pytest.mark.parametrize("target", TARGETS)
def test_the_policy_denies_and_says_so_in_a_way_that_is_told_from_an_invalid_slice(
    target: str,
) -> None:
    policy = only("ValidatingAdmissionPolicy", target)
    binding = only("ValidatingAdmissionPolicyBinding", target)["spec"]
    assert binding["policyName"] == policy["metadata"]["name"]
    assert binding["validationActions"] == ["Deny"]
    assert policy["spec"]["failurePolicy"] == "Fail"
    (rule,) = policy["spec"]["matchConstraints"]["resourceRules"]
    assert set(rule["operations"]) == {"CREATE", "UPDATE", "DELETE"}
    for validation in policy["spec"]["validations"]:
        assert validation["reason"] == "Forbidden"
        assert validation["message"]


@pytest.mark.parametrize("target", TARGETS)
def test_a_toleration_that_loops_is_warned_of_and_nothing_is_forbidden(target: str) -> None:
    policies = {
        one["metadata"]["name"]: one["spec"]
        for kind in ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
        for one in of_kind(kind, rendered(target))
        if kind.endswith("Policy") or one["spec"]["validationActions"] == ["Warn"]
    }
    (name,) = (name for name, spec in policies.items() if "policyName" in spec)
    assert name.endswith("tolerations")
    (policy,) = (
        one["spec"]
        for one in of_kind("ValidatingAdmissionPolicy", rendered(target))
        if one["metadata"]["name"] == name
    )
    assert policy["failurePolicy"] == "Ignore"
    (rule,) = policy["matchConstraints"]["resourceRules"]
    assert rule["resources"] == ["resourceclaims", "resourceclaimtemplates"]


@pytest.mark.parametrize("target", TARGETS)
def test_the_token_is_short_lived_and_where_it_is_looked_for(target: str) -> None:
    spec = plugin(rendered(target))
    (container,) = spec["containers"]
    (volume,) = (volume for volume in spec["volumes"] if "projected" in volume)
    (mount,) = (one for one in container["volumeMounts"] if one["name"] == volume["name"])
    assert mount["mountPath"] == str(SERVICE_ACCOUNT)
    assert mount["readOnly"] is True
    token, ca = volume["projected"]["sources"]
    assert token == {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}}
    assert ca["configMap"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}]
    assert volume["projected"]["defaultMode"] == 0o400


@pytest.mark.parametrize("target", TARGETS)
def test_the_pod_knows_its_node_and_has_time_to_drain(target: str) -> None:
    spec = plugin(rendered(target))
    assert environment(spec["containers"][0])["USBPLUGIN_NODE_NAME"] == "node-1"
    assert spec["terminationGracePeriodSeconds"] >= 30


@pytest.mark.parametrize("target", TARGETS)
def test_traffic_goes_to_the_api_servers_ports_and_nowhere_else(target: str) -> None:
    (rule,) = only("NetworkPolicy", target)["spec"]["egress"]
    assert rule == {"ports": [{"port": 443}, {"port": 6443}]}


def test_the_chart_and_the_component_allow_the_same() -> None:
    assert cluster_wide("helm-dra") == cluster_wide("dra")


def test_the_chart_and_the_overlay_make_the_same_pod() -> None:
    chart, overlay = plugin(rendered("helm-dra")), plugin(rendered("dra"))
    for spec in (chart, overlay):
        (container,) = spec["containers"]
        container["env"] = environment(container)
        spec["volumes"].sort(key=lambda volume: str(volume["name"]))
        container["volumeMounts"].sort(key=lambda mount: str(mount["mountPath"]))
        for volume in spec["volumes"]:
            volume.get("configMap", {}).pop("name", None)
    log = {"USBPLUGIN_LOG_LEVEL": "info", "USBPLUGIN_LOG_FORMAT": "text"}
    overlay["containers"][0]["env"] |= log
    assert chart == overlay


@pytest.mark.parametrize("target", ["dra", "helm-dra"])
def test_the_classes_are_those_that_the_program_prints(target: str) -> None:
    found = list(of_kind("DeviceClass", rendered(target)))
    for one in found:
        one["metadata"].pop("labels")
    resources = parse(configuration(rendered(target))).resources
    printed = [msgspec.json.decode(msgspec.json.encode(device_class(r.name))) for r in resources]
    for one in printed:
        one["metadata"].pop("labels")
    assert found == printed


@pytest.mark.parametrize(
    "name", ["usbplugin/gps", "usbplugin/GPS_1.x", f"example.com/{'x' * 63}", f"a.b/{'x' * 60}"]
)
def test_the_chart_names_a_class_as_the_program_does(name: str) -> None:
    manifests = load(
        helm_template(
            "dra.enabled=true",
            f"config.resources[0].name={name}",
            "config.resources[0].front=dra",
            "config.resources[1].name=usbplugin/other",
        )
    )
    (found,) = of_kind("DeviceClass", manifests)
    printed = msgspec.json.decode(msgspec.json.encode(device_class(name)))
    assert found["metadata"]["name"] == printed["metadata"]["name"]
    assert found["spec"] == printed["spec"]


def test_a_release_can_move_its_nodes_from_one_front_to_the_other() -> None:
    manifests = load(helm_template("dra.enabled=true", "dra.front=dra"))
    (container,) = plugin(manifests)["containers"]
    assert environment(container)["USBPLUGIN_FRONT"] == "dra"
    assert [one["metadata"]["name"] for one in of_kind("DeviceClass", manifests)] == [
        "serial.usbplugin"
    ]
    by_config = load(helm_template("dra.enabled=true", "config.front=dra"))
    assert len(list(of_kind("DeviceClass", by_config))) == 1
    back = load(helm_template("dra.enabled=true", "dra.front=device-plugin"))
    assert not list(of_kind("DeviceClass", back))


def test_one_release_is_enough_for_the_classes() -> None:
    manifests = load(helm_template("dra.enabled=true", "dra.front=dra", "dra.deviceClasses=false"))
    assert not list(of_kind("DeviceClass", manifests))


def test_a_component_by_itself_brings_no_class() -> None:
    files = {path.name for path in (DEPLOY / "kustomize" / "components" / "dra").iterdir()}
    assert files == {"kustomization.yaml", "rbac.yaml", "policy.yaml"}
