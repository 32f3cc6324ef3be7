"""What is valid in a configuration but probably not intended, or not without a price."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usbplugin.config.container_paths import collisions, has_room_for_one
from usbplugin.config.globs import (
    first_overlap,
    includes,
    is_kernel_location,
    is_on_board,
    may_be_a_tty,
)
from usbplugin.custody.container import variable_prefix
from usbplugin.inventory import Selector

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from usbplugin.config.model import Config, ResourceConfig

_EVERYTHING = (Selector(),)
_WILDCARDS = frozenset("*?[")


def warnings(config: Config) -> list[str]:
    """What is valid but probably not intended; one line each, with the path of what is meant."""
    return [
        *_idle_resources(config),
        *_cdi_paths(config),
        *_shared_paths(config),
        *_shared_variables(config),
        *_nodes_without_ports(config),
        *_selectors_without_ports(config),
    ]


def notes(config: Config) -> list[str]:
    """What an operator may want to know, and may well have intended; one line each."""
    return [
        f"resources[{index}].containerPath: every device of {resource.name} is"
        f" {resource.container_path} in its container, so one that asks for two is refused: to"
        " allow it, write {device} into the path"
        for index, resource in enumerate(config.resources)
        if has_room_for_one(resource.container_path) and not _is_of_one_device(resource)
    ]


def _is_of_one_device(resource: ResourceConfig) -> bool:
    """Whether no two devices can match, unless their serial numbers are the same."""
    match resource.selectors:
        case [only]:
            exact = (only.serial or "", only.location or "")
            return any(value and not _WILDCARDS & set(value) for value in exact)
        case _:
            return False


def _idle_resources(config: Config) -> Iterator[str]:
    for index, resource in enumerate(config.resources):
        where, earlier = f"resources[{index}]", config.resources[:index]
        takers = [_taker(selector, earlier) for selector in resource.selectors or _EVERYTHING]
        names = list(dict.fromkeys(taker.name for taker in takers if taker))
        if all(takers):
            every = next((t.name for t in takers if t and not t.selectors), "")
            take = "matches" if len(names) == 1 else "match"
            what = f"{take} all that it selects"
            yield (
                f"{where}: {resource.name} never gets a device, because"
                f" {every or ' and '.join(names)} above it"
                f" {'matches every port' if every else what}: move"
                f" {every or ' and '.join(names)} to the end"
            )
        else:
            for position, taker in enumerate(takers):
                if taker:
                    yield (
                        f"{where}.selectors[{position}]: it selects nothing, because {taker.name}"
                        " above it matches all that it does"
                    )


def _taker(selector: Selector, earlier: Sequence[ResourceConfig]) -> ResourceConfig | None:
    """The first resource that takes every port that ``selector`` matches; None if none does."""
    return next(
        (
            resource
            for resource in earlier
            if any(includes(wider, selector) for wider in resource.selectors or _EVERYTHING)
        ),
        None,
    )


def _cdi_paths(config: Config) -> Iterator[str]:
    for index, resource in enumerate(config.resources):
        if config.uses_cdi(resource) and "{name}" in resource.container_path:
            yield (
                f"resources[{index}]: with cdi and {{name}} in containerPath, a replug can"
                " change the node's path without changing the container's environment: use a"
                " path without {name}, such as /dev/modem{port}"
            )


def _shared_paths(config: Config) -> Iterator[str]:
    for earlier, later, path in collisions(config.resources, config.nodes):
        names = config.resources[earlier].name, config.resources[later].name
        yield (
            f"resources[{later}].containerPath: devices of {names[0]} and {names[1]} may both be"
            f" {path} in a container, which can then open only one of the two: choose another path"
            " unless no container asks for both"
        )


def _shared_variables(config: Config) -> Iterator[str]:
    prefixes: dict[str, str] = {}
    for index, resource in enumerate(config.resources):
        prefix = variable_prefix(resource.name)
        if other := prefixes.get(prefix):
            yield (
                f"resources[{index}].name: {other} and {resource.name} have the same environment"
                f" variables ({prefix}_DEVICES...), so a container that asks for both sees only one"
                " resource's: give one of them another name"
            )
        prefixes.setdefault(prefix, resource.name)


def _nodes_without_ports(config: Config) -> Iterator[str]:
    if not config.nodes:
        yield "nodes: without a glob no USB device is found: leave nodes out for its default"
    for index, pattern in enumerate(config.nodes):
        if is_on_board(pattern):
            yield (
                f"nodes[{index}]: {pattern} names consoles or serial ports of the mainboard, which"
                " are left out: only ports of USB devices are offered"
            )
        elif not may_be_a_tty(pattern):
            yield (
                f"nodes[{index}]: {pattern} names no tty of the kernel's (ttyUSB0, ttyACM0...), and"
                " links such as udev's are not looked at"
            )


def _selectors_without_ports(config: Config) -> Iterator[str]:
    for index, resource in enumerate(config.resources):
        for position, selector in enumerate(resource.selectors):
            where = f"resources[{index}].selectors[{position}]"
            node, location = selector.node or "", selector.location or ""
            if node and not may_be_a_tty(node):
                yield (
                    f"{where}.node: {node} names no tty of the kernel's (ttyUSB0, ttyACM0...), and"
                    " links such as udev's are not looked at: select by serial, vendor and product"
                )
            elif node.startswith("/dev/tty") and not first_overlap(node, config.nodes):
                yield f"{where}.node: {node} is not among nodes ({', '.join(config.nodes)})"
            if is_kernel_location(location):
                yield (
                    f"{where}.location: {location} lacks the host controller, whose number of a bus"
                    " is chance: write it as usbplugin list shows it, or *-"
                    f"{location.partition('-')[2]}"
                )
