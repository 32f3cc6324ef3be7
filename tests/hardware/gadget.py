"""USB serial devices made by the kernel's gadget framework: dummy_hcd and configfs.

dummy_hcd is a host controller with one port and the device controller on the other end of the
cable, so what is plugged in here is enumerated by the real USB core, drivers and udevd. A gadget's
whole state is in configfs: a process can plug in what another one defined. As a command
(``usbgadget`` in the machine's shell)::

    python -m tests.hardware.gadget plug meter --function acm --serial M1
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .events import TIMEOUT, Monitor, wait_until
from .line import Line
from .sysfs import Tty, ttys_of
from .udevd import Udevd

if TYPE_CHECKING:
    from collections.abc import Sequence

_GADGETS = Path("/sys/kernel/config/usb_gadget")
_CONTROLLERS = Path("/sys/class/udc")
_CONTROLLER = "dummy_udc."
_LANGUAGE = "strings/0x409"
_CONFIGURATION = "configs/c.1"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of serial device, by the host's driver."""

    function: str
    """The kernel's name for the gadget's function."""
    vendor_id: int
    product_id: int
    release: int
    """bcdDevice."""
    driver: str


KINDS = {
    "acm": Kind("acm", 0x2341, 0x0043, 0x0001, "cdc_acm"),
    # ftdi_sio reads the chip's type from bcdDevice; 6.00 is an FT232R. The chip puts two bytes of
    # status before each packet, and gser does not: send two more bytes through the gadget's side.
    "ftdi": Kind("gser", 0x0403, 0x6001, 0x0600, "ftdi_sio"),
    "simple": Kind("gser", 0x0FCF, 0x1008, 0x0100, "usb_serial_simple"),
    # The driver wants answers that gser does not give: the node is there, opening it gives EIO.
    "broken": Kind("gser", 0x10C4, 0xEA60, 0x0100, "cp210x"),
}

MAX_FUNCTIONS = 8
"""The kernel has so many serial functions (ttyGS0 to ttyGS7), over all gadgets."""


class UsbGadget:
    """A USB serial device, with one or several serial functions, that can be plugged in."""

    def __init__(self, directory: Path) -> None:
        """Take a gadget that exists; ``create`` makes one."""
        self._directory = directory
        self.name, _, port = directory.name.rpartition("@")
        self.port = int(port)
        """The port (dummy_hcd's number) it was last plugged into, or will be."""
        self._lines: list[Line] = []

    @classmethod
    def create(
        cls,
        name: str,
        *,
        port: int | None = None,
        functions: Sequence[str] = ("acm",),
        serial: bytes | None = b"S1",
        manufacturer: bytes | None = b"Maker",
        product: bytes | None = b"Serial Thing",
        vendor_id: int | None = None,
        product_id: int | None = None,
        release: int | None = None,
    ) -> UsbGadget:
        """Define a device without plugging it in.

        Identifiers default to those of the first function's kind. Descriptor strings are UTF-8 of
        at most 126 bytes and no zero byte, whatever else they hold. Invalid UTF-8 is accepted, but
        the kernel then refuses to answer for that string: the device looks as if it had none. So
        does None; with all three None the device does not even claim to have strings.
        """
        kinds = [KINDS[function] for function in functions]
        if port is None:
            port = min(set(_ports()) - {gadget.port for gadget in UsbGadget.all()}, default=None)
            if port is None:
                raise RuntimeError("every port has its gadget; remove one, or name a port")
        gadget = cls(_GADGETS / f"{name}@{port}")
        directory = gadget._directory
        directory.mkdir()
        try:
            for attribute, value, default in (
                ("idVendor", vendor_id, kinds[0].vendor_id),
                ("idProduct", product_id, kinds[0].product_id),
                ("bcdDevice", release, kinds[0].release),
                ("bcdUSB", None, 0x0200),
            ):
                (directory / attribute).write_text(hex(default if value is None else value))
            strings = {"serialnumber": serial, "manufacturer": manufacturer, "product": product}
            if any(value is not None for value in strings.values()):
                (directory / _LANGUAGE).mkdir()
            for attribute, string in strings.items():
                if string is not None:
                    (directory / _LANGUAGE / attribute).write_bytes(_attribute(string))
            (directory / _CONFIGURATION).mkdir()
            for index, kind in enumerate(kinds):
                _add_function(directory, kind, index)
        except (OSError, RuntimeError):
            gadget.remove()
            raise
        return gadget

    @staticmethod
    def all() -> list[UsbGadget]:
        """Return the gadgets that are defined, plugged in or not."""
        return [UsbGadget(directory) for directory in sorted(_GADGETS.iterdir())]

    @staticmethod
    def named(name: str) -> UsbGadget | None:
        """Find a gadget that is defined."""
        return next((gadget for gadget in UsbGadget.all() if gadget.name == name), None)

    @property
    def is_plugged(self) -> bool:
        return bool((self._directory / "UDC").read_text().strip())

    @property
    def device(self) -> Path:
        """The USB device's directory in sysfs (while it is plugged in)."""
        controller = Path(f"/sys/devices/platform/dummy_hcd.{self.port}")
        bus = next(controller.glob("usb[0-9]*")).name.removeprefix("usb")
        return controller / f"usb{bus}" / f"{bus}-1"

    @property
    def ttys(self) -> list[Tty]:
        """The ttys that are there now, in the order of the functions."""
        return ttys_of(self.device)

    @property
    def nodes(self) -> list[str]:
        """Paths of the device nodes, e.g. ``/dev/ttyACM0``, in the order of the functions."""
        return [tty.node for tty in self.ttys]

    @property
    def other_sides(self) -> list[str]:
        """The gadget's ends of the lines (``/dev/ttyGS0``), in the order of the functions."""
        return [
            f"/dev/ttyGS{(function / 'port_num').read_text().strip()}"
            for function in self._functions()
        ]

    def line(self, function: int = 0) -> Line:
        """Open the gadget's end of a line: what is written here arrives at the device node."""
        line = Line(self.other_sides[function])
        self._lines.append(line)
        return line

    def plug(self, *, port: int | None = None, wait: bool = True) -> list[str]:
        """Plug in; wait until all nodes are there and udevd, if running, is done with them.

        Another ``port`` than the last one moves the device. Without waiting, no node is returned.
        """
        port = self.port if port is None else port
        if port not in _ports():
            raise RuntimeError(f"there is no port {port}, only {_ports()}")
        try:
            (self._directory / "UDC").write_text(f"{_CONTROLLER}{port}")
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise RuntimeError(f"{self.name} or port {port} is in use") from error
        self.port = port
        return self.wait_ready() if wait else []

    def wait_ready(self, *, timeout: float = TIMEOUT) -> list[str]:
        """Wait as ``plug`` does, and return the nodes."""
        expected = len(self._functions())
        udevd = Udevd()

        def ready() -> bool:
            ttys = self.ttys
            return len(ttys) == expected and (
                not udevd.is_running or all(tty.is_initialized for tty in ttys)
            )

        wait_until(ready, f"{expected} ports of {self.name}, udevd done", timeout=timeout)
        return self.nodes

    def unplug(self, *, wait: bool = True) -> None:
        """Pull out; wait until the nodes are gone and udevd, if running, knows."""
        if not wait:
            self._unbind()
            return
        monitors = [Monitor("kernel")]
        if Udevd().is_running:
            monitors.append(Monitor("udev"))
        ttys = self.ttys
        self._unbind()
        for monitor in monitors:
            for tty in ttys:
                monitor.wait("remove", path=str(tty.path))

    def remove(self) -> None:
        """Undo ``create``, pulling the device out if need be. Closes the lines that were opened."""
        while self._lines:
            self._lines.pop().close()
        if not self._directory.exists():
            return
        if self.is_plugged:
            self.unplug()
        directory = self._directory
        for link in (directory / _CONFIGURATION).glob("*.*"):
            if link.is_symlink():
                link.unlink()
        for part in (
            *(directory / "configs").iterdir(),
            *self._functions(),
            *(directory / "strings").iterdir(),
            directory,
        ):
            part.rmdir()

    def _unbind(self) -> None:
        (self._directory / "UDC").write_text("\n")

    def _functions(self) -> list[Path]:
        functions = (self._directory / "functions").iterdir()
        return sorted(functions, key=lambda path: path.suffix)


def _add_function(directory: Path, kind: Kind, index: int) -> None:
    function = directory / "functions" / f"{kind.function}.{index}"
    try:
        function.mkdir()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        raise RuntimeError(
            f"there are {MAX_FUNCTIONS} serial functions, over all gadgets, and all are in use"
        ) from error
    (directory / _CONFIGURATION / function.name).symlink_to(function)


def _attribute(value: bytes) -> bytes:
    """Make configfs keep the value as it is: it drops one newline from the end."""
    return value + b"\n" if not value or value.endswith(b"\n") else value


def _ports() -> list[int]:
    found = _CONTROLLERS.glob(f"{_CONTROLLER}*")
    return sorted(int(path.name.removeprefix(_CONTROLLER)) for path in found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "plug":
            _plug(options)
        elif options.command == "unplug":
            _unplug(options)
        else:
            _list()
    except (RuntimeError, OSError, AssertionError) as error:
        sys.stderr.write(f"usbgadget: {error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="usbgadget", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)

    plug = commands.add_parser("plug", help="plug in a device; one that was pulled out is the same")
    plug.add_argument("name", help="how you call it, here and in unplug", type=_name)
    plug.add_argument(
        "--function",
        action="append",
        choices=sorted(KINDS),
        help="what it is (acm); may be given several times: a device with several ports",
    )
    for string in ("serial", "manufacturer", "product"):
        plug.add_argument(f"--{string}", type=os.fsencode, help=f"its {string} string")
    for number in ("vendor-id", "product-id", "release"):
        plug.add_argument(f"--{number}", type=_hexadecimal, metavar="HEX")
    plug.add_argument("--port", type=int, help="where to plug it in (the first free one)")

    unplug = commands.add_parser("unplug", help="pull out a device")
    unplug.add_argument("name", type=_name)
    unplug.add_argument("--forget", action="store_true", help="and forget what it was")

    commands.add_parser("list", help="show the devices, plugged in or not")
    return parser


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,30}", text):
        raise argparse.ArgumentTypeError(f"not a name of letters, digits, '_', '.', '-': {text}")
    return text


def _hexadecimal(text: str) -> int:
    return int(text, 16)


def _plug(options: argparse.Namespace) -> None:
    attributes = {
        key: value
        for key in ("serial", "manufacturer", "product", "vendor_id", "product_id", "release")
        if (value := getattr(options, key)) is not None
    }
    if options.function:
        attributes["functions"] = options.function
    gadget = UsbGadget.named(options.name)
    if gadget is not None and attributes:
        gadget.remove()
        attributes.setdefault("port", gadget.port)
        gadget = None
    if options.port is not None:
        attributes["port"] = options.port
    if gadget is None:
        gadget = UsbGadget.create(options.name, **attributes)
    sys.stdout.write("".join(f"{node}\n" for node in gadget.plug(port=options.port)))


def _unplug(options: argparse.Namespace) -> None:
    gadget = UsbGadget.named(options.name)
    if gadget is None:
        raise RuntimeError(f"there is no device {options.name}; usbgadget list shows all")
    if options.forget:
        gadget.remove()
    elif gadget.is_plugged:
        gadget.unplug()


def _list() -> None:
    for gadget in UsbGadget.all():
        sides = ", ".join(gadget.other_sides)
        nodes = ", ".join(gadget.nodes) if gadget.is_plugged else "unplugged"
        sys.stdout.write(f"{gadget.name}: port {gadget.port}, {nodes}, other side {sides}\n")


if __name__ == "__main__":
    sys.exit(main())
