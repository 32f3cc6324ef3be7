from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from usbplugin.config import Config, load, parse, warnings
from usbplugin.discovery import IdentityMode
from usbplugin.errors import ConfigError
from usbplugin.inventory import Selector

if TYPE_CHECKING:
    from pathlib import Path


def error(text: str, place: str = r"line [0-9]+, column [0-9]+: ") -> str:
    """The error of a configuration, without the place where it is."""
    with pytest.raises(ConfigError) as caught:
        parse(text.encode())
    message = str(caught.value)
    assert "\n" not in message
    found = re.match(place, message)
    assert found, message
    return message[found.end() :]


def test_by_default_every_port_is_usbplugin_serial() -> None:
    assert parse(b"{}") == Config()
    (resource,) = Config().resources
    assert resource.name == "usbplugin/serial"
    assert resource.selectors == ()


@pytest.mark.parametrize(
    "text",
    ["", "\n \n", "# resources: all of them\n", "---\n", "%YAML 1.1\n---\n", "\ufeff", "null", "~"],
)
def test_a_text_without_content_does_not_pass_for_the_defaults(text: str) -> None:
    assert error(text, place="") == (
        "expected a mapping, such as resources: [...], found nothing: write {} for the defaults"
    )


@pytest.mark.parametrize(
    ("text", "where", "expected"),
    [
        ("nodes:", "nodes", "a list"),
        ("nodes:\n  -", "nodes[0]", "a string"),
        ("resources:", "resources", "a list"),
        ("resources:\n  -", "resources[0]", "a mapping"),
        ("resources:\n  - name:", "resources[0].name", "a string"),
        ("resources: [{name: a/b, selectors: }]", "resources[0].selectors", "a list"),
        ("resources:\n- name: a/b\n  selectors:\n  -", "resources[0].selectors[0]", "a mapping"),
        ("resources: [{name: a/b, unit: }]", "resources[0].unit", "port or usb-device"),
        (
            "resources: [{name: a/b, shares: }]",
            "resources[0].shares",
            "a whole number from 1 to 1000",
        ),
        ("retention:", "retention", "a duration such as 30s, 10m or 1.5h"),
        ("flapping:", "flapping", "a mapping"),
        ("flapping:\n  times:", "flapping.times", "a whole number from 2 to 60"),
        ("cdi:", "cdi", "true or false"),
    ],
)
def test_a_key_without_a_value_is_not_taken_for_one_that_is_left_out(
    text: str, where: str, expected: str
) -> None:
    assert error(text) == f"{where}: expected {expected}, found nothing"


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("resources: [{name: a/b}, {name: a/c, cdi: }]", "resources[1].cdi"),
        *(
            (
                f"resources:\n- name: a/b\n  selectors:\n  - vendor: '0403'\n    {key}:",
                f"resources[0].selectors[0].{key}",
            )
            for key in Selector.__struct_encode_fields__
            if key != "vendor"
        ),
        ("resources: [{name: a/b, selectors: [{vendor: }]}]", "resources[0].selectors[0].vendor"),
    ],
)
def test_a_condition_without_a_value_is_not_taken_for_none(text: str, where: str) -> None:
    assert error(text) == (
        f"{where}: expected a value, found nothing: leave the key out for its default"
    )


def test_a_full_configuration() -> None:
    config = parse(b"""
nodes: [/dev/ttyUSB*]
resources:
  - name: usbplugin/zigbee
    selectors:
      - {vendor: "10c4", product: ea60, productName: "*Zigbee*"}
      - serial: "0x00124B*"
    identity: location
    permissions: rwm
    containerPath: /dev/zigbee
    byIdLinks: true
  - name: example.com/modem
    selectors: [{driver: option, interface: 2}]
""")
    zigbee, modem = config.resources
    assert zigbee.identity is IdentityMode.LOCATION
    assert zigbee.selectors[0] == Selector(vendor="10c4", product="ea60", product_name="*Zigbee*")
    offer, _ = config.offers()
    assert offer.container_path == "/dev/zigbee"
    assert offer.by_id_links
    assert modem.selectors[0].interface == 2
    assert config.nodes == ("/dev/ttyUSB*",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resorces: []", "unknown key 'resorces'; did you mean 'resources'?"),
        (
            "resources: [{name: a/b, selector: []}]",
            "resources[0]: unknown key 'selector'; did you mean 'selectors'?",
        ),
        (
            "resources: [{name: a/b, selectors: [{vid: 1}]}]",
            "resources[0].selectors[0]: unknown key 'vid'; did you mean 'vendor'?",
        ),
        (
            "resources: [{name: a/b, selectors: [{product: 6001}]}]",
            "resources[0].selectors[0].product: expected a string, found 6001 (YAML reads this"
            " without quotes as a number: put it in quotes)",
        ),
        (
            "resources: [{name: a/b, selectors: [{vendor: 0403}]}]",
            "resources[0].selectors[0].vendor: expected a string, found 0403 (YAML reads this"
            " without quotes as the number 259: put it in quotes)",
        ),
        (
            "resources: [{name: a/b, selectors: [{serial: yes}]}]",
            "resources[0].selectors[0].serial: expected a string, found yes (YAML reads this"
            " without quotes as true: put it in quotes)",
        ),
        (
            "resources: [{name: a/b, cdi: 3}]",
            "resources[0].cdi: expected true or false, found 3",
        ),
        ("{1: 2}", "expected a string as the key, found 1: put it in quotes"),
        (
            "resources: [{name: a/b, yes: 2}]",
            "resources[0]: expected a string as the key, found yes: put it in quotes",
        ),
        (
            "nodes: []\nresources:\n- name: a/b\n  cdi: true\n  'name': a/c",
            "duplicate key 'name', first set on line 3",
        ),
        (
            "resources: [{name: a/b, permissions: rx}]",
            "resources[0].permissions: expected any of r, w and m, in that order, such as rw,"
            " found 'rx'",
        ),
        (
            "resources: [{name: a/b, identity: usb}]",
            "resources[0].identity: expected auto, serial or location, found 'usb'",
        ),
        ("retention: 30", "retention: expected a duration such as 30s, 10m or 1.5h, found 30"),
        (
            "flapping: {window: 30min}",
            "flapping.window: expected a duration such as 30s, 10m or 1.5h, found '30min'",
        ),
        ("registration: watchr", "registration: expected kubelet or watcher, found 'watchr'"),
        ("nodes: /dev/ttyUSB*", "nodes: expected a list, found '/dev/ttyUSB*'"),
        ("resources: {}", "resources: expected a list, found an empty mapping"),
        ("resources: []", "resources: expected at least one resource, found none"),
        ("resources: [{}]", "resources[0]: missing key 'name'"),
        (
            "resources: [{name: a/b}, {name: a/b}]",
            "resources[1].name: 'a/b' is already the name of resources[0]; list the selectors of"
            " both in one resource",
        ),
        ("[1, 2]", "expected a mapping, such as resources: [...], found a list"),
        ("just text", "expected a mapping, such as resources: [...], found 'just text'"),
        (
            "nodes: [ttyUSB0]",
            "nodes[0]: expected a glob below /dev/, such as /dev/ttyUSB0, found 'ttyUSB0'",
        ),
        (
            "resources: [{name: a/b, selectors: [{vendor: FTDI}]}]",
            "resources[0].selectors[0].vendor: expected four hexadecimal digits, as lsusb prints"
            " them, or a glob, found 'FTDI'",
        ),
        (
            "resources: [{name: a/b, selectors: [{vendor: '403'}]}]",
            "resources[0].selectors[0].vendor: expected four hexadecimal digits, found '403'",
        ),
        (
            "resources: [{name: a/b, selectors: [{interface: 256}]}]",
            "resources[0].selectors[0].interface: expected a whole number from 0 to 255, found 256",
        ),
        (
            "resources: [{name: a/b, containerPath: '/dev/{serial}'}]",
            "resources[0].containerPath: expected only the placeholders {name}, {device} and"
            " {port}, found '/dev/{serial}'",
        ),
        (
            "resources: [{name: a/b, containerPath: zigbee}]",
            "resources[0].containerPath: expected an absolute path without commas, found 'zigbee'",
        ),
        (
            "resources: [{name: a/b, containerPath: '/dev/{name:>9}'}]",
            "resources[0].containerPath: expected only the placeholders {name}, {device} and"
            " {port}, found '/dev/{name:>9}'",
        ),
        *(
            (
                f"resources: [{{name: {name}, cdi: true}}]",
                "resources[0].cdi: expected false: the name's two parts become CDI's vendor and"
                " class, which must begin with a letter and have at least two characters",
            )
            for name in ("3gpp.org/serial", "usbplugin/4g", "usbplugin/a")
        ),
    ],
)
def test_errors_name_the_place_what_was_found_and_what_was_expected(
    text: str, message: str
) -> None:
    assert error(text) == message


def test_text_that_is_not_yaml() -> None:
    assert error("resources: [").startswith("not valid YAML: ")


def test_a_value_that_does_not_fit_its_tag() -> None:
    message = error("retention: !!timestamp x")
    assert message == "YAML takes this for a date, but it is not a valid one: put it in quotes"


def test_a_merged_key_may_be_overridden() -> None:
    config = parse(b"""
resources:
  - &first {name: a/b, permissions: r}
  - &second {<<: *first, name: a/c}
  - {<<: *second, name: a/d, permissions: rw}
""")
    assert [(r.name, r.permissions) for r in config.resources] == [
        ("a/b", "r"),
        ("a/c", "r"),
        ("a/d", "rw"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        b"\xff\xfe\xfa",
        b"a: !!python/object:os.system x",
        b"{" * 5000,
        b"a: &a [*a]",
        b"a: !!timestamp x",
        b"a: !!int ''",
        b"a: !!bool x",
        b"? [1]\n: 2",
    ],
)
def test_hostile_yaml_is_an_error_too(text: bytes) -> None:
    with pytest.raises(ConfigError):
        parse(text)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("serial", "expected domain/name"),
        ("kubernetes.io/serial", "kubernetes.io is reserved"),
        ("x.kubernetes.io/serial", "kubernetes.io is reserved"),
        ("my-kubernetes.io/serial", "kubernetes.io is reserved"),
        ("requests.example.com/serial", "does not begin with 'requests.'"),
        ("Example.com/serial", "lower-case DNS name"),
        ("example.com/" + "x" * 64, "at most 63"),
        ("example.com/a/b", "at most 63"),
        ("example.com/-x", "at most 63"),
        ("x" * 250 + ".io/a", "lower-case DNS name"),
    ],
)
def test_resource_names_follow_the_kubelets_rules(name: str, problem: str) -> None:
    message = error(f"resources: [{{name: '{name}'}}]")
    assert message.startswith("resources[0].name: ")
    assert problem in message


@pytest.mark.parametrize("name", ["usbplugin/serial", "a.b-c.io/X_1.y", "kubernetes.io.example/a"])
def test_good_resource_names(name: str) -> None:
    assert parse(f"resources: [{{name: {name}}}]".encode()).resources[0].name == name


def test_a_resource_of_every_port_that_shadows_later_ones_causes_a_warning() -> None:
    config = parse(b"""
resources:
  - {name: a/all}
  - {name: a/zigbee, selectors: [{vendor: "10c4"}]}
""")
    assert warnings(config) == [
        "resources[1]: a/zigbee never gets a device, because a/all above it matches every port:"
        " move a/all to the end",
    ]
    assert warnings(Config()) == []


@pytest.mark.parametrize(
    ("text", "warned_of"),
    [
        ("resources: [{name: usbplugin/gps, cdi: true}]", True),
        ("cdi: true", True),
        ("{cdi: true, resources: [{name: usbplugin/gps, containerPath: /dev/gps}]}", False),
        ("{cdi: true, resources: [{name: usbplugin/gps, cdi: false}]}", False),
    ],
)
def test_a_name_that_cdi_cannot_keep_causes_a_warning(text: str, *, warned_of: bool) -> None:
    expected = [
        "resources[0]: with cdi and {name} in containerPath, a replug can change the node's path"
        " without changing the container's environment: use a path without {name}, such as"
        " /dev/modem{port}"
    ]
    assert warnings(parse(text.encode())) == (expected if warned_of else [])


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("resources: 1")
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value) == f"{path}: line 1, column 12: resources: expected a list, found 1"
    path.write_text("")
    with pytest.raises(ConfigError, match=re.escape(f"{path}: expected a mapping, such as")):
        load(path)


def test_an_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "missing.yaml")
    assert str(caught.value) == (f"cannot read {tmp_path}/missing.yaml: No such file or directory")
    with pytest.raises(ConfigError, match=re.escape(f"cannot read {tmp_path}: Is a directory")):
        load(tmp_path)
