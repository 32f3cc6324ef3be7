"""The commands: parse, call, print. What they do is done elsewhere."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from usbplugin import __version__
from usbplugin.errors import ConfigError, UsbPluginError
from usbplugin.places import Places

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usbplugin.config import Config
    from usbplugin.discovery import Source
    from usbplugin.virtual.ttys import VirtualPort

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
    places = Places()
    _add(
        serve,
        "--kubelet-dir",
        "DIR",
        "the kubelet's device plugin directory",
        default=str(places.kubelet_dir),
    )
    _add(
        serve,
        "--link-dir",
        "DIR",
        "where stable links to device nodes are kept; must be the same path on the host",
        default=str(places.link_dir),
    )
    _add(
        serve,
        "--pod-resources",
        "FILE",
        "the kubelet's PodResources socket, to know who holds devices",
        default=str(places.pod_resources),
    )
    _add(
        serve,
        "--registry-dir",
        "DIR",
        "the kubelet's plugin registry, used with registration: watcher",
        default=str(places.registry_dir),
    )
    _add(serve, "--cdi-dir", "DIR", "where CDI specs are written", default=str(places.cdi_dir))
    _add(serve, "--log-level", None, "least severe records to log", "info", _LOG_LEVELS)
    _add(serve, "--log-format", None, "how log lines look", "text", _LOG_FORMATS)

    listing = _command(commands, "list", _list, "show the ports that are here, and their health")
    _add_config(listing)
    _add_sources(listing)
    listing.add_argument("--json", action="store_true", help="print JSON")

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
    parser.set_defaults(command=function)
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
    if choices and value not in choices:
        parser.error(f"{variable}={value}: expected one of {', '.join(choices)}")
    shown = f"default {default}; " if default else ""
    parser.add_argument(
        flag, metavar=metavar, default=value, choices=choices, help=f"{text} ({shown}${variable})"
    )


def _variable(flag: str) -> str:
    return "USBPLUGIN_" + flag.lstrip("-").upper().replace("-", "_")


def _add_config(parser: argparse.ArgumentParser) -> None:
    _add(parser, "--config", "FILE", "the configuration; without one, all is usbplugin/serial")


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
        default=_default_udev(parser),
        help=f"discover real USB devices (default on Linux; ${_variable('--udev')}=true|false)",
    )


def _default_udev(parser: argparse.ArgumentParser) -> bool:
    value = os.environ.get(_variable("--udev"), "").lower()
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if value and value not in known:
        parser.error(f"{_variable('--udev')}={value}: expected true or false")
    return known.get(value, sys.platform == "linux")


def _config(options: argparse.Namespace) -> Config:
    from usbplugin.config import Config, load

    return load(Path(options.config)) if options.config else Config()


def _sources(options: argparse.Namespace, config: Config) -> list[Source]:
    from usbplugin.discovery import DirectorySource

    directories = options.device_dir
    if directories is None:
        value = os.environ.get(_variable("--device-dir"), "")
        directories = [directory for directory in value.split(os.pathsep) if directory]
    sources: list[Source] = [DirectorySource(Path(directory)) for directory in directories]
    if options.udev:
        # Only here: libudev exists on Linux alone.
        from usbplugin.discovery.udev import UdevSource

        sources.insert(0, UdevSource(config.nodes))
    if not sources:
        raise UsbPluginError("nothing to discover: --no-udev needs at least one --device-dir")
    return sources


def _serve(options: argparse.Namespace) -> int:
    from usbplugin.agent import Agent
    from usbplugin.telemetry import logs

    logs.configure(options.log_level, logs.LogFormat(options.log_format))
    config = _config(options)
    logger = logs.logger(__name__)
    for warning in config.warnings():
        logger.warning("configuration is odd", extra=logs.fields(warning=warning))
    sources = _sources(options, config)
    logger.info(
        "starting",
        extra=logs.fields(
            version=__version__,
            config=options.config or "defaults",
            resources=[resource.name for resource in config.resources],
            kubelet=options.kubelet_dir,
        ),
    )

    places = Places(
        kubelet_dir=Path(options.kubelet_dir),
        registry_dir=Path(options.registry_dir),
        pod_resources=Path(options.pod_resources),
        link_dir=Path(options.link_dir),
        cdi_dir=Path(options.cdi_dir),
    )
    config_file = Path(options.config) if options.config else None

    async def run() -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        await Agent(config, sources, places, config_file).run(stopping)

    asyncio.run(run())
    logger.info("stopped")
    return 0


def _list(options: argparse.Namespace) -> int:
    from usbplugin.listing import scan, table

    config = _config(options)
    rows = scan(_sources(options, config), config.rules())
    if options.json:
        print(json.dumps(rows, indent=2))
    elif rows:
        print(table(rows))
    else:
        print("No serial ports found. Is the device plugged in, and its driver loaded? See dmesg.")
    return 0


def _check(options: argparse.Namespace) -> int:
    from usbplugin.listing import scan, table

    options.config = options.file or options.config
    config = _config(options)
    for warning in config.warnings():
        print(f"warning: {warning}", file=sys.stderr)
    names = ", ".join(resource.name for resource in config.resources)
    print(f"{options.config or 'defaults'}: valid; resources: {names}\n")
    rows = scan(_sources(options, config), config.rules())
    print(table(rows) if rows else "No serial ports are here now.")
    return 0


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


def _virtual(options: argparse.Namespace) -> int:
    from usbplugin.virtual.control import Command, Plug, Status, Unplug, control

    directory = Path(options.dir)
    command: Command | None = None
    if options.unplug is not None:
        command = Unplug(options.unplug)
    elif options.plug is not None:
        command = Plug(options.plug, options.rename)
    elif options.status:
        command = Status()
    if command is None:
        return _run_bus(options, directory)
    _print_virtual_ports(control(directory, command))
    return 0


def _run_bus(options: argparse.Namespace, directory: Path) -> int:
    from usbplugin.virtual.control import ControlServer
    from usbplugin.virtual.ttys import Descriptors, Peer, VirtualBus

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with VirtualBus(directory) as bus, ControlServer(bus):
        for index in range(options.count):
            descriptors = Descriptors(
                vendor_id=options.vendor,
                product_id=options.product,
                serial=f"{options.serial}-{index}",
                manufacturer="usbplugin",
                product="virtual tty",
                location=f"virtual-{index + 1}",
            )
            bus.plug(
                f"tty{options.kind}{index}",
                descriptors,
                peer=Peer(options.peer),
                interval=options.interval,
            )
        _print_virtual_ports(bus.ports())
        print(
            f"\nDiscover them:  usbplugin list --no-udev --device-dir {directory}"
            f"\nPull one out:   usbplugin virtual --dir {directory} --unplug tty{options.kind}0"
            f"\nPlug it in:     usbplugin virtual --dir {directory} --plug tty{options.kind}0"
            "\nCtrl-C ends it all.",
            flush=True,
        )
        with suppress(KeyboardInterrupt):
            bus.wait()
    return 0


def _print_virtual_ports(ports: Sequence[VirtualPort]) -> None:
    from usbplugin.discovery.port import printable

    for port in ports:
        serial = printable(port.descriptors.serial.encode())
        where = f"{port.path} -> {port.node}" if port.plugged else "unplugged"
        peer = port.peer_path or port.peer.value
        print(f"{port.name:<10} {where:<45} serial {serial}, peer {peer}")


def _demo(options: argparse.Namespace) -> int:
    from usbplugin.virtual.demo import tell

    return 0 if asyncio.run(tell(verbose=options.verbose)) else 1


if __name__ == "__main__":
    sys.exit(main())
