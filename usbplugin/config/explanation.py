"""Turns msgspec's validation errors into messages an operator can act on."""

from __future__ import annotations

import difflib
import re
import reprlib
from typing import TYPE_CHECKING

from usbplugin.config.model import Config, Flapping, Front, Registration, ResourceConfig
from usbplugin.discovery import IdentityMode, Unit
from usbplugin.inventory import Selector

if TYPE_CHECKING:
    from enum import Enum

_shown = reprlib.Repr()
_shown.maxlevel, _shown.maxlist, _shown.maxdict = 3, 6, 6
_shown.maxstring = _shown.maxother = 100


def shown(value: object) -> str:
    """Like ``repr``, but cut short: YAML aliases can make a document endless."""
    return "nothing" if value is None else _shown.repr(value)


def _one_of(choices: type[Enum]) -> str:
    *others, last = (str(choice.value) for choice in choices)
    return f"{', '.join(others)} or {last}"


_A_DURATION = "a duration such as 30s, 10m or 1.5h"
_EXPECTED = {
    "retention": _A_DURATION,
    "window": _A_DURATION,
    "quiet": _A_DURATION,
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


def explain(problem: str, document: object) -> str:
    """Turn msgspec's ``text - at `$.path` `` into ``path: text``, with a hint where that helps."""
    text, _, where = problem.partition(" - at ")
    in_key = where.startswith("`key` in ")
    path = where.removeprefix("`key` in ").strip("`").removeprefix("$").removeprefix(".")
    text = text[0].lower() + text[1:]
    if unknown := re.search(r"unknown field `(.*)`", text):
        close = difflib.get_close_matches(unknown[1], _known_keys(path), n=1)
        text = f"unknown key {unknown[1]!r}"
        text += (
            f"; did you mean {close[0]!r}?"
            if close
            else (f"; known here: {', '.join(_known_keys(path))}")
        )
    elif in_key:
        mapping = _at(document, path)
        keys = mapping if isinstance(mapping, dict) else ()
        key = next((key for key in keys if not isinstance(key, str)), None)
        text = f"expected a string as the key, found {shown(key)}: put it in quotes"
    elif missing := re.search(r"missing required field `(.*)`", text):
        text = f"missing key {missing[1]!r}, found {shown(_at(document, path))}"
    elif expected := _EXPECTED.get(path.rpartition(".")[2]):
        text = f"expected {expected}, found {shown(_at(document, path))}"
    else:
        value = _at(document, path)
        text = re.sub(r", got `[^`]+`", "", text).replace("`", "").replace(" | null", "")
        for theirs, ours in _OURS.items():
            text = re.sub(rf"expected {theirs}\b", f"expected {ours}", text)
        text += f", found {shown(value)}"
        if "a string" in text and isinstance(value, bool):
            text += " (YAML reads unquoted yes, no, on and off as true or false: put it in quotes)"
        elif "a string" in text and isinstance(value, int):
            text += (
                " (YAML reads unquoted digits as a number, octal after a leading 0: put them in"
                " quotes)"
            )
    return f"{path}: {text}" if path else text


def _known_keys(path: str) -> tuple[str, ...]:
    if "selectors" in path:
        return Selector.__struct_encode_fields__
    if "flapping" in path:
        return Flapping.__struct_encode_fields__
    return (ResourceConfig if "resources" in path else Config).__struct_encode_fields__


def _at(document: object, path: str) -> object:
    """The value at a path such as ``a.b[0].c``, followed as far as it exists."""
    for key, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        if key and isinstance(document, dict):
            document = document.get(key)
        elif index and isinstance(document, list) and int(index) < len(document):
            document = document[int(index)]
    return document
