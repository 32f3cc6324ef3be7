"""No decision hangs on the wall clock, which may jump: all that is waited for is monotonic."""

from __future__ import annotations

import ast
from pathlib import Path

import usbplugin

PACKAGE = Path(usbplugin.__file__).parent

# What people read may say what time it is.
FOR_PEOPLE = {"status", "telemetry", "doctor"}
WALL_CLOCK = {"time", "time_ns", "ctime", "localtime", "gmtime", "now", "utcnow", "today"}


def wall_clock_calls(path: Path) -> list[str]:
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [
        f"{path.relative_to(PACKAGE)}:{call.lineno}: {ast.unparse(call.func)}"
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in WALL_CLOCK
        and ast.unparse(call.func.value) in {"time", "datetime", "datetime.datetime", "date"}
    ]


def test_only_what_people_read_tells_the_time() -> None:
    modules = [
        path
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] not in FOR_PEOPLE
    ]
    assert [call for path in modules for call in wall_clock_calls(path)] == []


def test_the_search_finds_what_it_looks_for(tmp_path: Path) -> None:
    found = PACKAGE / "telemetry/logs.py"
    assert "datetime.fromtimestamp" in found.read_text()
    assert [call for path in PACKAGE.rglob("*.py") for call in wall_clock_calls(path)]
