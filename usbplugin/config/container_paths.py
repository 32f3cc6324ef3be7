"""Which paths devices get in containers: whether a template works, and which ones may collide."""

from __future__ import annotations

import re
import string
from fnmatch import translate
from itertools import product
from typing import TYPE_CHECKING

from usbplugin.custody.offer import PLACEHOLDERS
from usbplugin.discovery import Unit
from usbplugin.discovery.port import DEFAULT_NODES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from usbplugin.config.model import ResourceConfig

_NUMBERS = range(10)
"""As many of each as are tried; more digits are matched by the other side."""


def container_path_problem(template: str, unit: Unit) -> str:
    """Why no container could be given such paths; empty if it could."""
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
    if unit is Unit.USB_DEVICE and not {"name", "port"} & {name for name, _, _ in fields}:
        return (
            "expected {port} or {name} in it, since each port of a usb-device needs a path of its"
            f" own: {_with_port(template)}"
        )
    return ""


def has_room_for_one(template: str) -> bool:
    """Whether all devices of one resource would get the same path."""
    return "{name}" not in template and "{device}" not in template


def collisions(
    resources: Sequence[ResourceConfig], nodes: Sequence[str]
) -> Iterator[tuple[int, int, str]]:
    """Pairs of resources whose devices may get one path, and such a path; once for each resource.

    ``{name}`` may be whatever the globs of ``nodes``, and the sources, let it be.
    """
    globs = [glob.removeprefix("/dev/") for glob in {*nodes, *DEFAULT_NODES}]
    name = "|".join(translate(glob) for glob in sorted(globs))
    templates = [resource.container_path for resource in resources]
    patterns = [_pattern(template, name) for template in templates]
    samples = [list(_samples(template)) for template in templates]
    for later in range(len(resources)):
        for earlier in range(later):
            # Two kernel names are never the same.
            if "{name}" in templates[earlier] and "{name}" in templates[later]:
                continue
            shared = [path for path in samples[later] if patterns[earlier].fullmatch(path)]
            shared += [path for path in samples[earlier] if patterns[later].fullmatch(path)]
            if shared:
                yield earlier, later, shared[0]
                break


def _with_port(template: str) -> str:
    stem = template.replace("{device}", "{device}-") if template.endswith("}") else template
    return stem + "{port}"


def _pattern(template: str, name: str) -> re.Pattern[str]:
    """What a template may become."""
    forms = {"name": f"(?:{name})", "device": "[0-9]+", "port": "[0-9]+"}
    parts = []
    for literal, field, _, _ in string.Formatter().parse(template):
        parts += [re.escape(literal), forms[field] if field else ""]
    return re.compile("".join(parts).replace(r"\Z", "").replace(r"\z", ""))


def _samples(template: str) -> Iterator[str]:
    """A few paths that a template becomes, of all lengths that matter; none with ``{name}``."""
    if "{name}" in template:
        return
    fields = [f"{{{field}}}" for field in ("device", "port") if f"{{{field}}}" in template]
    for numbers in product(_NUMBERS, repeat=len(fields)):
        path = template
        for field, number in zip(fields, numbers, strict=True):
            path = path.replace(field, str(number))
        yield path.replace("{{", "{").replace("}}", "}")
