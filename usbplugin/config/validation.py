"""Checks beyond types: whether a configuration's names, paths and globs can work."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from usbplugin.config.container_paths import container_path_problem
from usbplugin.config.globs import nodes_problem, selector_problems
from usbplugin.kubelet.names import resource_name_problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from usbplugin.config.model import Config, ResourceConfig


def problems(config: Config) -> Iterator[tuple[str, str]]:
    """What types alone cannot tell: the path of each value that is wrong, and why it is."""
    if not config.resources:
        yield "resources", "expected at least one resource, found none"
    for index, node in enumerate(config.nodes):
        if problem := nodes_problem(node):
            yield f"nodes[{index}]", f"{problem}, found {node!r}"
    names: dict[str, int] = {}
    for index, resource in enumerate(config.resources):
        where = f"resources[{index}]"
        if (other := names.setdefault(resource.name, index)) != index:
            problem = f"{resource.name!r} is already the name of resources[{other}]"
            yield f"{where}.name", f"{problem}; list the selectors of both in one resource"
        for key, problem in _resource_problems(resource, config):
            yield f"{where}.{key}", problem


def _resource_problems(resource: ResourceConfig, config: Config) -> Iterator[tuple[str, str]]:
    if problem := resource_name_problem(resource.name):
        yield "name", f"{problem}, found {resource.name!r}"
    path = resource.container_path
    if problem := container_path_problem(path, resource.unit):
        yield "containerPath", f"{problem}, found {path!r}"
    if problem := _cdi_problem(resource, config):
        yield "cdi", problem
    for position, selector in enumerate(resource.selectors):
        for key, problem in selector_problems(selector):
            yield f"selectors[{position}].{key}", problem


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
