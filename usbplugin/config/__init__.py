"""The configuration: what the operator writes, read once into frozen values.

Every error is one line that names the file, the path of the key, what was found and what was
expected.
"""

from usbplugin.config.model import Config, Flapping, Registration, ResourceConfig, seconds
from usbplugin.config.reading import load, parse

__all__ = ["Config", "Flapping", "Registration", "ResourceConfig", "load", "parse", "seconds"]
