"""``usbplugin completion`` and ``usbplugin man``: the command line, told to a shell and to man."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usbplugin.commands.command import Command

if TYPE_CHECKING:
    import argparse

_SHELLS = ("bash", "zsh", "fish")


def _add_completion_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=_SHELLS, help="the shell that the script is for")


def _complete(options: argparse.Namespace) -> int:
    from usbplugin.commands.grammar import grammar_of
    from usbplugin.commands.shells import SHELLS

    print(SHELLS[options.shell](grammar_of(options.program)))
    return 0


def _add_man_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "page", nargs="?", metavar="COMMAND", help="the command (default: the whole program)"
    )


def _man(options: argparse.Namespace) -> int:
    from usbplugin import __version__
    from usbplugin.commands.grammar import grammar_of
    from usbplugin.commands.manual import page

    program = grammar_of(options.program)
    names = [command.name for command in program.commands]
    if options.page and options.page not in names:
        options.complain(f"{options.page}: expected one of {', '.join(names)}")
    print(page(program, __version__, options.page or ""))
    return 0


COMPLETION = Command(
    "completion",
    "print the script with which a shell completes the command line",
    _add_completion_flags,
    _complete,
)
MAN = Command("man", "print a manual page, for man -l", _add_man_flags, _man)
