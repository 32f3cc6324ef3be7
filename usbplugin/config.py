"""What the operator writes, decoded and validated once into frozen values.

Every error is one line that names the file, the path within it, what was found and what was
expected. Nothing here has defaults that depend on the machine.
"""

from __future__ import annotations

import difflib
import re
import reprlib
import string
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import msgspec

from usbplugin.discovery import IdentityMode, Unit
from usbplugin.discovery.port import DEFAULT_NODES
from usbplugin.errors import ConfigError
from usbplugin.inventory import HealthPolicy, ResourceRule, Selector
from usbplugin.kubelet import Handover
from usbplugin.kubelet.allocation import DEFAULT_CONTAINER_PATH, PLACEHOLDERS
from usbplugin.kubelet.names import resource_name_problem
from usbplugin.kubelet.shares import MOST_SHARES
from usbplugin.yamltext import read_yaml

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT_RESOURCE = "usbplugin/serial"


Duration = Annotated[str, msgspec.Meta(pattern=r"^[0-9]+(\.[0-9]+)?(ms|s|m|h)$")]
"""A number and a unit: ``500ms``, ``30s``, ``10m``, ``1.5h``."""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class Registration(Enum):
    """How the kubelet comes to know the plugin."""

    KUBELET = "kubelet"
    """The plugin calls Register on kubelet.sock."""
    WATCHER = "watcher"
    """The kubelet's plugin watcher finds the plugin's socket in plugins_registry."""


class ResourceConfig(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", kw_only=True
):
    """One resource that pods can request."""

    name: str
    """What pods request, e.g. ``usbplugin/zigbee``."""
    selectors: tuple[Selector, ...] = ()
    """Alternatives; a port that matches one of them belongs here. None: every port."""
    unit: Unit = Unit.PORT
    """What one device is: a ``port``, or all ports of one ``usb-device`` (a modem)."""
    identity: IdentityMode = IdentityMode.AUTO
    """What device IDs hang on: ``serial``, ``location`` or ``auto``."""
    permissions: Annotated[str, msgspec.Meta(pattern="^(r|w|m|rw|rm|wm|rwm)$")] = "rw"
    """cgroup permissions of the container on the node: r (read), w (write), m (mknod)."""
    container_path: str = DEFAULT_CONTAINER_PATH
    """Path in the container; ``{name}`` is the kernel name, ``{device}`` and ``{port}`` count."""
    by_id_links: bool = False
    """Whether the node also appears under its ``/dev/serial/by-id`` name, unless another of the
    container's devices of this resource claims the same one."""
    pre_start: bool = True
    """Whether each start of a container is checked, and waits while its device is away."""
    shares: Annotated[int, msgspec.Meta(ge=1, le=MOST_SHARES)] = 1
    """How many containers may have the same device at the same time."""
    cdi: bool | None = None
    """Whether devices are handed over by CDI; if not given, what ``cdi`` at the top says."""

    def rule(self) -> ResourceRule:
        """What the inventory needs of it."""
        return ResourceRule(self.name, self.selectors, self.identity, self.unit, self.pre_start)


class Flapping(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", kw_only=True
):
    """When a device that comes and goes is no longer handed out."""

    times: Annotated[int, msgspec.Meta(ge=2, le=60)] = 5
    """So many departures..."""
    window: Duration = "60s"
    """...within this time make it flapping..."""
    quiet: Duration = "30s"
    """...until it has neither come nor gone for so long."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", kw_only=True):
    """The whole configuration; with no file at all, every USB serial port is usbplugin/serial."""

    nodes: tuple[str, ...] = DEFAULT_NODES
    """Device nodes that the udev source looks at, as globs. Read at start only."""
    resources: tuple[ResourceConfig, ...] = (ResourceConfig(name=DEFAULT_RESOURCE),)
    """In order: a device belongs to the first resource that matches it."""
    retention: Duration = "1h"
    """For how long an unplugged device that no pod holds stays listed as Unhealthy."""
    flapping: Flapping = Flapping()
    """When a device that comes and goes is no longer handed out."""
    registration: Registration = Registration.KUBELET
    """``kubelet``: call Register. ``watcher``: be found by the kubelet's plugin watcher."""
    cdi: bool = False
    """Whether devices are handed over by CDI names in place of device nodes."""
    node_features: bool = False
    """Whether node labels are offered to Node Feature Discovery."""

    def rules(self) -> list[ResourceRule]:
        """What the inventory needs of the resources."""
        return [resource.rule() for resource in self.resources]

    def handovers(self) -> list[Handover]:
        """What the kubelet side needs of the resources."""
        return [
            Handover(
                resource.name,
                resource.permissions,
                resource.container_path,
                resource.by_id_links,
                resource.pre_start,
                resource.shares,
                cdi=_with_cdi(resource, self),
            )
            for resource in self.resources
        ]

    def health_policy(self) -> HealthPolicy:
        """How long things are remembered and waited for."""
        return HealthPolicy(
            retention=seconds(self.retention),
            flaps=self.flapping.times,
            flap_window=seconds(self.flapping.window),
            flap_quiet=seconds(self.flapping.quiet),
        )

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
            if _with_cdi(resource, self) and "{name}" in resource.container_path:
                found.append(
                    f"resources[{index}]: with cdi and {{name}} in containerPath, after a replug"
                    " the node in the container has another name than its environment says: write"
                    " a path without {name}, such as /dev/modem{port}"
                )
        return found


def seconds(duration: Duration) -> float:
    """A duration's seconds."""
    number, unit = re.findall(r"[0-9.]+|[a-z]+", duration)
    return float(number) * _UNITS[unit]


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
        return _parse(text)
    except ConfigError as error:
        # What was found there is repeated, whatever it was: in one line, and not without end.
        line = "".join(
            c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(error)
        )
        if len(line) > _LONGEST_MESSAGE:
            line = f"{line[:_LONGEST_MESSAGE]}..."
        raise ConfigError(line) from error


def _parse(text: bytes) -> Config:
    document = read_yaml(text)
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


_LONGEST_MESSAGE = 600

_shown = reprlib.Repr()
"""As ``repr``, but of a document that unfolds without end only the beginning."""
_shown.maxlevel, _shown.maxlist, _shown.maxdict = 3, 6, 6
_shown.maxstring = _shown.maxother = 100


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
        if problem := _cdi_problem(resource, config):
            raise ConfigError(f"{where}.cdi: {problem}")
        for position, selector in enumerate(resource.selectors):
            _validate_selector(selector, f"{where}.selectors[{position}]")
    for index, node in enumerate(config.nodes):
        if not node.startswith("/dev/"):
            raise ConfigError(f"nodes[{index}]: expected a glob below /dev/, found {node!r}")


def _with_cdi(resource: ResourceConfig, config: Config) -> bool:
    return config.cdi if resource.cdi is None else resource.cdi


def _cdi_problem(resource: ResourceConfig, config: Config) -> str:
    """Why a resource cannot be handed over by CDI; empty if it can, or need not."""
    if not _with_cdi(resource, config):
        return ""
    if resource.by_id_links:
        return "expected false together with byIdLinks: a CDI spec names each node once"
    if "{device}" in resource.container_path:
        return "expected false with {device} in containerPath: a CDI spec is no container's own"
    if not re.fullmatch(r"[A-Za-z][^/]+/[A-Za-z][^/]+", resource.name):
        return (
            "expected false: CDI's vendor and class, unlike the parts of a resource's name, begin"
            " with a letter and have two characters or more"
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
        return "expected the path of a file, without '..'"
    try:
        fields = [field for _, *field in string.Formatter().parse(template)]
    except ValueError as error:
        return f"expected a path with balanced braces ({error})"
    for name, spec, conversion in fields:
        if name is not None and (name not in PLACEHOLDERS or spec or conversion):
            return "expected no other placeholders than {name}, {device} and {port}"
    return ""


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


def _explain(problem: str, document: object) -> str:
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
        text = f"expected text as a key, found {_shown.repr(key)}: put it in quotes"
    elif expected := _EXPECTED.get(path.rpartition(".")[2]):
        text = f"expected {expected}, found {_shown.repr(_at(document, path))}"
    else:
        value = _at(document, path)
        text = re.sub(r", got `[^`]+`", "", text).replace("`", "").replace(" | null", "")
        for theirs, ours in (("str", "a string"), ("array", "a list"), ("object", "a mapping")):
            text = re.sub(rf"expected {theirs}\b", f"expected {ours}", text)
        text += f", found {_shown.repr(value)}"
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


def _kind(value: object) -> str:
    return "a list" if isinstance(value, list) else _shown.repr(value)
