"""Checks beyond types: whether a configuration's names, paths and globs can work."""

from __future__ import annotations

import re
import string
from typing import TYPE_CHECKING

from usbplugin.custody.offer import PLACEHOLDERS
from usbplugin.errors import ConfigError
from usbplugin.kubelet.names import resource_name_problem

if TYPE_CHECKING:
    from usbplugin.config.model import Config, ResourceConfig
    from usbplugin.inventory import Selector


def validate(config: Config) -> None:
    """Check what types alone cannot.

    Raises:
        ConfigError: a value is invalid.
    """
    if not config.resources:
        raise ConfigError("resources: expected at least one resource, found none")
    names: dict[str, int] = {}
    for index, resource in enumerate(config.resources):
        where = f"resources[{index}]"
        if resource.name in names:
            raise ConfigError(
                f"{where}.name: {resource.name!r} is already the name of"
                f" resources[{names[resource.name]}]; list the selectors of both in one resource"
            )
        names[resource.name] = index
        if problem := resource_name_problem(resource.name):
            raise ConfigError(f"{where}.name: {problem}, found {resource.name!r}")
        path = resource.container_path
        if problem := _container_path_problem(path):
            raise ConfigError(f"{where}.containerPath: {problem}, found {path!r}")
        if problem := _cdi_problem(resource, config):
            raise ConfigError(f"{where}.cdi: {problem}")
        for position, selector in enumerate(resource.selectors):
            _validate_selector(selector, f"{where}.selectors[{position}]")
    for index, node in enumerate(config.nodes):
        if not node.startswith("/dev/"):
            raise ConfigError(f"nodes[{index}]: expected a glob below /dev/, found {node!r}")


def _cdi_problem(resource: ResourceConfig, config: Config) -> str:
    """Why a resource cannot use CDI; empty if it can, or does not."""
    if not config.uses_cdi(resource):
        return ""
    if resource.by_id_links:
        return "expected false with byIdLinks: a CDI spec names each node only once"
    if "{device}" in resource.container_path:
        return "expected false with {device} in containerPath: containers share a CDI spec"
    if not re.fullmatch(r"[A-Za-z][^/]+/[A-Za-z][^/]+", resource.name):
        return (
            "expected false: the name's two parts become CDI's vendor and class, which must begin"
            " with a letter and have at least two characters"
        )
    return ""


def _validate_selector(selector: Selector, where: str) -> None:
    for key, value in (("vendor", selector.vendor), ("product", selector.product)):
        if value is not None and not re.fullmatch(r"[0-9A-Fa-f*?\[\]!-]+", value):
            raise ConfigError(
                f"{where}.{key}: expected four hexadecimal digits, as lsusb prints them, or a glob,"
                f" found {value!r}"
            )
        if value is not None and not re.search(r"[*?\[]", value) and len(value) != 4:  # noqa: PLR2004
            raise ConfigError(f"{where}.{key}: expected four hexadecimal digits, found {value!r}")
    if selector.interface is not None and not 0 <= selector.interface <= 255:  # noqa: PLR2004
        raise ConfigError(
            f"{where}.interface: expected a number from 0 to 255, found {selector.interface}"
        )


def _container_path_problem(template: str) -> str:
    if not template.startswith("/") or "," in template or not template.isprintable():
        return "expected an absolute path without commas"
    if ".." in template.split("/") or template.endswith("/"):
        return "expected a file's path, without '..'"
    try:
        fields = [field for _, *field in string.Formatter().parse(template)]
    except ValueError as error:
        return f"expected a path with balanced braces ({error})"
    for name, spec, conversion in fields:
        if name is not None and (name not in PLACEHOLDERS or spec or conversion):
            return "expected only the placeholders {name}, {device} and {port}"
    return ""
