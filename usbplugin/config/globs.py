"""Which selector values and globs of nodes cannot match anything, and which ones others include.

A port's node is ``/dev/`` and its kernel name: udev's links to it are not looked at.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from usbplugin.inventory import Selector

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_WILDCARDS = frozenset("*?[")
_LINKS = re.compile(r"/dev/serial/by-(id|path)(/|$)")
_BY_ID_NAME = re.compile(r"/by-id/[a-z]+-(?:[^/]*_)?([^/_*?\[]+)-if[0-9a-f]{2}(?:-port[0-9]+)?$")
_PLAIN_PLACES = ("node", "driver", "location")
"""Their values never have a bracket in them, so that one that is not closed is a mistake."""
_HEXADECIMAL = ("vendor", "product")
_DIGITS = 4
_DIGIT = r"(?:[0-9A-Fa-f?]|\[!?[0-9A-Fa-f-]+\])"
"""What one digit may be written as."""
_ON_BOARD = re.compile(r"/dev/(tty([0-9]|[SO][0-9*?\[]|AMA|mxc|THS|SAC)|console|hvc)")
_CLOSED = "expected a ']' for each '['"


def selector_problems(selector: Selector) -> Iterator[tuple[str, str]]:
    """Keys that can never match, and what is wrong with each."""
    for key in _HEXADECIMAL:
        value = getattr(selector, key)
        if value is not None and (problem := _hexadecimal_problem(value)):
            yield key, f"{problem}, found {value!r}"
    if selector.interface is not None and not 0 <= selector.interface <= 255:  # noqa: PLR2004
        yield "interface", f"expected a whole number from 0 to 255, found {selector.interface}"
    if (node := selector.node) is not None and (problem := _node_problem(node)):
        yield "node", f"{problem}, found {node!r}"
    for key in _PLAIN_PLACES:
        value = getattr(selector, key)
        if value is not None and _has_open_bracket(value):
            yield key, f"{_CLOSED}, found {value!r}"


def nodes_problem(pattern: str) -> str:
    """Why a glob of device nodes can never match; empty if it can."""
    if _LINKS.match(pattern):
        return (
            "expected kernel names such as /dev/ttyUSB*: links are not looked at (to choose a"
            f" device, use a resource's selectors: {_instead_of(pattern)})"
        )
    if not pattern.startswith("/dev/"):
        return "expected a glob below /dev/" + _with_dev(pattern)
    if _has_open_bracket(pattern):
        return _CLOSED
    if "/" in pattern.removeprefix("/dev/") or pattern == "/dev/":
        return "expected /dev/ and a kernel name such as ttyUSB*, without a further slash"
    return ""


def may_be_a_tty(pattern: str) -> bool:
    """Whether a node may be a tty by its name; a path outside of /dev may lead to one."""
    name = pattern.removeprefix("/dev/")
    return name == pattern or "/" in name or _may_share_a_prefix(name, "tty")


def is_on_board(pattern: str) -> bool:
    """Whether nodes are consoles or UARTs by their names, which are not on USB."""
    return bool(_ON_BOARD.match(pattern))


def may_overlap(pattern: str, other: str) -> bool:
    """Whether both globs may match one node: their texts up to the first wildcard agree."""
    if not _WILDCARDS & set(pattern):
        return fnmatchcase(pattern, other)
    return _may_share_a_prefix(pattern, _literal_prefix(other))


def includes(wider: Selector, narrower: Selector) -> bool:
    """Whether ``wider`` certainly matches every port that ``narrower`` matches."""
    return all(
        (known := getattr(narrower, key)) is not None
        and _includes_value(wanted, known, fold=key in _HEXADECIMAL)
        for key in Selector.__struct_fields__
        if (wanted := getattr(wider, key)) is not None
    )


def is_kernel_location(location: str) -> bool:
    """Whether it is the kernel's name of a USB device, such as ``1-1.2``, without a controller."""
    return bool(re.fullmatch(r"[0-9]+-[0-9*?]+(\.[0-9*?]+)*", location))


def _includes_value(wanted: str | int, known: str | int, *, fold: bool) -> bool:
    if isinstance(wanted, int) or isinstance(known, int):
        return wanted == known
    if fold:
        wanted, known = wanted.lower(), known.lower()
    if wanted == known:
        return True
    # Where both are globs, only stars can be told to include the other's wildcards.
    special = {"?", "["} & (set(wanted) | (set(known) - {"?"}))
    return not (_WILDCARDS & set(known) and special) and fnmatchcase(known, wanted)


def _hexadecimal_problem(value: str) -> str:
    if _has_open_bracket(value):
        return _CLOSED
    if not re.fullmatch(f"({_DIGIT}|\\*)+", value):
        return "expected four hexadecimal digits, as lsusb prints them, or a glob"
    least = len(re.findall(_DIGIT, value))
    if not _WILDCARDS & set(value):
        return "" if least == _DIGITS else "expected four hexadecimal digits"
    if least > _DIGITS or ("*" not in value and least != _DIGITS):
        return "expected a glob that matches four hexadecimal digits"
    return ""


def _node_problem(pattern: str) -> str:
    if _LINKS.match(pattern):
        return (
            "expected a kernel name such as /dev/ttyUSB*: links are not looked at, so use"
            f" {_instead_of(pattern)}"
        )
    if pattern.startswith(("/", "*", "?", "[")):
        return ""
    return "expected a path or a glob of one" + _with_dev(pattern)


def _with_dev(pattern: str) -> str:
    """Advice for a bare name."""
    return f", such as /dev/{pattern}" if re.match("[a-z]", pattern) and "/" not in pattern else ""


def _instead_of(link: str) -> str:
    """What selects the device that such a link leads to."""
    if link.startswith("/dev/serial/by-path"):
        return "location, as usbplugin list shows it"
    serial = _BY_ID_NAME.search(link)
    example = f" (here probably {serial[1]!r})" if serial else ""
    return f"serial{example}, vendor and product, as usbplugin list --json shows them"


def _literal_prefix(pattern: str) -> str:
    return re.split(r"[*?\[]", pattern, maxsplit=1)[0]


def _may_share_a_prefix(pattern: str, prefix: str) -> bool:
    literal = _literal_prefix(pattern)
    if literal == pattern:
        return literal.startswith(prefix)
    return literal.startswith(prefix) or prefix.startswith(literal)


def _has_open_bracket(pattern: str) -> bool:
    """Whether a ``[`` has no ``]``, so that fnmatch takes it for itself."""
    return "[" in re.sub(r"\[!?\]?[^\]]*\]", "", pattern)


def first_overlap(pattern: str, others: Sequence[str]) -> str:
    """The first glob that may match a node that ``pattern`` matches; empty if none does."""
    return next((other for other in others if may_overlap(pattern, other)), "")
