"""Turns what msgspec says of a document that does not fit into what an operator can act on."""

from __future__ import annotations

import difflib
import re
import reprlib
from typing import TYPE_CHECKING

from usbplugin.config.model import Config, Flapping, Registration, ResourceConfig
from usbplugin.discovery import IdentityMode, Unit
from usbplugin.inventory import Selector

if TYPE_CHECKING:
    from enum import Enum

_shown = reprlib.Repr()
_shown.maxlevel, _shown.maxlist, _shown.maxdict = 3, 6, 6
_shown.maxstring = _shown.maxother = 100


def shown(value: object) -> str:
    """As ``repr``, but of a document that unfolds without end only the beginning."""
    return _shown.repr(value)


def _one_of(choices: type[Enum]) -> str:
    return " or ".join(str(choice.value) for choice in choices)


_A_DURATION = "a duration such as 30s, 10m or 1.5h"
_EXPECTED = {
    "retention": _A_DURATION,
    "window": _A_DURATION,
    "quiet": _A_DURATION,
    "unit": _one_of(Unit),
    "identity": _one_of(IdentityMode),
    "registration": _one_of(Registration),
    "permissions": "r, w, m or several of these in this order, such as rw",
}
"""By key, what its value has to be, where msgspec would show a pattern, or none of the choices."""


def explain(problem: str, document: object) -> str:
    """Turn msgspec's ``text - at `$.path` `` into ``path: text``, with a hint where one helps."""
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
        text = f"expected text as a key, found {shown(key)}: put it in quotes"
    elif expected := _EXPECTED.get(path.rpartition(".")[2]):
        text = f"expected {expected}, found {shown(_at(document, path))}"
    else:
        value = _at(document, path)
        text = re.sub(r", got `[^`]+`", "", text).replace("`", "").replace(" | null", "")
        for theirs, ours in (("str", "a string"), ("array", "a list"), ("object", "a mapping")):
            text = re.sub(rf"expected {theirs}\b", f"expected {ours}", text)
        text += f", found {shown(value)}"
        if "a string" in text and isinstance(value, bool):
            text += " (YAML reads yes, no, on and off as true or false: put it in quotes)"
        elif "a string" in text and isinstance(value, int):
            text += (
                " (YAML reads digits as a number, after a leading 0 as an octal one: put them in"
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
    """The value at ``a.b[0].c``; as much of it as there is."""
    for key, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        if key and isinstance(document, dict):
            document = document.get(key)
        elif index and isinstance(document, list) and int(index) < len(document):
            document = document[int(index)]
    return document
