"""Reads hand-written YAML safely, and refuses duplicate keys."""

from __future__ import annotations

import yaml

from usbplugin.errors import ConfigError


def read_yaml(text: bytes) -> object:
    """Parse ``text``; None if it has nothing in it but comments.

    Raises:
        ConfigError: it is not valid YAML.
    """
    try:
        document: object = yaml.load(text, Loader=_Loader)  # noqa: S506 -- a safe loader
    except (yaml.YAMLError, RecursionError) as error:
        problem = str(error).replace('in "<byte string>", ', "in ")
        raise ConfigError(f"not valid YAML: {' '.join(problem.split())}") from error
    except (ValueError, AttributeError, LookupError, TypeError) as error:
        # PyYAML trusts a value's tag or form, so a bad one can fail in any of these ways.
        raise ConfigError(f"not valid YAML: a value does not fit its type ({error})") from error
    return document


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc] # in C or not
    """Refuses duplicate keys: YAML forbids them, but PyYAML lets the last one win."""

    def __init__(self, stream: bytes) -> None:
        super().__init__(stream)
        self._seen: set[int] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        # Check only on the first call for a mapping, before merge keys have added to it.
        if id(node) not in self._seen:
            self._seen.add(id(node))
            lines: dict[tuple[str, str], int] = {}
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    continue
                line = key.start_mark.line + 1
                if first := lines.get((key.tag, key.value)):
                    raise ConfigError(
                        f"line {line}: duplicate key {key.value!r}, first set on line {first}"
                    )
                lines[key.tag, key.value] = line
        super().flatten_mapping(node)
