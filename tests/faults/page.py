"""Puts what came of a campaign into the page that tells of it: ``page.py faults.json page.md``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.faults import campaign  # noqa: F401 -- fills the catalogue
from tests.faults.catalogue import CATALOGUE

if TYPE_CHECKING:
    from tests.faults.catalogue import Fault

BEGIN, END = "<!-- measured: make soak -->", "<!-- end of what is measured -->"


def tables(results: dict[str, Any]) -> str:
    """As Markdown: a table for each bound, headed by what it is made of; a row for each fault."""
    done: dict[str, list[Fault]] = {}
    for fault in CATALOGUE:
        if fault.name in results["faults"]:
            done.setdefault(heading(fault), []).append(fault)
    return "\n\n".join(
        f"{bound}\n\n{_table(faults, results['faults'])}" for bound, faults in done.items()
    )


def heading(fault: Fault) -> str:
    """What stands above the table that the fault is in."""
    return f"**Within {fault.within:g} s**: {fault.why}."


def _table(faults: list[Fault], tallies: dict[str, Any]) -> str:
    rows = [("fault", "times", "median", "slowest"), ("---", "--:", "--:", "--:")]
    for fault in faults:
        tally = tallies[fault.name]
        times, median, slowest = tally["times"], tally["median"], tally["slowest"]
        rows.append((fault.name, str(times), f"{median:.2f} s", f"{slowest:.2f} s"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def summary(results: dict[str, Any]) -> str:
    """What was done in all, and what the longest life of the process used at both of its ends."""
    count = sum(tally["times"] for tally in results["faults"].values())
    # The first reading comes before any fault: what is loaded on demand is not loaded yet.
    first, last = results["longest_life"][1], results["longest_life"][-1]
    threads, descriptors, memory = (
        f"from {first[key]:.3g} to {last[key]:.3g}" for key in ("threads", "descriptors", "memory")
    )
    return (
        f"{count} faults (seed {results['seed']}) in {results['lives']} lives of the process. In"
        f" the longest life, over {len(results['longest_life']) - 1} faults, the process went"
        f" {threads} threads, {descriptors} file descriptors and {memory} MiB of resident memory."
    )


def main() -> int:
    source, page = map(Path, sys.argv[1:])
    results = json.loads(source.read_text())
    head, _, rest = page.read_text().partition(BEGIN)
    _, _, tail = rest.partition(END)
    page.write_text(f"{head}{BEGIN}\n\n{summary(results)}\n\n{tables(results)}\n\n{END}{tail}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
