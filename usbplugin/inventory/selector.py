"""Which ports belong to which resource: the first resource that matches takes the port."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import msgspec

from usbplugin.discovery import IdentityMode, Unit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usbplugin.discovery import Port


class Selector(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Matches a port if all that is given matches; each value is exact or a glob (``*?[]``).

    A port without USB descriptors has the empty string for each of them.
    """

    vendor: str | None = None
    """USB vendor ID, four hexadecimal digits."""
    product: str | None = None
    """USB product ID, four hexadecimal digits."""
    serial: str | None = None
    """Serial number as the device reports it."""
    manufacturer: str | None = None
    """Manufacturer string as the device reports it."""
    product_name: str | None = None
    """Product string as the device reports it."""
    driver: str | None = None
    """Kernel driver: ``ftdi_sio``, ``cp210x``, ``ch341``, ``pl2303``, ``cdc_acm``..."""
    interface: int | None = None
    """USB interface number, 0 to 255."""
    location: str | None = None
    """Host controller and port chain, e.g. ``0000:00:14.0-1.2``."""
    node: str | None = None
    """Device node, e.g. ``/dev/ttyACM*``."""

    @property
    def is_empty(self) -> bool:
        """Whether it matches every port."""
        return all(value is None for value in msgspec.structs.astuple(self))

    def matches(self, port: Port) -> bool:
        """Whether all that is given matches ``port``."""
        usb = port.usb
        return (
            _glob(self.vendor and self.vendor.lower(), usb.vendor_id if usb else "")
            and _glob(self.product and self.product.lower(), usb.product_id if usb else "")
            and _glob(self.serial, usb.serial if usb else "")
            and _glob(self.manufacturer, usb.manufacturer if usb else "")
            and _glob(self.product_name, usb.product if usb else "")
            and _glob(self.driver, port.driver)
            and (self.interface is None or (usb is not None and usb.interface == self.interface))
            and _glob(self.location, usb.location if usb else "")
            and (_glob(self.node, port.node) or _glob(self.node, f"/dev/{port.name}"))
        )


class ResourceRule(msgspec.Struct, frozen=True):
    """What the inventory needs to know of a resource."""

    name: str
    selectors: tuple[Selector, ...] = ()
    """Alternatives; none at all matches every port."""
    identity: IdentityMode = IdentityMode.AUTO
    unit: Unit = Unit.PORT
    checks_starts: bool = True
    """Whether each start of a container is checked, so that a displaced device can be cleared."""

    def matches(self, port: Port) -> bool:
        """Whether one of the selectors matches."""
        return not self.selectors or any(selector.matches(port) for selector in self.selectors)


def first_match(rules: Sequence[ResourceRule], port: Port) -> ResourceRule | None:
    """The resource that ``port`` belongs to; None if it belongs to none."""
    return next((rule for rule in rules if rule.matches(port)), None)


def _glob(pattern: str | None, value: str) -> bool:
    return pattern is None or pattern == value or fnmatchcase(value, pattern)
