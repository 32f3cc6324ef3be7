"""Says in an operator's words why a text is not YAML, where libyaml speaks of tokens and nodes."""

from __future__ import annotations

import yaml

from usbplugin.config.yaml import Place

_INDENTATION = "is it indented like its neighbours, and does a text with ': ' or ' #' have quotes?"
_NEEDS_QUOTES = "a value that begins with {!r} needs quotes"
_NOT_CLOSED = "the {} that begins on line {} is not closed: expected ',' or '{}' here"


def explain_syntax(error: yaml.YAMLError | RecursionError, text: bytes) -> str:
    """What is wrong, where, and what may mend it; one line."""
    if isinstance(error, RecursionError):
        return "not valid YAML: it is nested too deeply"
    if isinstance(error, yaml.reader.ReaderError):
        return _unreadable(error, text)
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f"not valid YAML: {' '.join(str(error).split())}"
    lines = text.decode("utf-8", "replace").removeprefix("\ufeff").splitlines()
    problem, mark = _problem(error, lines)
    return f"{Place.of(mark)}: not valid YAML: {problem}"


def _unreadable(error: yaml.reader.ReaderError, text: bytes) -> str:
    before = text[: error.position].decode("utf-8", "replace").split("\n")
    place = Place(len(before), len(before[-1]) + 1)
    if "control" in error.reason:
        return f"{place}: not valid YAML: a control character: remove it"
    return f"{place}: not valid YAML: this is not UTF-8 text: save the file as UTF-8"


def _problem(error: yaml.MarkedYAMLError, lines: list[str]) -> tuple[str, yaml.Mark]:
    """What is wrong, and where."""
    mark, context = error.problem_mark, error.context or ""
    assert mark is not None  # noqa: S101 -- who calls has looked
    start = error.context_mark or mark
    said = error.problem or ""
    if "while scanning an alias" in context or "while scanning an anchor" in context:
        return _NEEDS_QUOTES.format(_rest(lines, start)[:1]), start
    if "unexpected end of stream" in said and "flow" not in context:
        return f"the quote that begins on line {start.line + 1} is not closed", start
    return _at_the_mark(said, context, _rest(lines, mark), start), mark


def _at_the_mark(said: str, context: str, rest: str, start: yaml.Mark) -> str:
    if "cannot start any token" in said:
        return "a tab: indent with spaces" if rest[:1] == "\t" else _NEEDS_QUOTES.format(rest[:1])
    if said.startswith("found undefined alias"):
        return f"{_NEEDS_QUOTES.format('*')}, or the anchor it refers to is missing"
    for kind, name, end in (("flow mapping", "mapping", "}"), ("flow sequence", "list", "]")):
        if kind in context:
            return _NOT_CLOSED.format(name, start.line + 1, end)
    ours = (ours for theirs, ours in _SAYINGS.items() if theirs in said)
    return next(ours, f"{context} {said}".strip())


_SAYINGS = {
    "mapping values are not allowed": "a key cannot be here: " + _INDENTATION,
    "sequence entries are not allowed": "a list item cannot begin here: put it on a new line",
    "expected '-' indicator": "expected another '-' here, as the list above has: " + _INDENTATION,
    "did not find expected key": "expected a key here: " + _INDENTATION,
    "could not find expected ':'": "expected ': ' after the key on this line or the one above",
    "did not find expected node content": "expected a value here, or a ']' or '}' before",
    "tab character": "a tab: indent with spaces",
    "unknown escape character": r"a backslash in double quotes begins an escape: write \\, or use"
    " single quotes",
    "expected comment or line break": "expected nothing more on this line",
    "another document": "expected one document, found '---' and a second one",
    "unhashable key": "a list or mapping cannot be a key; is {{ ... }} a template that was not"
    " filled in?",
    "constructor for the tag": "a value that begins with '!' or is '=' needs quotes",
    "for merging": "expected a mapping after '<<'",
    "incompatible YAML": "expected YAML 1.1",
}
"""What libyaml says, and what we do."""


def _rest(lines: list[str], mark: yaml.Mark) -> str:
    """The line from a mark on."""
    return lines[mark.line][mark.column :] if mark.line < len(lines) else ""
