"""Reads hand-written YAML safely, refuses duplicate keys, and knows where things are written."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import yaml

from usbplugin.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
_TAG_OF_STRINGS = "tag:yaml.org,2002:str"


class Place(NamedTuple):
    """A place in a text, counted from 1 as editors do."""

    line: int
    column: int

    @classmethod
    def of(cls, mark: yaml.Mark) -> Place:
        """Where a mark is."""
        return cls(mark.line + 1, mark.column + 1)

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}"


class Scalar(NamedTuple):
    """A value as it was written."""

    text: str
    is_plain: bool
    """Whether it was written without quotes, so that YAML decided on its type."""
    is_string: bool


class Document:
    """What a text holds, and where each part of it is written.

    A path such as ``a.b[0].c`` names a part, and is followed as far as it exists.
    """

    def __init__(self, value: object, root: yaml.Node) -> None:
        """Keep the value, and the nodes that it was made from."""
        self.value = value
        self._root = root

    def place(self, path: str) -> Place:
        """Where a value begins."""
        return Place.of(self._node(path).start_mark)

    def place_of_key(self, path: str, key: str) -> Place:
        """Where a key of the mapping at ``path`` is."""
        pairs = _pairs(self._node(path))
        marks = (node.start_mark for node, _ in pairs if node.value == key)
        return Place.of(next(marks, self._node(path).start_mark))

    def keys_that_are_no_strings(self, path: str) -> list[tuple[Place, str]]:
        """Where they are in the mapping at ``path``, and how they are written."""
        return [
            (Place.of(node.start_mark), node.value if isinstance(node, yaml.ScalarNode) else "")
            for node, _ in _pairs(self._node(path))
            if node.tag != _TAG_OF_STRINGS
        ]

    def at(self, path: str) -> object:
        """The value."""
        value = self.value
        for key, index in _STEP.findall(path):
            if key and isinstance(value, dict):
                value = value.get(key)
            elif index and isinstance(value, list) and int(index) < len(value):
                value = value[int(index)]
        return value

    def scalar(self, path: str) -> Scalar | None:
        """How a value is written; None if it is a mapping or a list."""
        node = self._node(path)
        if not isinstance(node, yaml.ScalarNode):
            return None
        is_string = node.tag == _TAG_OF_STRINGS
        return Scalar(str(node.value), not node.style, is_string)

    def _node(self, path: str) -> yaml.Node:
        node = self._root
        for key, index in _STEP.findall(path):
            if key:
                # As in the value, what was merged comes first, and the last one wins.
                found = [value for name, value in _pairs(node) if name.value == key]
                if not found:
                    return node
                node = found[-1]
            elif isinstance(node, yaml.SequenceNode) and int(index) < len(node.value):
                node = node.value[int(index)]
        return node


def _pairs(node: yaml.Node) -> Iterator[tuple[yaml.Node, yaml.Node]]:
    return iter(node.value if isinstance(node, yaml.MappingNode) else ())


def read_yaml(text: bytes) -> Document | None:
    """Parse ``text``; None if it has nothing in it but comments.

    Raises:
        ConfigError: it is not valid YAML.
    """
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            return None if root is None else Document(loader.construct_document(root), root)
        finally:
            loader.dispose()
    except (yaml.YAMLError, RecursionError) as error:
        # Only here: a valid text needs no explanation.
        from usbplugin.config.syntax import explain_syntax  # noqa: PLC0415

        raise ConfigError(explain_syntax(error, text)) from error


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc] # in C or not
    """Refuses duplicate keys: YAML forbids them, but PyYAML lets the last one win."""

    def __init__(self, stream: bytes) -> None:
        super().__init__(stream)
        self._seen: set[int] = set()

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:  # noqa: FBT001, FBT002 -- theirs
        try:
            return super().construct_object(node, deep)
        except (ValueError, AttributeError, LookupError, TypeError) as error:
            # PyYAML trusts a value's tag or form, so a bad one can fail in any of these ways.
            kind = node.tag.rpartition(":")[2]
            raise ConfigError(
                f"{Place.of(node.start_mark)}: YAML takes this for {_KINDS.get(kind, f'a {kind}')},"
                " but it is not a valid one: put it in quotes"
            ) from error

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        # Check only on the first call for a mapping, before merge keys have added to it.
        if id(node) not in self._seen:
            self._seen.add(id(node))
            places: dict[tuple[str, str], Place] = {}
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    continue
                place = Place.of(key.start_mark)
                if first := places.get((key.tag, key.value)):
                    raise ConfigError(
                        f"{place}: duplicate key {key.value!r}, first set on line {first.line}"
                    )
                places[key.tag, key.value] = place
        super().flatten_mapping(node)


_KINDS = {
    "timestamp": "a date",
    "int": "a number",
    "float": "a number",
    "bool": "true or false",
    "binary": "base64",
}
"""What YAML makes of a value without quotes, or with a tag."""
