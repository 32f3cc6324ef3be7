"""What is really plugged in where, and the kernel that names and numbers it.

Here is the truth: which stick is behind a name or a number. The plugin is shown ports, which tell
only what a device says of itself and where it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from usbplugin.discovery import DeviceNumber, IdentityMode, Port, Readiness, UsbInterface
from usbplugin.discovery.identity import candidate_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MAJORS = {"ttyUSB": 188, "ttyACM": 166}


@dataclass(frozen=True, eq=False)
class Stick:
    """A USB device; two that are made alike are still two."""

    name: str
    serial: str
    vendor: str = "0403"
    product: str = "6001"
    ttys: tuple[tuple[int, int], ...] = ((0, 0),)
    """Interface and port number of each tty."""
    kind: str = "ttyUSB"
    is_unique: bool = False
    """Whether no other device has its serial, and nothing is odd about it."""

    def is_copy_of(self, other: Stick) -> bool:
        """Whether nothing that they say of themselves tells them apart."""
        return (self.vendor, self.product, self.serial) == (
            other.vendor,
            other.product,
            other.serial,
        )

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Socket:
    """Where a device can be plugged in."""

    name: str
    controller: str
    is_virtual: bool = False
    """Whether it is handed out to whatever is attached next, as USB/IP does."""

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True, eq=False)
class Tty:
    """One port of a device, from its being plugged in until it is pulled out."""

    stick: Stick
    index: int
    socket: Socket
    life: int
    """Counts all that was ever plugged in, over all boots."""
    name: str
    number: DeviceNumber

    def __repr__(self) -> str:
        return f"{self.name}({self.stick}.{self.index} in {self.socket}, life {self.life})"


def describe(tty: Tty) -> UsbInterface:
    """What sysfs tells of a port; see ``usbplugin.discovery.sysfs``."""
    interface, port_number = tty.stick.ttys[tty.index]
    is_virtual = tty.socket.is_virtual
    return UsbInterface(
        tty.stick.vendor,
        tty.stick.product,
        tty.stick.serial,
        interface=interface,
        port_number=port_number,
        location="" if is_virtual else f"{tty.socket.controller}-{tty.socket.name}",
        arrival=f"life{tty.life:012}" if is_virtual else "",
    )


SOCKETS = (
    Socket("1", "0000:00:14.0"),
    Socket("2", "0000:00:14.0"),
    Socket("3.1", "0000:00:14.0"),
    Socket("3.2", "0000:00:14.0"),
    Socket("5", "2184000.usb"),
    Socket("6", "2184200.usb"),
    Socket("vhci-1", "vhci_hcd.0", is_virtual=True),
    Socket("vhci-2", "vhci_hcd.0", is_virtual=True),
)
HUB = frozenset(socket for socket in SOCKETS if socket.name.startswith("3."))


def _with_the_digest_of(other: Stick) -> str:
    """A serial that spells what another one becomes in an ID."""
    tty = Tty(other, 0, SOCKETS[0], 0, "ttyUSB0", DeviceNumber(188, 0))
    port = Port(tty.name, f"/dev/{tty.name}", tty.number, describe(tty))
    device_id = candidate_ids(port, IdentityMode.AUTO)[0]
    return device_id.removeprefix("usb-0403:6001-").removesuffix("-if00")


_ODD = Stick("odd", "odd serial!")
STICKS = (
    Stick("gps", "GPS-A7", is_unique=True),
    Stick("meter", "METER-9", is_unique=True),
    Stick("plain1", ""),
    Stick("plain2", ""),
    Stick("common1", "0001", "10c4", "ea60"),
    Stick("common2", "0001", "10c4", "ea60"),
    Stick("twin1", "TWIN"),
    Stick("twin2", "TWIN"),
    _ODD,
    Stick("speller", _with_the_digest_of(_ODD)),
    Stick("portlike", "GPS-A7-if00"),
    Stick("sharelike", "GPS-A7.0"),
    Stick("placelike", "at-0000:00:14.0-1"),
    Stick("modem", "MODEM-5", "2c7c", "0125", ((0, 0), (2, 0), (3, 0)), is_unique=True),
    # The others of its eleven have nodes of other names. In the order of text, 10 is before 2.
    Stick("adapter", "", "1a86", "55d5", ((0, 0), (0, 2), (0, 10)), "ttyACM"),
)


class Kernel:
    """Gives out names and numbers as Linux does: the lowest that is free."""

    def __init__(self, is_kept_open: Callable[[DeviceNumber], bool]) -> None:
        """Begin with nothing plugged in.

        Args:
            is_kept_open: Whether somebody has a number open still; until it is closed, nobody else
                gets that number, though its device is gone.
        """
        self._is_kept_open = is_kept_open
        self._lives = count(1)
        self._ttys: dict[DeviceNumber, Tty] = {}
        self.where: dict[Stick, Socket] = {}
        """What is plugged in, in the order in which it was found."""

    @property
    def ttys(self) -> Sequence[Tty]:
        """All ports that are there, in the order in which they were found."""
        return sorted(self._ttys.values(), key=lambda tty: (tty.life, tty.index))

    def at(self, number: DeviceNumber) -> Tty | None:
        """What is opened by that number now."""
        return self._ttys.get(number)

    def named(self, name: str) -> Tty | None:
        """The port that has that name now."""
        return next((tty for tty in self._ttys.values() if tty.name == name), None)

    def free_sockets(self) -> list[Socket]:
        """Where something can be plugged in."""
        taken = set(self.where.values())
        return [socket for socket in SOCKETS if socket not in taken]

    def plug(self, stick: Stick, socket: Socket) -> list[Tty]:
        """A device is plugged in; its ports."""
        life = next(self._lives)
        self.where[stick] = socket
        found = []
        for index in range(len(stick.ttys)):
            major = _MAJORS[stick.kind]
            number = next(
                number
                for minor in count()
                if (number := DeviceNumber(major, minor)) not in self._ttys
                and not self._is_kept_open(number)
            )
            tty = Tty(stick, index, socket, life, f"{stick.kind}{number.minor}", number)
            self._ttys[number] = tty
            found.append(tty)
        return found

    def pull(self, stick: Stick) -> list[Tty]:
        """A device is pulled out; the ports that it had."""
        del self.where[stick]
        gone = [tty for tty in self.ttys if tty.stick is stick]
        for tty in gone:
            del self._ttys[tty.number]
        return gone

    def port(self, tty: Tty, *, settled: bool = True) -> Port:
        """What the udev source makes of a port."""
        return Port(
            name=tty.name,
            node=f"/dev/{tty.name}",
            number=tty.number,
            usb=describe(tty),
            sysfs_path=f"/nowhere/{tty.name}",
            driver="cdc_acm" if tty.stick.kind == "ttyACM" else "ftdi_sio",
            readiness=Readiness.READY if settled else Readiness.SETTLING,
            initialized_usec=tty.life if settled else 0,
        )

    def is_unchanged(self, port: Port) -> bool:
        """Whether a look at sysfs would find that port as it was found before."""
        tty = self.named(port.name)
        return tty is not None and (tty.number, describe(tty)) == (port.number, port.usb)

    def number_behind(self, node: str) -> DeviceNumber | None:
        """The number of a device node, if there is one."""
        tty = self.named(node.removeprefix("/dev/"))
        return tty.number if tty else None
