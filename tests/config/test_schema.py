"""The schema that editors and Helm check with refuses what the plugin refuses, and no more."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given

from tests.deploy.tools import module
from tests.fuzz.test_config import VALID, documents
from usbplugin.config import parse
from usbplugin.errors import ConfigError

ROOT = Path(__file__).parents[2]


@functools.cache
def validator(draft: str, path: str) -> Any:  # noqa: ANN401 -- jsonschema has no types
    schema = json.loads((ROOT / path).read_text("utf-8"))
    return getattr(module("jsonschema"), draft)(schema)


def schemas_take(document: Any) -> bool:  # noqa: ANN401 -- whatever YAML holds
    values = {"config": document, "image": {"repository": "x"}, "stateDir": "/var/lib/x"}
    values["kubelet"] = {"devicePluginsDir": "/a", "podResourcesDir": "/b"}
    taken = validator("Draft202012Validator", "deploy/config.schema.json").is_valid(document)
    chart = validator("Draft7Validator", "deploy/helm/usbplugin/values.schema.json")
    assert chart.is_valid(values) == taken
    return bool(taken)


def problem(document: object) -> str:
    """What the plugin says; empty if it takes it."""
    try:
        parse(yaml.safe_dump(document).encode("utf-8", "surrogatepass"))
    except ConfigError as error:
        return str(error)
    return ""


def one(**keys: object) -> dict[str, object]:
    return {"resources": [{"name": "a.io/bc", **keys}]}


def selecting(**conditions: object) -> dict[str, object]:
    return one(selectors=[conditions])


@pytest.mark.parametrize(
    "document",
    [
        {"resources": []},
        {"nodes": ["ttyUSB*"]},
        {"nodes": ["/dev/serial/by-id/*"]},
        {"nodes": ["/dev/tty["]},
        {"retention": "30min"},
        {"flapping": {"times": 1}},
        *({"resources": [{"name": name}]} for name in ("serial", "A.io/b", "kubernetes.io/b")),
        *({"resources": [{"name": name}]} for name in ("requests.a/b", "a..b/c", "a/-b", "a-.b/c")),
        {"resources": [{"name": "a/" + "x" * 64}]},
        one(selectors=[]),
        one(selectors=[{}]),
        one(containerPath="dev/x"),
        one(containerPath="/dev/x/"),
        one(containerPath="/dev/../x"),
        one(containerPath="/dev/x,y"),
        one(containerPath="/dev/{serial}"),
        one(containerPath="/dev/{name"),
        one(containerPath="/dev/x\ny"),
        one(unit="usb-device", containerPath="/dev/modem"),
        one(unit="usb-device", containerPath="/dev/modem{device}"),
        one(cdi=True, byIdLinks=True),
        one(cdi=True, containerPath="/dev/x{device}"),
        {"resources": [{"name": "a/b", "cdi": True}]},
        one(byIdLinks=True) | {"cdi": True},
        one(containerPath="/dev/x{device}") | {"cdi": True},
        one(permissions="rx"),
        one(shares=0),
        selecting(vendor=259),
        selecting(vendor="403"),
        selecting(vendor="FTDI"),
        selecting(vendor="04031"),
        selecting(vendor="0-03"),
        selecting(vendor="????*?"),
        selecting(vendor="[04"),
        selecting(product=""),
        selecting(serial=None),
        selecting(interface=256),
        selecting(interface=-1),
        selecting(driver="[x"),
        selecting(location="1-["),
        selecting(node="ttyUSB0"),
        selecting(node=""),
        selecting(node="/dev/ttyUSB["),
        selecting(node="/dev/serial/by-id/usb-x-if00"),
    ],
    ids=str,
)
def test_what_the_plugin_refuses_the_schemas_refuse(document: object) -> None:
    assert problem(document)
    assert not schemas_take(document)


@pytest.mark.parametrize(
    "document",
    [
        {},
        VALID,
        {"nodes": ["/dev/tty[A-Z]*", "/dev/*"]},
        {"resources": [{"name": "a/b..c"}]},
        one(containerPath="/dev/{{x}}{name}"),
        one(containerPath="/dev/ä"),
        one(unit="usb-device"),
        one(unit="usb-device", containerPath="/dev/modem{port}"),
        one(cdi=False, byIdLinks=True) | {"cdi": True},
        one() | {"cdi": True},
        selecting(vendor="0403", product="*"),
        selecting(vendor="[!0]4??", product="60*"),
        selecting(vendor="*1*2*3*4*"),
        selecting(serial="", interface=0),
        selecting(serial="[x", driver="c[ph]*", location="*-1.2"),
        selecting(node="*/ttyUSB0"),
        selecting(node="/dev/ttyUSB[0-3]"),
        selecting(node="/run/devices/ttyUSB0"),
    ],
    ids=str,
)
def test_what_the_plugin_takes_the_schemas_take(document: object) -> None:
    assert problem(document) == ""
    assert schemas_take(document)


# No schema can compare two resources' names, or knows all of Unicode.
_BEYOND_SCHEMAS = ("is already the name of", "containerPath")


@given(documents())
def test_the_schemas_and_the_plugin_agree(document: object) -> None:
    found = problem(document)
    # As YAML is read: a date is no JSON, and so nothing that a schema could be asked about.
    try:
        document = json.loads(json.dumps(document, allow_nan=False))
    except (TypeError, ValueError):
        assert found
        return
    if not any(what in found for what in _BEYOND_SCHEMAS):
        assert schemas_take(document) == (found == "")
