"""The configuration: the operator's file, read into frozen values.

Every error is one line naming the file, line and column, the key's path, what was expected and what
was found.
"""

from usbplugin.config.advice import notes, warnings
from usbplugin.config.model import Config, Flapping, Front, Registration, ResourceConfig, seconds
from usbplugin.config.reading import load, parse, parse_file

__all__ = [
    "Config",
    "Flapping",
    "Front",
    "Registration",
    "ResourceConfig",
    "load",
    "notes",
    "parse",
    "parse_file",
    "seconds",
    "warnings",
]
