"""The commands: parse, call, print. What they do is done elsewhere."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from typing import TYPE_CHECKING

from usbplugin import __version__
from usbplugin.errors import ConfigError, UsbPluginError
from usbplugin.foundation.places import Places

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_CODES = """\
exit codes:
  0  done
  1  it did not work: the message says what, and what to do
  2  wrong usage, or a configuration that cannot be meant
"""

_LOG_LEVELS = ("debug", "info", "warning", "error")
_LOG_FORMATS = ("text", "json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    # gRPC's C core logs past Python's logging; what matters reaches us as errors.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    options = _parser().parse_args(arguments)
    _settle(options)
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


def _settle(options: argparse.Namespace) -> None:
    """What flags leave open, the environment and the machine decide."""
    # Only now, for what the environment says is none of the other commands' business, nor --help's.
    for name, choices in options.choices.items():
        if getattr(options, name) not in choices:  # a flag's value has been looked at
            variable = _variable(name)
            options.complain(
                f"{variable}={os.environ[variable]}: expected one of {', '.join(choices)}"
            )
    if "udev" not in options:
        return
    flags = (options.config, options.device_dir, options.udev)
    # Who says where to look means to look there, and not to ask a daemon that looks elsewhere.
    options.direct = options.direct or any(flag is not None for flag in flags)
    options.config = options.config or os.environ.get(_variable("--config"))
    if options.udev is None:
        options.udev = _default_udev(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="usbplugin",
        description="A Kubernetes device plugin for USB serial ports.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"usbplugin {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = _command(commands, "serve", _serve, "run the device plugin on this node")
    _add_config(serve)
    _add_sources(serve)
    _add_places(serve)
    _add(
        serve,
        "--http-address",
        "HOST:PORT",
        "where to serve metrics, health and a status page, e.g. :9808; without it, only root on"
        " this node can ask",
    )
    _add(serve, "--log-level", None, "least severe records to log", "info", _LOG_LEVELS)
    _add(serve, "--log-format", None, "how log lines look", "text", _LOG_FORMATS)

    listing = _command(commands, "list", _list, "show the ports that are here, and their health")
    _add_config(listing)
    _add_sources(listing)
    _add_daemon(listing)
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.add_argument(
        "--watch", action="store_true", help="go on, and show changes as they happen"
    )

    events = _command(commands, "events", _events, "show what happened to devices, a line each")
    _add_config(events)
    _add_sources(events)
    _add_daemon(events)
    events.add_argument("--json", action="store_true", help="print JSON, an object on each line")
    events.add_argument(
        "--follow", "-f", action="store_true", help="go on, and show events as they happen"
    )

    doctor = _command(
        commands, "doctor", _doctor, "find out what is wrong with this node, and how to mend it"
    )
    _add_config(doctor)
    _add_sources(doctor)
    _add_places(doctor)
    doctor.add_argument("--json", action="store_true", help="print JSON")

    check = _command(
        commands, "check", _check, "validate a configuration, show what it would select here"
    )
    check.add_argument("file", nargs="?", metavar="FILE", help="the file (default: --config)")
    _add_config(check)
    _add_sources(check)

    virtual = _command(
        commands, "virtual", _virtual, "make virtual tty pairs, and play hotplug with them"
    )
    _add_virtual(virtual)

    demo = _command(
        commands, "demo", _demo, "show the whole job here, with no hardware and no cluster"
    )
    demo.add_argument("--verbose", action="store_true", help="show the plugin's log too")
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    function: object,
    summary: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=function, complain=parser.error, choices={})
    return parser


def _add(
    parser: argparse.ArgumentParser,
    flag: str,
    metavar: str | None,
    text: str,
    default: str | None = None,
    choices: tuple[str, ...] | None = None,
) -> None:
    """A flag that an environment variable can set too."""
    variable = _variable(flag)
    value = os.environ.get(variable) or default
    shown = f"default {default}; " if default else ""
    action = parser.add_argument(
        flag,
        metavar=metavar,
        default=value,
        type=str.lower if choices else str,
        choices=choices,
        help=f"{text} ({shown}${variable})",
    )
    if choices:
        parser.get_default("choices")[action.dest] = choices


def _variable(flag: str) -> str:
    return "USBPLUGIN_" + flag.lstrip("-").upper().replace("-", "_")


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"the configuration; without one, all is usbplugin/serial (${_variable('--config')})",
    )


def _add_link_dir(parser: argparse.ArgumentParser) -> None:
    _add(
        parser,
        "--link-dir",
        "DIR",
        "where stable links to device nodes are kept, and the daemon's socket is; must be the same"
        " path on the host",
        default=str(Places().link_dir),
    )


def _add_daemon(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--direct",
        action="store_true",
        help="look at the hardware even if a daemon runs here; implied by --config, --device-dir"
        " and --udev",
    )
    _add_link_dir(parser)


def _add_places(parser: argparse.ArgumentParser) -> None:
    places = Places()
    _add(
        parser,
        "--kubelet-dir",
        "DIR",
        "the kubelet's device plugin directory",
        default=str(places.kubelet_dir),
    )
    _add_link_dir(parser)
    _add(
        parser,
        "--pod-resources",
        "FILE",
        "the kubelet's PodResources socket, to know who holds devices",
        default=str(places.pod_resources),
    )
    _add(
        parser,
        "--own-pod",
        "NAMESPACE/NAME",
        "the pod this runs in: what the kubelet says of who holds devices is believed once it knows"
        " that pod",
    )
    _add(
        parser,
        "--registry-dir",
        "DIR",
        "the kubelet's plugin registry, used with registration: watcher",
        default=str(places.registry_dir),
    )
    _add(parser, "--cdi-dir", "DIR", "where CDI specs are written", default=str(places.cdi_dir))
    _add(
        parser,
        "--features-dir",
        "DIR",
        "Node Feature Discovery's features.d, used with nodeFeatures: true",
        default=str(places.features_dir),
    )


def _add_sources(parser: argparse.ArgumentParser) -> None:
    variable = _variable("--device-dir")
    parser.add_argument(
        "--device-dir",
        metavar="DIR",
        action="append",
        help="also discover ttyUSB* and ttyACM* entries of DIR; may be repeated"
        f" (${variable}, separated by '{os.pathsep}')",
    )
    parser.add_argument(
        "--udev",
        action=argparse.BooleanOptionalAction,
        help=f"discover real USB devices (default on Linux; ${_variable('--udev')}=true|false)",
    )
    parser.set_defaults(direct=False)


def _default_udev(options: argparse.Namespace) -> bool:
    variable = _variable("--udev")
    value = os.environ.get(variable, "")
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if value and value.lower() not in known:
        options.complain(f"{variable}={value}: expected true or false")
    return known.get(value.lower(), sys.platform == "linux")


def _add_virtual(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dir",
        metavar="DIR",
        default="/tmp/usbplugin-virtual",  # noqa: S108 -- a name that two shells can agree on
        help="the directory that plays the USB bus: give it to serve --device-dir"
        " (default %(default)s)",
    )
    make = parser.add_argument_group("make devices, until interrupted")
    make.add_argument("--count", type=int, default=1, metavar="N", help="how many (default 1)")
    make.add_argument(
        "--kind", choices=("USB", "ACM"), default="USB", help="ttyUSB* or ttyACM* (default USB)"
    )
    make.add_argument(
        "--peer",
        choices=("pair", "echo", "lines"),
        default="pair",
        help="who is at the far end: whoever opens DIR/peer-NAME, an echo, or a sensor that sends"
        " a JSON line now and then (default pair)",
    )
    make.add_argument(
        "--interval", type=float, default=1.0, metavar="S", help="seconds between two lines"
    )
    make.add_argument("--vendor", default="0403", metavar="ID", help="USB vendor ID")
    make.add_argument("--product", default="6001", metavar="ID", help="USB product ID")
    make.add_argument(
        "--serial", default="VIRTUAL", metavar="TEXT", help="serial numbers are TEXT-0, TEXT-1..."
    )
    play = parser.add_argument_group("play hotplug, from another shell")
    action = play.add_mutually_exclusive_group()
    action.add_argument("--unplug", metavar="NAME", help="pull a device out: --unplug ttyUSB0")
    action.add_argument("--plug", metavar="NAME", help="plug it in again: --plug ttyUSB0")
    action.add_argument("--status", action="store_true", help="show the devices")
    play.add_argument(
        "--as", dest="rename", default="", metavar="NAME", help="with --plug: under this name"
    )


def _serve(options: argparse.Namespace) -> int:
    from usbplugin.commands.serve import serve

    return serve(options)


def _list(options: argparse.Namespace) -> int:
    from usbplugin.commands.show import show_list

    return show_list(options)


def _events(options: argparse.Namespace) -> int:
    from usbplugin.commands.show import events

    return events(options)


def _check(options: argparse.Namespace) -> int:
    from usbplugin.commands.show import check

    return check(options)


def _doctor(options: argparse.Namespace) -> int:
    from usbplugin.commands.examine import doctor

    return doctor(options)


def _virtual(options: argparse.Namespace) -> int:
    from usbplugin.commands.virtual import virtual

    return virtual(options)


def _demo(options: argparse.Namespace) -> int:
    from usbplugin.virtual.demo import tell

    return 0 if asyncio.run(tell(verbose=options.verbose)) else 1


if __name__ == "__main__":
    sys.exit(main())
