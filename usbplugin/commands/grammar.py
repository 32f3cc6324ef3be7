"""The program's commands and flags as plain values, read from the parser that parses them.

What describes the command line to others (a shell, a manual page) is made from these, so that it
cannot say anything else than ``--help``.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Argument:
    """A flag, or an argument without one."""

    flags: tuple[str, ...]
    """``--config``, ``-f``...; none if it is known by its place."""
    value: str
    """What stands for its value in texts, such as ``FILE``; empty if it takes none."""
    help: str
    """As ``--help`` shows it, on one line."""
    choices: tuple[str, ...]
    """All values that it takes; none if it takes others too."""

    @property
    def takes_files(self) -> bool:
        """Whether its value is a path of a file."""
        return self.value == "FILE"

    @property
    def takes_directories(self) -> bool:
        """Whether its value is a path of a directory."""
        return self.value == "DIR"


@dataclass(frozen=True, slots=True)
class CommandLine:
    """The program, or one of its commands."""

    name: str
    summary: str
    arguments: tuple[Argument, ...]
    commands: tuple[CommandLine, ...] = ()
    epilog: str = ""

    @property
    def flags(self) -> tuple[str, ...]:
        """All its flags, in the order of ``--help``."""
        return tuple(flag for argument in self.arguments for flag in argument.flags)

    @property
    def takes_files(self) -> bool:
        """Whether it takes a file without a flag."""
        return any(a.takes_files for a in self.arguments if not a.flags)


def grammar_of(parser: argparse.ArgumentParser) -> CommandLine:
    """The whole program, commands included."""
    arguments, commands = [], []
    # argparse offers no public way to what it knows of arguments; their own attributes are public.
    for action in parser._actions:  # noqa: SLF001
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            commands += [grammar_of(subparser) for subparser in action.choices.values()]
        elif action.help is not argparse.SUPPRESS:
            arguments.append(_argument(parser, action))
    return CommandLine(
        name=parser.prog.rpartition(" ")[2],
        summary=parser.description or "",
        arguments=tuple(arguments),
        commands=tuple(commands),
        epilog=parser.epilog or "",
    )


def _argument(parser: argparse.ArgumentParser, action: argparse.Action) -> Argument:
    choices = tuple(map(str, action.choices or ()))
    value = ""
    if action.nargs != 0:
        name = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
        value = f"{{{','.join(choices)}}}" if choices and not action.metavar else name
    text = parser._get_formatter()._expand_help(action) if action.help else ""  # noqa: SLF001
    return Argument(tuple(action.option_strings), value, " ".join(text.split()), choices)
