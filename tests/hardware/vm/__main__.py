"""Command line of the virtual machine."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from . import image, machine
from .errors import MachineError, MachineTimeoutError
from .packages import say

_CHECKOUT = Path(__file__).resolve().parents[3]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.hardware.vm",
        description="Run a command in a virtual machine with a real USB stack and udevd.",
        epilog="Exit status: the command's; 124 if it took too long, 125 if the machine failed.",
    )
    parser.add_argument("command", nargs="*", help="what to run in the checkout, after --")
    parser.add_argument("--shell", action="store_true", help="open a shell on this terminal")
    parser.add_argument(
        "--timeout", type=int, default=600, metavar="SECONDS", help="for the command (600)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=_CHECKOUT / "results/hardware",
        metavar="DIR",
        help="what the guest writes here survives it; logs too (results/hardware)",
    )
    options = parser.parse_args()
    if options.shell == bool(options.command):
        parser.error("give either a command or --shell")
    # Clean up as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    job = machine.Job(_CHECKOUT, options.command, options.timeout, options.output.resolve())
    try:
        with image.prepared() as ready:
            return machine.run(ready, job)
    except MachineTimeoutError as error:
        say(str(error))
        return 124
    except MachineError as error:
        say(str(error))
        return 125
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
