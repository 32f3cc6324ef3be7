"""Turns msgspec's validation errors into messages an operator can act on."""

from __future__ import annotations

import difflib
import re
import reprlib
from typing import TYPE_CHECKING

from usbplugin.config.model import Config, Flapping, Front, Registration, ResourceConfig
from usbplugin.discovery import IdentityMode, Unit
from usbplugin.inventory import Selector
from usbplugin.inventory.shares import MOST_SHARES

if TYPE_CHECKING:
    from enum import Enum

    from usbplugin.config.yaml import Document

_shown = reprlib.Repr()
_shown.maxstring = _shown.maxother = 100


def _one_of(choices: type[Enum]) -> str:
    *others, last = (str(choice.value) for choice in choices)
    return f"{', '.join(others)} or {last}"


_A_DURATION = "a duration such as 30s, 10m or 1.5h"
_EXPECTED = {
    "retention": _A_DURATION,
    "window": _A_DURATION,
    "quiet": _A_DURATION,
    "times": "a whole number from 2 to 60",
    "shares": f"a whole number from 1 to {MOST_SHARES}",
    "interface": "a whole number from 0 to 255",
    "unit": _one_of(Unit),
    "identity": _one_of(IdentityMode),
    "registration": _one_of(Registration),
    "front": _one_of(Front),
    "evictAfter": f"{_A_DURATION}, or never",
    "permissions": "any of r, w and m, in that order, such as rw",
}
"""What a key's value must be, where msgspec would show a pattern or leave out the choices."""

_OURS = {
    "str": "a string",
    "int": "a whole number",
    "bool": "true or false",
    "array": "a list",
    "object": "a mapping",
}
"""Our names for msgspec's types."""

_WORDS_OF_OTHERS = {
    "vid": ("vendor",),
    "pid": ("product",),
    "mode": ("permissions",),
    "path": ("node", "containerPath"),
}
"""What other programs call a key, where our name for it is not similar."""

_VERY_SIMILAR, _SIMILAR = 0.8, 0.6


def explain(problem: str, document: Document) -> str:
    """Turn msgspec's ``text - at `$.path` `` into ``place: path: text``, perhaps with a hint."""
    text, _, where = problem.partition(" - at ")
    path = where.removeprefix("`key` in ").strip("`").removeprefix("$").removeprefix(".")
    text = text[0].lower() + text[1:]
    place = document.place(path)
    if unknown := re.search(r"unknown field `(.*)`", text, re.DOTALL):
        place = document.place_of_key(path, unknown[1])
        text = _unknown_key(unknown[1], path)
    elif where.startswith("`key` in "):
        place, key = document.keys_that_are_no_strings(path)[0]
        text = f"expected a string as the key, found {key}: put it in quotes"
    elif missing := re.search(r"missing required field `(.*)`", text):
        text = f"missing key {missing[1]!r}"
    else:
        expected = _EXPECTED.get(path.rpartition(".")[2]) or _in_our_words(text)
        text = f"{expected}, found {found(document, path)}{_hint(document, path, expected)}"
        text = text if text.startswith("expected") else f"expected {text}"
    return f"{place}: {path}: {text}" if path else f"{place}: {text}"


def found(document: Document, path: str) -> str:
    """A value as it is written, or what kind of value it is if it is a long one."""
    scalar = document.scalar(path)
    if scalar is None:
        value = document.at(path)
        kind = "list" if isinstance(value, list) else "mapping"
        return f"a {kind}" if value else f"an empty {kind}"
    if scalar.is_string or not scalar.is_plain:
        return _shown.repr(scalar.text)
    if document.at(path) is None:
        return "nothing"
    return _shown.repr(scalar.text)[1:-1]


def _in_our_words(text: str) -> str:
    text = re.sub(r", got `[^`]+`", "", text).replace("`", "").replace(" | null", "")
    for theirs, ours in _OURS.items():
        text = re.sub(rf"expected {theirs}\b", f"expected {ours}", text)
    return text


def _hint(document: Document, path: str, expected: str) -> str:
    """What quotes have to do with it, if they do."""
    scalar = document.scalar(path)
    value = document.at(path)
    if scalar is None or value is None:
        return ""
    if scalar.is_string:
        literal = r"[0-9]+" if "whole number" in expected else r"true|false"
        means_it = "whole number" in expected or "true or false" in expected
        if means_it and not scalar.is_plain and re.fullmatch(literal, scalar.text):
            return ": write it without quotes"
        return ""
    if "a string" not in expected:
        return ""
    meaning = {bool: "true or false", int: "a number", float: "a number"}.get(type(value), "a date")
    if isinstance(value, int | float) and str(value).lower() != scalar.text.lower():
        meaning = f"the number {value}" if not isinstance(value, bool) else str(value).lower()
    return f" (YAML reads this without quotes as {meaning}: put it in quotes)"


def _unknown_key(key: str, path: str) -> str:
    kind = _kind_at(path)
    known = kind.__struct_encode_fields__
    if close := _closest(key, known, _VERY_SIMILAR):
        return f"unknown key {key!r}; did you mean {close!r}?"
    for other, where in _PLACES.items():
        if other is not kind and key in other.__struct_encode_fields__:
            return f"unknown key {key!r}; it belongs {where}"
    if close := _closest(key, known, _SIMILAR):
        return f"unknown key {key!r}; did you mean {close!r}?"
    return f"unknown key {_shown.repr(key)}; known here: {', '.join(known)}"


def _closest(key: str, known: tuple[str, ...], least: float) -> str:
    """The known key that is most like ``key``, whatever its capitals; empty if none is."""
    folded = {name.lower(): name for name in known}
    plain = re.sub("[^a-z]", "", key.lower())
    for word in _WORDS_OF_OTHERS.get(plain, ()):
        if word in known:
            return word
    close = difflib.get_close_matches(plain, folded, n=1, cutoff=least)
    return folded[close[0]] if close else ""


_PLACES: dict[type[Config | Flapping | ResourceConfig | Selector], str] = {
    Config: "at the top of the file",
    ResourceConfig: "in one of resources",
    Selector: "in a resource's selectors",
    Flapping: "in flapping",
}
"""Where the keys of each kind of mapping go."""


def _kind_at(path: str) -> type[Config | Flapping | ResourceConfig | Selector]:
    if "selectors" in path:
        return Selector
    if "flapping" in path:
        return Flapping
    return ResourceConfig if "resources" in path else Config
