"""Reads and validates a configuration file; every error is one line."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import msgspec

from usbplugin.config.model import Config
from usbplugin.config.validation import problems
from usbplugin.config.yaml import read_yaml
from usbplugin.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from usbplugin.config.yaml import Document

_LONGEST_MESSAGE = 600


def load(path: Path) -> Config:
    """Read and validate a configuration file.

    Raises:
        ConfigError: it cannot be read or is invalid.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    return parse_file(path, text)


def parse_file(path: Path, text: bytes) -> Config:
    """Like ``parse``, for what was read from ``path``, which an error names.

    Raises:
        ConfigError: it is invalid.
    """
    try:
        return parse(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def parse(text: bytes) -> Config:
    """Decode and validate a configuration file's text.

    A text without content is refused: that is what a file looks like that was truncated before it
    is written anew, or for which the disk had no room. So are a key without a value, which is how
    some texts end that were cut off, and selectors without a condition, which is what a template
    makes of a variable that is not set: they would take every port.

    Raises:
        ConfigError: it is invalid.
    """
    try:
        return _decode(text)
    except ConfigError as error:
        # The message quotes the file, which may hold anything: keep it to one line, not too long.
        line = "".join(
            c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(error)
        )
        if len(line) > _LONGEST_MESSAGE:
            line = f"{line[:_LONGEST_MESSAGE]}..."
        raise ConfigError(line) from error


def _decode(text: bytes) -> Config:
    document = read_yaml(text)
    if document is None or document.value is None:
        raise ConfigError(
            "expected a mapping, such as resources: [...], found nothing: write {} for the defaults"
        )
    if not isinstance(document.value, dict):
        raise ConfigError(
            f"{document.place('')}: expected a mapping, such as resources: [...], found"
            f" {_found(document)}"
        )
    try:
        config = msgspec.convert(document.value, Config)
    except msgspec.ValidationError as error:
        # Only here: a valid text needs no explanation.
        from usbplugin.config.explanation import explain  # noqa: PLC0415

        raise ConfigError(explain(str(error), document)) from error
    # Types cannot tell: to them, what is given as nothing is what is not given.
    for path, problem in chain(_given_as_nothing(document.value), problems(config)):
        raise ConfigError(f"{document.place(path)}: {path}: {problem}")
    return config


_EMPTY = "expected a value, found nothing: leave the key out for its default"
_EVERY_PORT = "leave selectors out for a resource of every port"


def _given_as_nothing(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    """The paths of what is there without content, in a document of our types, and the problem."""
    if value is None:
        yield path, _EMPTY
    elif isinstance(value, dict):
        if not value and "selectors" in path:
            yield path, f"expected a condition, found {{}}: {_EVERY_PORT}"
        for key, item in value.items():
            yield from _given_as_nothing(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        if not value and path.endswith("selectors"):
            yield path, f"expected at least one selector, found none: {_EVERY_PORT}"
        for index, item in enumerate(value):
            yield from _given_as_nothing(item, f"{path}[{index}]")


def _found(document: Document) -> str:
    from usbplugin.config.explanation import found  # noqa: PLC0415 -- as above

    return found(document, "")
