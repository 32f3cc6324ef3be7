from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

from benchmarks import idle, latency, memory, preference, process, storm
from benchmarks.report import Report
from usbplugin.telemetry import logs


async def _measure(report: Report, options: argparse.Namespace) -> None:
    await latency.measure(report, options.rounds)
    preference.measure(report, options.choices)
    await storm.measure(report, options.storms)
    await process.measure(report, options.starts, options.restarts)
    await idle.measure(report, options.idle_seconds)
    await memory.measure(report, options.facts)


def main() -> int:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    parser = argparse.ArgumentParser(
        prog="make bench", description="Measure usbplugin; exit 1 if any bar is missed."
    )
    parser.add_argument(
        "--rounds", type=int, default=1000, help="rounds per latency (default 1000)"
    )
    parser.add_argument(
        "--choices", type=int, default=50, help="choices of devices, of each size (default 50)"
    )
    parser.add_argument("--storms", type=int, default=5, help="storms of events (default 5)")
    parser.add_argument(
        "--facts",
        type=int,
        default=1_000_000,
        help="facts over which to watch its memory (default a million)",
    )
    parser.add_argument("--starts", type=int, default=7, help="process starts (default 7)")
    parser.add_argument("--restarts", type=int, default=20, help="kubelet restarts (default 20)")
    parser.add_argument(
        "--idle-seconds", type=float, default=60, help="seconds to watch it idle (default 60)"
    )
    parser.add_argument("--output", type=Path, default=Path("results/bench.json"))
    options = parser.parse_args()
    report = Report()
    with Path(os.devnull).open("w") as nowhere:
        logs.configure("info", logs.LogFormat.TEXT, nowhere)
        asyncio.run(_measure(report, options))
    report.write(options.output)
    print(f"\nwritten to {options.output}")
    return 0 if report.holds else 1


if __name__ == "__main__":
    sys.exit(main())
