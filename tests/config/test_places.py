"""Errors say where in the file they are, and what to do, in an operator's words."""

from __future__ import annotations

import pytest

from usbplugin.config import parse
from usbplugin.errors import ConfigError


def error(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text.encode())
    return str(caught.value)


RESOURCES = """\
# Sticks of the second floor
nodes:
  - /dev/ttyUSB*
resources:
  - name: a/b
    selectors:
      - vendor: "10c4"
        {condition}
  - name: a/c
"""


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("sreial: x", "line 8, column 9: resources[0].selectors[0]: unknown key 'sreial'"),
        ("serial: 12", "line 8, column 17: resources[0].selectors[0].serial: expected a string"),
        ("serial:", "line 8, column 16: resources[0].selectors[0].serial: expected a value"),
        ("product: 6O01", "line 8, column 18: resources[0].selectors[0].product: expected four"),
        ("node: /dev/tty[", "line 8, column 15: resources[0].selectors[0].node: expected a ']'"),
        ("vendor: x", "line 8, column 9: duplicate key 'vendor', first set on line 7"),
        ("2: x", "line 8, column 9: resources[0].selectors[0]: expected a string as the key"),
    ],
)
def test_an_error_names_line_and_column(condition: str, message: str) -> None:
    assert error(RESOURCES.format(condition=condition)).startswith(message)


def test_what_is_merged_in_is_where_it_was_written() -> None:
    text = "resources:\n- &base {name: a/b,\n  permissions: x}\n- {<<: *base, name: a/c}\n"
    assert error(text).startswith("line 3, column 16: resources[0].permissions: ")
    text = "resources:\n- &base {name: a/b}\n- {<<: *base,\n   name: a/b}\n"
    assert error(text).startswith("line 4, column 10: resources[1].name: 'a/b' is already")


@pytest.mark.parametrize(
    ("value", "read_as"),
    [
        ("0403", "the number 259"),
        ("1.5e+10", "the number 15000000000.0"),
        ("5.647027412e+09", "the number 5647027412.0"),
        ("0x12", "the number 18"),
        ("12:30", "the number 750"),
        ("1_000", "the number 1000"),
        ("6001", "a number"),
        ("2019-06-05", "a date"),
        ("2019-06-05 12:00:00", "a date"),
        ("on", "true"),
        ("No", "false"),
    ],
)
def test_whatever_yaml_makes_of_a_string_is_told(value: str, read_as: str) -> None:
    message = error(f"resources:\n- name: a/b\n  selectors: [{{serial: {value}}}]\n")
    assert message == (
        f"line 3, column 24: resources[0].selectors[0].serial: expected a string, found {value}"
        f" (YAML reads this without quotes as {read_as}: put it in quotes)"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flapping: {times: '5'}", "expected a whole number from 2 to 60, found '5'"),
        ("cdi: 'true'", "expected true or false, found 'true'"),
    ],
)
def test_quotes_that_are_too_much_are_told_as_well(text: str, message: str) -> None:
    assert error(text).endswith(f"{message}: write it without quotes")


@pytest.mark.parametrize(
    ("text", "key", "meant"),
    [
        ("Resources: []", "Resources", "did you mean 'resources'?"),
        ("resources: [{name: a/b, container_path: /dev/x}]", "container_path", "'containerPath'?"),
        ("resources: [{name: a/b, mode: rw}]", "mode", "did you mean 'permissions'?"),
        ("resources: [{name: a/b, serial: x}]", "serial", "it belongs in a resource's selectors"),
        ("shares: 2", "shares", "it belongs in one of resources"),
        ("resources: [{name: a/b, selectors: [{idVendor: '0403'}]}]", "idVendor", "'vendor'?"),
        ("resources: [{name: a/b, retention: 1h}]", "retention", "at the top of the file"),
    ],
)
def test_an_unknown_key_leads_to_the_one_that_was_meant(text: str, key: str, meant: str) -> None:
    message = error(text)
    assert f"unknown key '{key}'; " in message
    assert message.endswith(meant)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resources: [", "line 2, column 1: not valid YAML: expected a value here, or a ']'"),
        (
            "resources:\n- name: a/b\n\tshares: 2",
            "line 3, column 1: not valid YAML: a tab: indent with spaces",
        ),
        (
            "resources:\n\t- name: a/b",
            "line 2, column 1: not valid YAML: a tab: indent with spaces",
        ),
        (
            "resources:\n- name: a/b\n  containerPath: {device",
            "line 4, column 1: not valid YAML: the mapping that begins on line 3 is not closed:"
            " expected ',' or '}' here",
        ),
        (
            "nodes: [/dev/ttyUSB*\nresources: []",
            "line 2, column 10: not valid YAML: the list that begins on line 1 is not closed:"
            " expected ',' or ']' here",
        ),
        (
            "resources:\n- name: a/b\n  selectors:\n  - serial: *Zigbee*",
            "line 4, column 13: not valid YAML: a value that begins with '*' needs quotes",
        ),
        (
            "resources:\n- name: 'a/b\n",
            "line 2, column 9: not valid YAML: the quote that begins on line 2 is not closed",
        ),
        (
            "resources:\n- name: a/b\n  serial: x: y",
            "line 3, column 12: not valid YAML: a key cannot be here: is it indented like its"
            " neighbours, and does a text with ': ' or ' #' have quotes?",
        ),
        ("a: 1\n---\nb: 2", "line 2, column 1: not valid YAML: expected one document, found '---'"),
        ("name: {{ name }}", "line 1, column 8: not valid YAML: a list or mapping cannot be a key"),
    ],
)
def test_text_that_is_not_yaml_is_explained(text: str, message: str) -> None:
    assert error(text).startswith(message)


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(b"nodes: []\nresources: \xff")
    assert str(caught.value).startswith("line 2, column 12: not valid YAML: this is not UTF-8 text")
