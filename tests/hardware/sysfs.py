"""Looking at USB ttys, and unbinding their drivers, through sysfs and udevd's database."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_CLASS = Path("/sys/class/tty")


@dataclass(frozen=True, slots=True)
class Tty:
    """A USB tty that is present."""

    name: str
    path: Path
    """The tty's directory in sysfs, with no links in it."""

    @classmethod
    def named(cls, name: str) -> Tty:
        return cls(name, (_CLASS / name).resolve(strict=True))

    @property
    def node(self) -> str:
        return f"/dev/{self.name}"

    @property
    def number(self) -> str:
        """Major and minor number as sysfs writes them, e.g. ``166:0``."""
        return (self.path / "dev").read_text().strip()

    @property
    def interface(self) -> Path:
        """The USB interface's directory."""
        return self._above("bInterfaceNumber")

    @property
    def device(self) -> Path:
        """The USB device's directory."""
        return self._above("idVendor")

    @property
    def driver(self) -> Path:
        """The USB driver that is bound to the interface."""
        return (self.interface / "driver").resolve(strict=True)

    @property
    def is_initialized(self) -> bool:
        """Whether udevd has finished with it."""
        try:
            return "\nI:" in "\n" + Path("/run/udev/data", f"c{self.number}").read_text()
        except FileNotFoundError:
            return False

    def _above(self, attribute: str) -> Path:
        return next(path for path in self.path.parents if (path / attribute).exists())


def ttys_of(device: Path) -> list[Tty]:
    """Return a USB device's ttys in the order of their interfaces."""
    # cdc_acm has INTERFACE/tty/ttyACM0, usb-serial drivers INTERFACE/ttyUSB0/tty/ttyUSB0.
    found = [*device.glob("*:*/tty/tty*"), *device.glob("*:*/tty*/tty/tty*")]
    return [Tty(path.name, path) for path in sorted(found)]


def unbind(interface: Path) -> Path:
    """Take the driver off an interface, as if the port broke; return the driver for ``bind``."""
    driver = (interface / "driver").resolve(strict=True)
    (driver / "unbind").write_text(interface.name)
    return driver


def bind(interface: Path, driver: Path) -> None:
    """Put a driver back on an interface."""
    (driver / "bind").write_text(interface.name)
