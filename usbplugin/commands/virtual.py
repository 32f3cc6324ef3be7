"""``usbplugin virtual``: a USB bus of virtual ttys, played with from two shells."""

from __future__ import annotations

import re
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from usbplugin.discovery.port import printable
from usbplugin.errors import ConfigError
from usbplugin.virtual.control import Command, ControlServer, Plug, Status, Unplug, control
from usbplugin.virtual.ttys import Descriptors, Peer, VirtualBus

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from usbplugin.virtual.ttys import VirtualPort


def virtual(options: argparse.Namespace) -> int:
    """Be the bus, or tell the bus of another shell to plug and unplug."""
    directory = Path(options.dir)
    if options.rename and options.plug is None:
        raise ConfigError("--as: goes with --plug, to plug a device in under another name")
    command: Command | None = None
    if options.unplug is not None:
        command = Unplug(options.unplug)
    elif options.plug is not None:
        command = Plug(options.plug, options.rename)
    elif options.status:
        command = Status()
    if command is None:
        return _run_bus(options, directory)
    _print_ports(control(directory, command))
    return 0


def _run_bus(options: argparse.Namespace, directory: Path) -> int:
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
    for port in ports:
        serial = printable(port.descriptors.serial.encode())
        where = f"{port.path} -> {port.node}" if port.plugged else "unplugged"
        peer = port.peer_path or port.peer.value
        print(f"{port.name:<10} {where:<45} serial {serial}, peer {peer}")
