"""What the operator writes, decoded and validated once into frozen values.

Every error is one line that names the file, the path within it, what was found and what was
expected. Nothing here has defaults that depend on the machine.
"""

from __future__ import annotations

import difflib
import re
import string
from typing import TYPE_CHECKING, Annotated

import msgspec
import yaml

from usbplugin.discovery import IdentityMode
from usbplugin.errors import ConfigError
from usbplugin.inventory import ResourceRule, Selector
from usbplugin.kubelet import Handover
from usbplugin.kubelet.allocation import DEFAULT_CONTAINER_PATH, PLACEHOLDERS
from usbplugin.kubelet.names import resource_name_problem

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT_RESOURCE = "usbplugin/serial"
DEFAULT_NODES = ("/dev/ttyUSB*", "/dev/ttyACM*")


class ResourceConfig(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", kw_only=True
):
    """One resource that pods can request."""

    name: str
    """What pods request, e.g. ``usbplugin/zigbee``."""
    selectors: tuple[Selector, ...] = ()
    """Alternatives; a port that matches one of them belongs here. None: every port."""
    identity: IdentityMode = IdentityMode.AUTO
    """What device IDs hang on: ``serial``, ``location`` or ``auto``."""
    permissions: Annotated[str, msgspec.Meta(pattern="^(r|w|m|rw|rm|wm|rwm)$")] = "rw"
    """cgroup permissions of the container on the node: r (read), w (write), m (mknod)."""
    container_path: str = DEFAULT_CONTAINER_PATH
    """Path in the container; ``{name}`` is the kernel name, ``{device}`` and ``{port}`` count."""
    by_id_links: bool = False
    """Whether the node also appears under its ``/dev/serial/by-id`` name."""

    def rule(self) -> ResourceRule:
        """What the inventory needs of it."""
        return ResourceRule(self.name, self.selectors, self.identity)

    def handover(self) -> Handover:
        """What the kubelet side needs of it."""
        return Handover(self.name, self.permissions, self.container_path, self.by_id_links)


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", kw_only=True):
    """The whole configuration; with no file at all, every USB serial port is usbplugin/serial."""

    nodes: tuple[str, ...] = DEFAULT_NODES
    """Device nodes that the udev source looks at, as globs."""
    resources: tuple[ResourceConfig, ...] = (ResourceConfig(name=DEFAULT_RESOURCE),)
    """In order: a device belongs to the first resource that matches it."""

    def warnings(self) -> list[str]:
        """What is valid but hardly meant; a line each."""
        catching_all: str | None = None
        found = []
        for index, resource in enumerate(self.resources):
            if catching_all is not None:
                found.append(
                    f"resources[{index}]: {resource.name} never gets a device, for"
                    f" {catching_all} before it matches every port: move that one to the end"
                )
            elif not resource.selectors or any(s.is_empty for s in resource.selectors):
                catching_all = resource.name
        return found


def load(path: Path) -> Config:
    """Read and validate a configuration file.

    Raises:
        ConfigError: it cannot be read, or says something that cannot be meant.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return parse(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def parse(text: bytes) -> Config:
    """Decode and validate the text of a configuration file; an empty one means the defaults.

    Raises:
        ConfigError: as ``load`` does, without the file's name.
    """
    try:
        document: object = yaml.load(text, Loader=_LOADER)  # noqa: S506 -- a safe loader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"is not YAML: {' '.join(str(error).split())}") from error
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise ConfigError(f"expected a mapping with the key resources, found {_kind(document)}")
    try:
        config = msgspec.convert(document, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(str(error), document)) from error
    _validate(config)
    return config


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _validate(config: Config) -> None:
    if not config.resources:
        raise ConfigError("resources: expected at least one resource, found none")
    names: dict[str, int] = {}
    for index, resource in enumerate(config.resources):
        where = f"resources[{index}]"
        if resource.name in names:
            raise ConfigError(
                f"{where}.name: {resource.name!r} is the name of resources[{names[resource.name]}]"
                " already; give both selectors to one resource instead"
            )
        names[resource.name] = index
        if problem := resource_name_problem(resource.name):
            raise ConfigError(f"{where}.name: {problem}, found {resource.name!r}")
        path = resource.container_path
        if problem := _container_path_problem(path):
            raise ConfigError(f"{where}.containerPath: {problem}, found {path!r}")
        for position, selector in enumerate(resource.selectors):
            _validate_selector(selector, f"{where}.selectors[{position}]")
    for index, node in enumerate(config.nodes):
        if not node.startswith("/dev/"):
            raise ConfigError(f"nodes[{index}]: expected a glob below /dev/, found {node!r}")


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
        return "expected the path of a file, without '..'"
    try:
        fields = [field for _, *field in string.Formatter().parse(template)]
    except ValueError as error:
        return f"expected a path with balanced braces ({error})"
    for name, spec, conversion in fields:
        if name is not None and (name not in PLACEHOLDERS or spec or conversion):
            return "expected no other placeholders than {name}, {device} and {port}"
    return ""


def _explain(problem: str, document: object) -> str:
    """Turn msgspec's ``text - at `$.path` `` into ``path: text``, with a hint where one helps."""
    text, _, where = problem.partition(" - at ")
    path = where.strip("`").removeprefix("$").removeprefix(".")
    text = text[0].lower() + text[1:]
    if unknown := re.search(r"unknown field `(.*)`", text):
        close = difflib.get_close_matches(unknown[1], _known_keys(path), n=1)
        text = f"unknown key {unknown[1]!r}"
        text += (
            f"; did you mean {close[0]!r}?"
            if close
            else (f"; known here: {', '.join(_known_keys(path))}")
        )
    else:
        value = _at(document, path)
        text = re.sub(r", got `\w+`", "", text).replace("`", "").replace("str", "a string")
        text += f", found {value!r}"
        if isinstance(value, int) and "a string" in text:
            text += " (YAML reads digits as a number: put them in quotes)"
    return f"{path}: {text}" if path else text


def _known_keys(path: str) -> tuple[str, ...]:
    if "selectors" in path:
        return Selector.__struct_encode_fields__
    return (ResourceConfig if "resources" in path else Config).__struct_encode_fields__


def _at(document: object, path: str) -> object:
    """The value at ``a.b[0].c``; as much of it as there is."""
    for key, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        if key and isinstance(document, dict):
            document = document.get(key)
        elif index and isinstance(document, list) and int(index) < len(document):
            document = document[int(index)]
    return document


def _kind(value: object) -> str:
    return "a list" if isinstance(value, list) else repr(value)
