"""Reads and validates a configuration file; every error is one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from usbplugin.config.explanation import explain, shown
from usbplugin.config.model import Config
from usbplugin.config.validation import validate
from usbplugin.config.yaml import read_yaml
from usbplugin.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

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
    try:
        return parse(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def parse(text: bytes) -> Config:
    """Decode and validate a configuration file's text; empty text means the defaults.

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
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise ConfigError(f"expected a mapping, such as resources: [...], found {_kind(document)}")
    try:
        config = msgspec.convert(document, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(explain(str(error), document)) from error
    validate(config)
    return config


def _kind(value: object) -> str:
    return "a list" if isinstance(value, list) else shown(value)
