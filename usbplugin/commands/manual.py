"""Manual pages in the language of man(7). Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from usbplugin.commands.grammar import Argument, CommandLine


def page(program: CommandLine, version: str, command: str = "") -> str:
    """The page of the program, or of one of its commands.

    Raises:
        StopIteration: there is no such command.
    """
    about = program
    title = program.name
    if command:
        about = next(one for one in program.commands if one.name == command)
        title = f"{program.name}-{command}"
    lines = [
        f'.TH {title.upper()} 1 "" "{program.name} {version}"',
        ".SH NAME",
        f"{_plain(title)} \\- {_plain(_as_name(about.summary))}",
        ".SH SYNOPSIS",
        *_synopsis(program.name, about),
        ".SH DESCRIPTION",
        _plain(about.summary),
    ]
    if about.commands:
        lines.append(".SH COMMANDS")
        for one in about.commands:
            lines += [".TP", f".BR {_plain(program.name)}\\-{_plain(one.name)} (1)"]
            lines.append(_plain(one.summary))
    lines += [".SH OPTIONS", *_arguments(about.arguments), ".SH EXIT STATUS", ".nf"]
    _, _, codes = about.epilog.partition("\n")
    lines += [_plain(line) for line in codes.splitlines()]
    return "\n".join([*lines, ".fi"])


def _synopsis(program: str, about: CommandLine) -> Iterator[str]:
    name = program if about.commands else f"{program} {about.name}"
    yield f".B {_plain(name)}"
    if about.commands:
        yield ".I COMMAND"
    yield "[OPTION]..."
    for argument in about.arguments:
        if not argument.flags:
            yield f".RI [ {_plain(argument.value)} ]"


def _arguments(arguments: Iterable[Argument]) -> Iterator[str]:
    for argument in arguments:
        yield ".TP"
        if argument.flags:
            flags = ", ".join(argument.flags)
            yield f'.BI "{_plain(flags)}" " {_plain(argument.value)}"'
        else:
            yield f".I {_plain(argument.value)}"
        yield _plain(argument.help)


def _as_name(summary: str) -> str:
    """As a page's NAME has it: what apropos(1) finds."""
    return f"{summary[:1].lower()}{summary[1:]}".rstrip(".")


def _plain(text: str) -> str:
    """Text that means itself: no escapes, no requests, hyphens that can be copied."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    return f"\\&{text}" if text[:1] in {".", "'"} else text
