"""Break the program in many small ways, one at a time, and see which of them no test notices."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tomllib
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build/mutants"
TREE = WORK / "tree"
TOOL = WORK / "env/bin"
ACCEPTED = Path(__file__).parent / "accepted.toml"

# What is mutated, a room or a module, and the tests that hold its behaviour, the fastest first.
ROOMS = {
    "usbplugin/inventory": [
        "tests/inventory/test_health.py",
        "tests/inventory/test_inventory.py",
        "tests/inventory/test_selector.py",
        "tests/inventory/test_properties.py",
    ],
    "usbplugin/custody": [
        "tests/custody/test_links.py",
        "tests/custody/test_state.py",
        "tests/custody/test_safekeeping.py",
        "tests/custody/test_cdi_schema.py",
        "tests/fuzz/test_states.py",
    ],
    # Through real sockets, half a minute for each mutant that survives.
    "usbplugin/custody/holders.py": ["tests/custody/test_custody.py"],
    "usbplugin/discovery/identity.py": ["tests/discovery/test_identity.py"],
    "usbplugin/deviceplugin/allocation.py": ["tests/deviceplugin/test_allocation.py"],
    "usbplugin/deviceplugin/preference.py": ["tests/deviceplugin/test_preference.py"],
}
# Annotations are no code, so that what is done to their bars shows nothing. And of what an
# operator may be replaced with, the opposite and the boundary are enough to see whether a test
# looks at it; most others only end in a TypeError.
OPERATORS_LEFT_OUT = [
    r"core/ReplaceBinaryOperator_(?!Add_Sub|Sub_Add|Mul_Div|Div_Mul).*",
    r"core/ReplaceComparisonOperator_(?!Eq_NotEq|NotEq_Eq|Is_IsNot|IsNot_Is|In_NotIn|NotIn_In"
    r"|Lt_LtE|Lt_GtE|LtE_Lt|LtE_Gt|Gt_GtE|Gt_LtE|GtE_Gt|GtE_Lt).*",
    r"core/ReplaceUnaryOperator_(?!USub_UAdd|Delete_Not).*",
    r"core/(VariableInserter|VariableReplacer|ExceptionReplacer)",
]
TIMEOUT = 120.0
"""Seconds for the tests of one mutant; one that loops without end is killed by it."""
PROGRESS_INTERVAL = 15.0


@dataclass(frozen=True, order=True)
class Mutant:
    """A change, known by what it changes, and not by where that is."""

    module: str
    line: str
    operator: str


@dataclass
class Findings:
    """What became of a module's mutants."""

    mutants: int
    survivors: list[tuple[Mutant, str]]
    """With the difference that each makes."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("modules", nargs="*", help="modules or rooms, by their paths; default: all")
    chosen = modules_of(parser.parse_args().modules)
    accepted = read_accepted()
    table = [["module", "mutants", "killed", "survived", "accepted"]]
    unexpected, idle = [], []
    for module, tests in chosen:
        findings = examine(module, tests)
        found = [mutant for mutant, _ in findings.survivors]
        spared = sum(is_accepted(mutant, accepted) for mutant in found)
        killed = findings.mutants - len(found)
        figures = (findings.mutants, killed, len(found), spared)
        table.append([module, *map(str, figures)])
        unexpected += [(m, d) for m, d in findings.survivors if not is_accepted(m, accepted)]
        idle += [one for one in accepted if one.module == module and one not in found]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
    for mutant, diff in unexpected:
        say(f"\nSURVIVED {mutant.operator} in {mutant.module}\n{diff}")
    for mutant in idle:
        say(f"accepted, and does not survive: {mutant.operator} of {mutant.line!r}")
    say(f"\n{len(unexpected)} survivors that are not accepted")
    return 1 if unexpected else 0


def modules_of(wanted: list[str]) -> list[tuple[str, list[str]]]:
    """The modules of all rooms that are wanted, with the tests of the room."""
    found = {
        str(path.relative_to(ROOT)): tests  # a module's own tests in place of its room's
        for room, tests in ROOMS.items()
        for path in sorted((ROOT / room).glob("*.py") if (ROOT / room).is_dir() else [ROOT / room])
        if path.name != "__init__.py"
    }
    chosen = [
        one for one in found.items() if not wanted or any(one[0].startswith(w) for w in wanted)
    ]
    if not chosen:
        sys.exit(f"none of {', '.join(wanted)} is mutated; these are: {', '.join(ROOMS)}")
    return chosen


def is_accepted(mutant: Mutant, accepted: set[Mutant]) -> bool:
    return mutant in accepted or replace(mutant, module="") in accepted


def read_accepted() -> set[Mutant]:
    entries = tomllib.loads(ACCEPTED.read_text("utf-8")).get("survivor", [])
    for entry in entries:
        if not entry["reason"]:
            sys.exit(f"{ACCEPTED}: {entry['line']!r} is accepted without a reason")
    return {
        Mutant(entry.get("module", ""), entry["line"], operator)
        for entry in entries
        for operator in entry["operators"]
    }


def examine(module: str, tests: list[str]) -> Findings:
    # A copy, so that neither the mutants nor a run that is cut short touch what is being worked on.
    shutil.rmtree(TREE, ignore_errors=True)
    for name in ("usbplugin", "tests"):
        shutil.copytree(ROOT / name, TREE / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, TREE)
    session = WORK / f"{module.replace('/', '.')}.sqlite"
    config = session.with_suffix(".toml")
    config.write_text(configuration(module, [one for one in tests if (ROOT / one).exists()]))
    session.unlink(missing_ok=True)
    tool("cosmic-ray", "init", str(config), str(session))
    tool("cr-filter-operators", str(session), str(config))
    total = len(work(session))
    say(f"{module}: {total} mutants")
    tool("cosmic-ray", "baseline", str(config))
    running = subprocess.Popen([TOOL / "cosmic-ray", "exec", config, session], cwd=TREE)
    try:
        while running.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                running.wait(PROGRESS_INTERVAL)
            done = sum(result is not None for _, result in work(session))
            say(f"{module}: {done} of {total}")
    finally:
        running.kill()
        running.wait()
    results = work(session)
    for _, result in results:
        if result is None or result["worker_outcome"] != "normal":
            sys.exit(f"{module}: not all mutants could be tried: {result}")
    source = (ROOT / module).read_text("utf-8").splitlines()
    survivors = []
    for item, result in results:
        if result is not None and result["test_outcome"] == "survived":
            (change,) = item["mutations"]
            line = source[change["start_pos"][0] - 1].strip()
            mutant = Mutant(module, line, change["operator_name"].removeprefix("core/"))
            survivors.append((mutant, result["diff"]))
    return Findings(total, survivors)


def configuration(module: str, tests: list[str]) -> str:
    python = Path(sys.executable).absolute()
    # In the order given, so that the fastest come first: most mutants fall at once.
    options = "-x -q -p no:cacheprovider --timeout 30 -o addopts=--import-mode=importlib"
    command = f"{python} -m pytest {options} {' '.join(tests)}"
    return f"""
[cosmic-ray]
module-path = {json.dumps(module)}
timeout = {TIMEOUT}
excluded-modules = []
test-command = {json.dumps(command)}

[cosmic-ray.distributor]
name = "local"

[cosmic-ray.filters.operators-filter]
exclude-operators = {json.dumps(OPERATORS_LEFT_OUT)}
"""


def work(session: Path) -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
    """The mutants that are to be tried, each with what became of it so far."""
    lines = tool("cosmic-ray", "dump", str(session)).splitlines()
    pairs = [json.loads(line) for line in lines]
    return [
        (item, result)
        for item, result in pairs
        if result is None or result["worker_outcome"] != "skipped"
    ]


def tool(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [TOOL / name, *arguments], cwd=TREE, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{name} {' '.join(arguments)}: {done.stdout}{done.stderr}")
    return done.stdout


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
