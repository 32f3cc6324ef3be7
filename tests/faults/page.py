"""Puts what came of a campaign into the page that tells of it: ``page.py faults.json page.md``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.faults import campaign  # noqa: F401 -- fills the catalogue
from tests.faults.catalogue import CATALOGUE

BEGIN, END = "<!-- measured: make soak -->", "<!-- end of what is measured -->"


def table(results: dict[str, Any]) -> str:
    """As Markdown; one row for each fault that was done."""
    rows = [
        ("fault", "times", "median", "slowest", "bound", "what the bound is made of"),
        ("---", "--:", "--:", "--:", "--:", "---"),
    ]
    rows += [
        (
            fault.name,
            str(tally["times"]),
            f"{tally['median']:.2f} s",
            f"{tally['slowest']:.2f} s",
            f"{fault.within:g} s",
            fault.why,
        )
        for fault in CATALOGUE
        if (tally := results["faults"].get(fault.name))
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def summary(results: dict[str, Any]) -> str:
    """What was done in all, and what the longest life of the process used at both of its ends."""
    count = sum(tally["times"] for tally in results["faults"].values())
    # The first reading comes before any fault: what is loaded on demand is not loaded yet.
    first, last = results["longest_life"][1], results["longest_life"][-1]
    uses = "; ".join(
        f"{what} {first[key]:.3g} at first, {last[key]:.3g} at last"
        for what, key in (
            ("threads", "threads"),
            ("file descriptors", "descriptors"),
            ("resident MiB", "memory"),
        )
    )
    return (
        f"{count} faults (seed {results['seed']}), {results['lives']} lives of the process, the"
        f" longest over {len(results['longest_life']) - 1} faults: {uses}."
    )


def main() -> int:
    source, page = map(Path, sys.argv[1:])
    results = json.loads(source.read_text())
    head, _, rest = page.read_text().partition(BEGIN)
    _, _, tail = rest.partition(END)
    page.write_text(f"{head}{BEGIN}\n\n{summary(results)}\n\n{table(results)}\n\n{END}{tail}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
