"""What bash, zsh and fish need to complete the command line. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from usbplugin.commands.grammar import Argument, CommandLine


def bash(program: CommandLine) -> str:
    """A script for bash 4.4 or newer."""
    by_name = {command.name: command for command in program.commands}
    name = program.name
    lines = [
        f"# Completes {name} in bash.",
        f"_{name}() {{",
        "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}",
        '    local command="" words=""',
        "    # Readline takes --flag=value for three words.",
        '    if [[ $cur == "=" ]]; then cur=""',
        '    elif [[ $prev == "=" ]]; then prev=${COMP_WORDS[COMP_CWORD - 2]}; fi',
        "    ((COMP_CWORD > 1)) && command=${COMP_WORDS[1]}",
        '    case "$command $prev" in',
    ]
    for command in by_name.values():
        for argument in filter(_takes_a_value, command.arguments):
            patterns = "|".join(f'"{command.name} {flag}"' for flag in argument.flags)
            lines.append(f"    {patterns}) {_bash_values(argument)}; return ;;")
    lines += ["    esac", "    case $command in"]
    for command in by_name.values():
        positional = [a for a in command.arguments if not a.flags and a.choices]
        words = " ".join((*command.flags, *(c for a in positional for c in a.choices)))
        files = ""
        if command.takes_files:
            names = _mapfile("-f")
            files = f"[[ $cur == -* ]] || {{ compopt -o filenames; {names}; return; }}; "
        lines.append(f'    {command.name}) {files}words="{words}" ;;')
    all_words = _mapfile('-W "$words"')
    top = " ".join((*by_name, *program.flags))
    lines += [
        f'    "") words="{top}" ;;',
        "    *) return ;;",
        "    esac",
        f"    {all_words}",
        "}",
        f"complete -F _{name} {name}",
    ]
    return "\n".join(lines)


def zsh(program: CommandLine) -> str:
    """A script to be sourced, or to be put into ``$fpath`` as ``_usbplugin``."""
    name = program.name
    lines = [f"#compdef {name}", f"_{name}() {{", "    local -a commands=("]
    lines += [
        f"        {_quoted(f'{command.name}:{command.summary}')}" for command in program.commands
    ]
    lines += [
        "    )",
        "    if ((CURRENT == 2)); then",
        "        _describe command commands",
        f"        _arguments {' '.join(_zsh_arguments(program.arguments))}",
        "        return",
        "    fi",
        "    local command=$words[2]",
        "    shift words",
        "    ((CURRENT--))",
        "    case $command in",
    ]
    for command in program.commands:
        arguments = " \\\n            ".join(_zsh_arguments(command.arguments))
        lines.append(f"    {command.name}) _arguments {arguments} ;;")
    lines += [
        "    esac",
        "}",
        f'if [[ $funcstack[1] == _{name} ]]; then _{name} "$@"; else compdef _{name} {name}; fi',
    ]
    return "\n".join(lines)


def fish(program: CommandLine) -> str:
    """A script for fish 3 or newer."""
    begin = f"complete -c {program.name}"
    lines = [f"# Completes {program.name} in fish.", f"{begin} -f"]
    lines += [
        f"{begin} -n __fish_use_subcommand -a {command.name} -d {_fish_quoted(command.summary)}"
        for command in program.commands
    ]
    for argument in program.arguments:
        lines.append(f"{begin} -n __fish_use_subcommand{_fish_argument(argument)}")
    for command in program.commands:
        of_it = f'{begin} -n "__fish_seen_subcommand_from {command.name}"'
        lines += [f"{of_it}{_fish_argument(argument)}" for argument in command.arguments]
    return "\n".join(lines)


SHELLS: Mapping[str, Callable[[CommandLine], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
"""By the name that people know them by."""


def _takes_a_value(argument: Argument) -> bool:
    return bool(argument.flags and argument.value)


def _mapfile(what: str) -> str:
    return f'mapfile -t COMPREPLY < <(compgen {what} -- "$cur")'


def _bash_values(argument: Argument) -> str:
    if argument.choices:
        return _mapfile(f'-W "{" ".join(argument.choices)}"')
    if argument.takes_files or argument.takes_directories:
        return "compopt -o filenames; " + _mapfile("-f" if argument.takes_files else "-d")
    return "COMPREPLY=()"


def _zsh_arguments(arguments: Iterable[Argument]) -> Iterator[str]:
    for argument in arguments:
        action = ""
        if argument.choices:
            action = f"({' '.join(argument.choices)})"
        elif argument.takes_files:
            action = "_files"
        elif argument.takes_directories:
            action = "_files -/"
        value = f":{_zsh_plain(argument.value)}:{action}" if argument.value else ""
        text = _zsh_plain(argument.help)
        for flag in argument.flags:
            yield _quoted(f"*{flag}{'=' if value and flag.startswith('--') else ''}[{text}]{value}")
        if not argument.flags:
            yield _quoted(f"::{value[1:]}" if value else "::")


def _zsh_plain(text: str) -> str:
    return "".join(f"\\{c}" if c in "[]:\\" else c for c in text)


def _fish_argument(argument: Argument) -> str:
    parts = [
        f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in argument.flags
    ]
    if argument.choices:
        parts += ["-x"] if argument.flags else []
        parts.append(f'-a "{" ".join(argument.choices)}"')
    elif argument.takes_files:
        parts.append("-r -F" if argument.flags else "-F")
    elif argument.takes_directories:
        parts.append('-x -a "(__fish_complete_directories)"')
    elif argument.value and argument.flags:
        parts.append("-x")
    return " ".join(("", *parts, f"-d {_fish_quoted(argument.help)}"))


def _quoted(text: str) -> str:
    escaped = text.replace("'", "'\\''")
    return f"'{escaped}'"


def _fish_quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
