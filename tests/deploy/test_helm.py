from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.deploy.documents import supported_versions
from tests.deploy.manifests import (
    CHART,
    REMEDY,
    configuration,
    environment,
    helm_template,
    host_paths,
    load,
    plugin,
    rendered,
)
from tests.deploy.tools import output, program
from usbplugin import __version__
from usbplugin.config import Config, parse
from usbplugin.foundation.places import Places

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def helm() -> str:
    return program("helm", REMEDY)


def test_lint(helm: str) -> None:
    output(helm, "lint", "--strict", str(CHART))


def test_the_chart_is_of_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)
    assert chart["kubeVersion"] == f">={supported_versions()[0]}.0-0"


def test_the_schema_knows_every_value() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))

    def check(value: Any, known: Any) -> None:  # noqa: ANN401 -- whatever YAML holds
        if "$ref" in known:
            known = schema["definitions"][known["$ref"].rpartition("/")[2]]
        if known.get("additionalProperties") is False:
            assert set(value) <= set(known["properties"])
            for key in value:
                check(value[key], known["properties"][key])

    check(values, schema)


RESOURCE, SELECTOR = "config.resources[0].name=a/b", "config.resources[0].selectors[0]"


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("image.tgg=1", "tgg"),
        ("podMonitor.enabled=true", "/http/enabled"),
        ("log.level=loud", "/log/level"),
        ("kubelet.devicePluginsDir=relative", "/kubelet/devicePluginsDir"),
        ("image.digest=sha256:12", "/image/digest"),
        ("stateDir=relative", "/stateDir"),
        ("stateDir=/run/usbplugin", "/stateDir"),
        ("stateDir=/var/run/usbplugin", "/stateDir"),
        ("config.nods[0]=/dev/x", "nods"),
        ("config.resources[0].nme=a/b", "nme"),
        ("config.resources=[]", "resources"),
        (f"{RESOURCE},{SELECTOR}.serial=null", "/selectors/0/serial"),
        (f"{RESOURCE},config.resources[0].unit=usb", "/unit"),
        ("config.retention=30", "/retention"),
        (f"{RESOURCE},{SELECTOR}.vendor=FTDI", "/selectors/0/vendor"),
        (f"{RESOURCE},{SELECTOR}.vendor=null", "/selectors/0/vendor"),
        (f"{RESOURCE},{SELECTOR}.node=ttyUSB0", "/selectors/0/node"),
        (f"{RESOURCE},{SELECTOR}.node=/dev/serial/by-id/x", "/selectors/0/node"),
        (f"{RESOURCE},config.resources[0].containerPath=dev/x", "/containerPath"),
        ("config.resources[0].name=serial", "/resources/0/name"),
        ("config.nodes[0]=ttyUSB0", "/config/nodes/0"),
    ],
)
def test_the_schema_refuses(setting: str, complaint: str, helm: str) -> None:
    done = subprocess.run(
        [helm, "template", CHART, "--set", setting], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert complaint in done.stderr


@pytest.mark.parametrize("value", ["0403", "1e10", "6001", "2019", "yes"])
def test_a_value_that_yaml_makes_something_else_of_does_not_reach_the_pod(
    value: str, helm: str, tmp_path: Path
) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(f"config: {{resources: [{{name: a/b, selectors: [{{serial: {value}}}]}}]}}\n")
    command = [helm, "template", str(CHART), "--values", str(values)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "/config/resources/0/selectors/0/serial" in done.stderr


def test_the_chart_and_the_base_make_the_same_pod() -> None:
    chart, base = plugin(rendered("helm")), plugin(rendered("base"))
    for spec in (chart, base):
        (container,) = spec["containers"]
        container["env"] = environment(container)
        for volume in spec["volumes"]:
            volume.get("configMap", {}).pop("name", None)
    # The chart's defaults for the log are the program's own.
    log = {"USBPLUGIN_LOG_LEVEL": "info", "USBPLUGIN_LOG_FORMAT": "text"}
    base["containers"][0]["env"] |= log
    assert chart == base


def test_a_configuration_without_keys_is_written_as_one() -> None:
    manifests = load(helm_template("config.resources=null"))
    assert parse(configuration(manifests)) == Config()


def test_the_state_may_be_elsewhere_on_the_node() -> None:
    spec = plugin(load(helm_template("stateDir=/runtime/usbplugin")))
    assert ("/runtime/usbplugin", str(Places().state_dir), "rw") in host_paths(spec)
    assert spec["containers"] == plugin(rendered("helm"))["containers"]


def test_another_configuration_is_another_pod(helm: str) -> None:
    def checksum(name: str) -> str:
        text = output(helm, "template", str(CHART), "--set", f"config.resources[0].name={name}")
        (daemon_set,) = (each for each in load(text) if each["kind"] == "DaemonSet")
        return str(daemon_set["spec"]["template"]["metadata"]["annotations"]["checksum/config"])

    assert checksum("a/b") != checksum("a/c")


def test_the_notes_say_what_to_do_next(helm: str) -> None:
    notes = output(helm, "install", "usbplugin", str(CHART), "--dry-run=client", "--namespace=usb")
    notes = notes.partition("NOTES:")[2]
    assert "kubectl label node NODE usbplugin/serial-capable=true" in notes
    assert "usbplugin/serial: 1" in notes
    assert "--namespace usb" in notes
