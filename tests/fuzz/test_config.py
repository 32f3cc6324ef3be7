"""Whatever a configuration file holds: a configuration, or one line that says what is wrong."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from usbplugin.config import Config, parse, warnings
from usbplugin.errors import ConfigError
from usbplugin.inventory import Inventory

LONGEST_MESSAGE = 1000
VALID: dict[str, Any] = {
    "nodes": ["/dev/ttyUSB*", "/dev/ttyXR*"],
    "retention": "30m",
    "flapping": {"times": 10, "window": "90s", "quiet": "1.5m"},
    "registration": "watcher",
    "cdi": False,
    "nodeFeatures": True,
    "resources": [
        {
            "name": "usbplugin/modem",
            "selectors": [
                {"vendor": "1e0e", "product": "90*", "interface": 2, "location": "0000:00:14.0-*"},
                {"serial": "[A-F]*", "node": "/dev/ttyACM?", "driver": "cdc_acm"},
            ],
            "unit": "usb-device",
            "identity": "location",
            "containerPath": "/dev/modem{port}",
            "permissions": "rw",
            "byIdLinks": True,
            "preStart": False,
            "shares": 3,
        },
        {"name": "example.com/serial", "cdi": True},
    ],
}

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=40)
    | st.binary(max_size=20)
    | st.dates()
    | st.sampled_from(
        ["", "0", "5s", "9" * 400 + "h", "a/b", "/dev/{name}", "/dev/{name!r:>9}", "{", "[", "*"]
    )
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


def places(document: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """The paths of everything in a document."""
    found = [path]
    if isinstance(document, dict):
        for key, value in document.items():
            found += places(value, (*path, key))
    elif isinstance(document, list):
        for index, value in enumerate(document):
            found += places(value, (*path, index))
    return found


@st.composite
def documents(draw: st.DrawFn) -> object:
    """A valid document in which a few places hold something else, or are missing."""
    document: Any = copy.deepcopy(VALID)
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(places(document)[1:]))
        place = document
        for step in way:
            place = place[step]
        match draw(st.sampled_from(["replace", "remove", "add"])):
            case "replace":
                place[last] = draw(values)
            case "remove":
                del place[last]
            case _ if isinstance(place, dict):
                place[draw(st.text(max_size=12))] = draw(values)
            case _:
                place.append(draw(values))
    return document


def values_in(document: object) -> list[object]:
    """Everything in a document, and itself."""
    inner: list[object] = []
    if isinstance(document, dict):
        inner = list(document.values())
    elif isinstance(document, list):
        inner = document
    return [document, *(value for each in inner for value in values_in(each))]


def check(text: bytes) -> None:
    try:
        config = parse(text)
    except ConfigError as error:
        message = str(error)
        assert message.isprintable()
        assert len(message) <= LONGEST_MESSAGE
    else:
        assert None not in values_in(yaml.safe_load(text))
        check_use(config)


def check_use(config: Config) -> None:
    """What follows from a configuration works, too."""
    Inventory(config.rules(), config.health_policy())
    assert all(warning.isprintable() for warning in warnings(config))
    for offer in config.offers():
        path = offer.container_path.format(name="ttyUSB0", device=0, port=0)
        assert path.startswith("/")
        assert "," not in path
        assert path.isprintable()
        assert ".." not in path.split("/")


@given(st.binary(max_size=300))
@example(b"\xfe")
@example(b"\x00")
@example(b"%YAML 9.9\n---\n")
@example(b"!!python/object/apply:os.system [ls]")
@example(b"[" * 10_000)
@example(b"&a [*a]")
@example(b"resources: &a [*a]")
@example(b"? {a: b}\n: c")
@example(b"? [a]\n: c")
@example(b"2020-01-01: c")
@example(b"\x85\xe2\x80\xae: 1")
@example(b"resources: 2020-13-45")
def test_any_bytes(text: bytes) -> None:
    check(text)


@given(st.text(max_size=200))
@example("a\N{RIGHT-TO-LEFT OVERRIDE}b: 1")
@example('"\\n\\e[31m": 1')
def test_any_text(text: str) -> None:
    check(text.encode("utf-8", "surrogatepass"))


@given(documents())
def test_a_valid_document_in_which_something_is_wrong(document: object) -> None:
    check(yaml.safe_dump(document, allow_unicode=True).encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("text", ["x" * 100_000, "\n" * 10_000])
@pytest.mark.parametrize("place", ["resources", "retention", "nodes", "key"])
def test_the_message_stays_short_whatever_was_found(place: str, text: str) -> None:
    document: object = {text: 1} if place == "key" else {place: {text: text}}
    check(yaml.safe_dump(document).encode())
    check(yaml.safe_dump({place: text}).encode())


def test_a_document_that_unfolds_without_end_is_refused_at_once() -> None:
    lines = ["a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [
        f"{n}: &{n} [{', '.join([f'*{p}'] * 9)}]"
        for p, n in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    check("\n".join(lines).encode())
    check("\n".join([*lines, "resources: *i"]).encode())
    check("\n".join([*lines, "resources: [{name: a/b, selectors: *i}]"]).encode())
