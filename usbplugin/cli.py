"""The entry: joins the commands to one program. What a command does is in its own module."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from usbplugin import __version__
from usbplugin.commands import COMMANDS
from usbplugin.commands.flags import settle
from usbplugin.errors import ConfigError, UsbPluginError

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_CODES = """\
exit codes:
  0    done; or ended by Ctrl-C or SIGTERM, where that is how one leaves
       (serve, virtual, --watch, --follow)
  1    it failed: the message says why, and what to do
  2    wrong usage, or a configuration that makes no sense
  130  interrupted by Ctrl-C before it was done
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    # gRPC's C core logs past Python's logging; what matters reaches us as errors.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    options, unknown = build_parser().parse_known_args(arguments)
    if unknown:
        # argparse would show how to use the program, and not the command that was called.
        options.complain(f"unknown: {' '.join(unknown)}")
    settle(options)
    try:
        code = options.command(options)
    except ConfigError as error:
        print(f"usbplugin: {error}", file=sys.stderr)
        return 2
    except UsbPluginError as error:
        print(f"usbplugin: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (head, less); nothing is left to be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return int(code)


def build_parser() -> argparse.ArgumentParser:
    """The whole program's flags, all commands included."""
    parser = argparse.ArgumentParser(
        prog="usbplugin",
        description="A Kubernetes device plugin for USB serial ports.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"usbplugin {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        subparser = subparsers.add_parser(
            command.name,
            help=command.summary,
            description=f"{command.summary[0].upper()}{command.summary[1:]}.",
            epilog=EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        subparser.set_defaults(
            command=command.run, complain=subparser.error, choices={}, program=parser
        )
        command.add_flags(subparser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
