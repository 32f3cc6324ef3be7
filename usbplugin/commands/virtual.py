"""``usbplugin virtual``: a USB bus of virtual ttys, played with from two shells."""

from __future__ import annotations

import re
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from usbplugin.commands.command import Command
from usbplugin.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from usbplugin.virtual.ttys import VirtualPort


def _add_flags(parser: argparse.ArgumentParser) -> None:
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


def _run(options: argparse.Namespace) -> int:
    """Be the bus, or tell the bus of another shell to plug and unplug."""
    from usbplugin.virtual import control

    directory = Path(options.dir)
    if options.rename and options.plug is None:
        raise ConfigError("--as: goes with --plug, to plug a device in under another name")
    command: control.Command | None = None
    if options.unplug is not None:
        command = control.Unplug(options.unplug)
    elif options.plug is not None:
        command = control.Plug(options.plug, options.rename)
    elif options.status:
        command = control.Status()
    if command is None:
        return _run_bus(options, directory)
    _print_ports(control.control(directory, command))
    return 0


def _run_bus(options: argparse.Namespace, directory: Path) -> int:
    from usbplugin.virtual.control import ControlServer
    from usbplugin.virtual.ttys import Descriptors, Peer, VirtualBus

    if options.count < 1:
        raise ConfigError(f"--count: expected 1 or more, found {options.count}")
    for flag, usb_id in (("--vendor", options.vendor), ("--product", options.product)):
        if not re.fullmatch("[0-9A-Fa-f]{4}", usb_id):
            raise ConfigError(f"{flag}: expected four hexadecimal digits, found {usb_id!r}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with VirtualBus(directory) as bus, ControlServer(bus):
        for index in range(options.count):
            descriptors = Descriptors(
                # As the kernel writes them, and selectors match them.
                vendor_id=options.vendor.lower(),
                product_id=options.product.lower(),
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
        _print_ports(bus.ports())
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


def _print_ports(ports: Sequence[VirtualPort]) -> None:
    from usbplugin.discovery.port import printable

    for port in ports:
        serial = printable(port.descriptors.serial.encode())
        where = f"{port.path} -> {port.node}" if port.plugged else "unplugged"
        peer = port.peer_path or port.peer.value
        print(f"{port.name:<10} {where:<45} serial {serial}, peer {peer}")


COMMAND = Command("virtual", "make virtual tty pairs, and play hotplug with them", _add_flags, _run)
