"""What a configuration selects on this machine, in words."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from usbplugin.config.globs import is_on_board, may_overlap
from usbplugin.discovery.port import DEFAULT_NODES
from usbplugin.discovery.sysfs import read_tty
from usbplugin.inventory import first_match

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from usbplugin.config import Config, ResourceConfig
    from usbplugin.discovery import Port
    from usbplugin.status.selection import Selection

_TTYS = Path("/sys/class/tty")
_MOST_NAMED = 3


def summary(config: Config, selected: Iterable[Selection], ports: Collection[Port]) -> list[str]:
    """A line for each resource with what it selects here, and one for what nothing selects.

    Args:
        config: The configuration.
        selected: What its resources select, in its order.
        ports: All ports present.
    """
    lines = {
        resource.name: _selected(selection, resource)
        for selection, resource in zip(selected, config.resources, strict=True)
    }
    rules = config.rules()
    if others := sum(first_match(rules, port) is None for port in ports):
        lines["(no resource)"] = f"{_count(others, 'port')} that nothing selects"
    width = max(map(len, lines))
    return [f"{name:{width}}  {text}" for name, text in lines.items()]


def _selected(selection: Selection, resource: ResourceConfig) -> str:
    """What a resource selects here and how many, or why it is nothing."""
    ids = [device.id for device in selection.devices]
    taken = [
        f"what {other} above it takes: {_listed([port.node for port in ports])}"
        for other, ports in selection.taken.items()
    ]
    if not resource.selectors:
        # It is for what the others leave: what they take is not worth a word.
        nothing = "the resources above it take all ports here" if taken else "matches nothing here"
        taken = []
    else:
        nothing = f"matches only {' and '.join(taken)}" if taken else "matches nothing here"
    if ids:
        said = f"{_count(len(ids), 'device')}: {_listed(ids)}"
    elif selection.waiting:
        said = "matches ports that are no device yet: see below"
    else:
        return nothing
    return "; also matches ".join([said, *taken])


def contradictions(config: Config, dev: Path = Path("/dev"), ttys: Path = _TTYS) -> Iterator[str]:
    """Nodes of a configuration that are here, but are not what it takes them for.

    Args:
        config: The configuration.
        dev: Where device nodes are.
        ttys: Where sysfs lists ttys.
    """
    names = sorted(path.name for path in ttys.iterdir()) if ttys.is_dir() else []
    for path, pattern in _patterns(config):
        link = dev / pattern.removeprefix("/dev/")
        here = [f"/dev/{name}" for name in names if fnmatchcase(f"/dev/{name}", pattern)]
        if link.is_symlink():
            yield (
                f"{path}: {pattern} is a link to {link.resolve()} here, and links are not looked"
                " at: use a resource's selectors, such as serial or location"
            )
        elif is_on_board(pattern) or any(may_overlap(pattern, usual) for usual in DEFAULT_NODES):
            # Warned of without a look, or for what may be plugged in later.
            continue
        elif not here or any(_may_be_on_usb(ttys / Path(node).name) for node in here):
            continue
        elif here == [pattern]:
            yield f"{path}: {pattern} is not on USB here, and so left out"
        else:
            yield f"{path}: {pattern} matches {_listed(here)} here, and nothing that is on USB"


def _patterns(config: Config) -> Iterator[tuple[str, str]]:
    """The path of each glob of nodes in /dev, and the glob."""
    for index, pattern in enumerate(config.nodes):
        yield f"nodes[{index}]", pattern
    for index, resource in enumerate(config.resources):
        for position, selector in enumerate(resource.selectors):
            if selector.node is not None and selector.node.startswith("/dev/"):
                yield f"resources[{index}].selectors[{position}].node", selector.node


def _may_be_on_usb(tty: Path) -> bool:
    try:
        return read_tty(tty) is not None
    except OSError:
        return True


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
