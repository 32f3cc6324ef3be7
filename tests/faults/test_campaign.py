"""The campaign itself: a few of its faults, so that it is known to work before hours of it."""

from __future__ import annotations

import random
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.faults import page
from tests.faults.campaign import Campaign, chosen
from tests.faults.catalogue import CATALOGUE
from tests.faults.rig import Broken, rig

pytestmark = pytest.mark.timeout(120)

A_FEW = (
    "kubelet restarted",
    "links led to other devices",
    "SIGKILL",
)


async def test_a_few_faults(tmp_path: Path) -> None:
    faults = [fault for fault in CATALOGUE if fault.name in A_FEW]
    assert len(faults) == len(A_FEW)
    with tempfile.TemporaryDirectory(prefix="up-") as root:
        async with rig(Path(root), random.Random(1), tmp_path / "log", watched=False) as node:
            campaign = Campaign(node, 1, faults)
            await campaign.run(0)
    assert campaign.count == len(A_FEW)
    assert len(campaign.lives) == 2
    campaign.write(tmp_path / "faults.json")
    assert all(name in campaign.table() for name in A_FEW)


async def test_a_lie_is_found_out(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="up-") as root:
        async with rig(Path(root), random.Random(1), tmp_path / "log", watched=False) as node:
            thing = next(
                thing for thing in node.things if not any(p.thing is thing for p in node.pods)
            )
            node.bus.unplug(thing.port.name if thing.port else "")  # the rig is not told
            await node.kubelet.wait_for(lambda: bool(node.lies()))
            with pytest.raises(Broken, match="is there, and not Healthy"):
                await node.until_true(within=0.1)


def test_every_fault_has_a_name_of_its_own_and_says_what_its_bound_is_made_of() -> None:
    assert len({fault.name for fault in CATALOGUE}) == len(CATALOGUE)
    assert all(fault.why and fault.within > 0 for fault in CATALOGUE)


def test_those_that_cannot_be_done_here_are_told_of() -> None:
    faults, skipped = chosen()
    assert len(faults) + len(skipped) == len(CATALOGUE)


PAGE = (Path(__file__).parents[2] / "docs/reliability.md").read_text()


def measured() -> dict[str, Any]:
    """The results that the page tells of, read back out of it."""
    text = PAGE.partition(page.BEGIN)[2].partition(page.END)[0]
    total = re.search(r"(\d+) faults \(seed (\d+)\) in (\d+) lives .* over (\d+) faults", text)
    uses = re.findall(r"from ([\d.]+) to ([\d.]+)", text)
    assert total
    count, seed, lives, length = map(int, total.groups())
    rows = re.findall(r"^\| (.+) \| (\d+) \| ([\d.]+) s \| ([\d.]+) s \|$", text, re.MULTILINE)
    faults = {
        name: {"times": int(times), "median": float(median), "slowest": float(slowest)}
        for name, times, median, slowest in rows
    }
    assert len(faults) == len(rows)
    assert sum(tally["times"] for tally in faults.values()) == count
    first, last = (
        dict(zip(("threads", "descriptors", "memory"), map(float, values), strict=True))
        for values in zip(*uses, strict=True)
    )
    life = [first, first, *[last] * (length - 1)]
    return {"seed": seed, "lives": lives, "longest_life": life, "faults": faults}


def test_the_page_tells_of_every_fault_and_within_which_bound_it_stayed() -> None:
    faults = measured()["faults"]
    assert set(faults) == {fault.name for fault in CATALOGUE}
    assert all(faults[fault.name]["slowest"] <= fault.within for fault in CATALOGUE)


def test_the_page_is_what_its_results_make() -> None:
    results = measured()
    assert (
        f"{page.BEGIN}\n\n{page.summary(results)}\n\n{page.tables(results)}\n\n{page.END}" in PAGE
    )


def test_the_page_says_once_what_a_bound_is_made_of() -> None:
    for fault in CATALOGUE:
        assert PAGE.count(page.heading(fault)) == 1
