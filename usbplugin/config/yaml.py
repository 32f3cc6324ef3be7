"""Reads YAML that somebody wrote by hand: safely, and no key twice."""

from __future__ import annotations

import yaml

from usbplugin.errors import ConfigError


def read_yaml(text: bytes) -> object:
    """The document that ``text`` is; None if it is empty.

    Raises:
        ConfigError: it is none.
    """
    try:
        document: object = yaml.load(text, Loader=_Loader)  # noqa: S506 -- a safe loader
    except (yaml.YAMLError, RecursionError) as error:
        problem = str(error).replace('in "<byte string>", ', "in ")
        raise ConfigError(f"is not YAML: {' '.join(problem.split())}") from error
    except (ValueError, AttributeError, LookupError, TypeError) as error:
        # PyYAML trusts tags: what fails depends on how it goes about it.
        raise ConfigError(
            f"is not YAML: a value cannot be what it is said to be ({error})"
        ) from error
    return document


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc] # in C or not
    """Refuses a key that is there twice: YAML forbids it, and PyYAML lets the last one win."""

    def __init__(self, stream: bytes) -> None:
        super().__init__(stream)
        self._seen: set[int] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        # Of each mapping the first call comes before merge keys have added to it.
        if id(node) not in self._seen:
            self._seen.add(id(node))
            lines: dict[tuple[str, str], int] = {}
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    continue
                line = key.start_mark.line + 1
                if first := lines.get((key.tag, key.value)):
                    raise ConfigError(
                        f"line {line}: the key {key.value!r} is in line {first} already"
                    )
                lines[key.tag, key.value] = line
        super().flatten_mapping(node)
