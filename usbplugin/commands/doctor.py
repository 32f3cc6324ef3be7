"""``usbplugin doctor``: what is wrong with this node, and how to mend it."""

from __future__ import annotations

import json
import sys
import textwrap
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from usbplugin.commands import flags
from usbplugin.commands.command import Command
from usbplugin.commands.screen import Screen
from usbplugin.errors import DiscoveryError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from usbplugin.discovery import Source
    from usbplugin.doctor import Finding

_WIDTH = 100
_LEAST = 40


def _add_flags(parser: argparse.ArgumentParser) -> None:
    flags.add_config(parser)
    flags.add_sources(parser)
    flags.add_places(parser)
    flags.add_front(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _run(options: argparse.Namespace) -> int:
    from usbplugin.commands.wiring import config_of, front_of, places_of, sources_of
    from usbplugin.doctor import Grade, Node, examine
    from usbplugin.telemetry import logs

    logs.configure("error", logs.LogFormat.TEXT)
    config = front_of(options)(config_of(options))
    sources: list[Source] = []
    with suppress(DiscoveryError):  # no libudev: one of the checks tells
        sources = sources_of(options, config)
    findings = examine(Node(config, places_of(options), sources))
    if options.json:
        print(json.dumps([document(name, finding) for name, finding in findings.items()], indent=2))
    else:
        print(report(findings, Screen(sys.stdout).width))
    return int(any(finding.grade is Grade.FAIL for finding in findings.values()))


def document(name: str, finding: Finding) -> dict[str, str]:
    """A finding for programs."""
    return {
        "check": name,
        "grade": finding.grade.value,
        "found": finding.found,
        "remedy": finding.remedy,
    }


def report(findings: Mapping[str, Finding], columns: int | None = None) -> str:
    """All findings for people, on a terminal with so many columns."""
    from usbplugin.doctor import Grade

    lines = []
    width = min(_WIDTH, columns or _WIDTH)
    column = max(map(len, findings)) + 8
    # Two columns where the second one has room for some words, else one below the other.
    column = column if width - column >= _LEAST else 6
    for name, finding in findings.items():
        begin = f"{finding.grade.value:<4}  {name}".ljust(column)
        if len(begin) > column:
            lines.append(begin)
            begin = " " * column
        lines += textwrap.wrap(
            finding.found,
            width,
            initial_indent=begin,
            subsequent_indent=" " * column,
            break_on_hyphens=False,
        )
        lines += textwrap.wrap(
            finding.remedy,
            width,
            initial_indent=" " * column + "-> ",
            subsequent_indent=" " * (column + 3),
            break_on_hyphens=False,
        )
    counts = Counter(finding.grade for finding in findings.values())
    total = ", ".join(f"{counts[grade]} {grade.value}" for grade in Grade)
    return "\n".join([*lines, "", total])


COMMAND = Command(
    "doctor", "find out what is wrong with this node, and how to fix it", _add_flags, _run
)
