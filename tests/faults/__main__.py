"""``make faults`` and ``make soak``: do all kinds of harm to a node, and see what it takes."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import secrets
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.campaign import Campaign, chosen
from tests.faults.rig import Broken, rig
from tests.faults.volume import enter_namespace


async def _run(options: argparse.Namespace, log: Path) -> int:
    seed = secrets.randbelow(10**9) if options.seed is None else options.seed
    faults, skipped = chosen(options.only)
    if skipped and os.environ.get("USBPLUGIN_REQUIRE_ALL") == "1":
        print("USBPLUGIN_REQUIRE_ALL=1, and these cannot be done here:", *skipped, sep="\n  ")
        return 1
    print(f"seed {seed}: --seed {seed} repeats it; the plugin's log is {log}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="up-") as root:
        async with rig(Path(root), random.Random(seed), log, watched=options.watched) as node:
            campaign = Campaign(node, seed, faults)
            try:
                await campaign.run(options.seconds)
            except Broken as error:
                print(f"\nBROKEN after {campaign.count} faults (seed {seed}): {error}")
                return 1
            finally:
                print(campaign.table(), flush=True)
                campaign.write(options.output)
    for reason in skipped:
        print(f"not done: {reason}")
    seconds = time.monotonic() - began
    print(f"\n{campaign.count} faults in {seconds:.0f} s, {len(campaign.lives)} lives: all is well")
    return 0


def main() -> int:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    parser = argparse.ArgumentParser(prog="tests.faults", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=0, help="how long; every fault happens once in any case"
    )
    parser.add_argument("--seed", type=int, help="repeat the run that printed it")
    parser.add_argument("--only", default="", metavar="TEXT", help="faults with TEXT in the name")
    parser.add_argument(
        "--watched", action="store_true", help="registered by the kubelet's plugin watcher"
    )
    parser.add_argument("--output", type=Path, default=Path("results/faults/faults.json"))
    options = parser.parse_args()
    enter_namespace()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    log = options.output.with_name("serve.log")
    log.write_bytes(b"")
    return asyncio.run(_run(options, log))


if __name__ == "__main__":
    sys.exit(main())
