"""Which ports belong to which resource: the first resource that matches takes the port."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from usbplugin.discovery import IdentityMode, Unit
from usbplugin.discovery.identity import part_tag

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from usbplugin.discovery import Port, UsbInterface


class Selector(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Matches a port if all that is given matches; each value is exact or a glob (``*?[]``).

    A port without USB descriptors has the empty string for each of them.
    """

    vendor: Annotated[str, Meta(examples=["0403"])] | None = None
    """USB vendor ID, four hexadecimal digits."""
    product: Annotated[str, Meta(examples=["60*"])] | None = None
    """USB product ID, four hexadecimal digits."""
    serial: Annotated[str, Meta(examples=["A5069RR4"])] | None = None
    """Serial number as the device reports it."""
    manufacturer: Annotated[str, Meta(examples=["FTDI"])] | None = None
    """Manufacturer string as the device reports it."""
    product_name: Annotated[str, Meta(examples=["*Zigbee*"])] | None = None
    """Product string as the device reports it."""
    driver: Annotated[str, Meta(examples=["cp210x"])] | None = None
    """Kernel driver: ``ftdi_sio``, ``cp210x``, ``ch341``, ``pl2303``, ``cdc_acm``..."""
    interface: Annotated[int, Meta(examples=[2])] | None = None
    """USB interface number, 0 to 255."""
    location: Annotated[str, Meta(examples=["0000:00:14.0-1.*"])] | None = None
    """Host controller and port chain, e.g. ``0000:00:14.0-1.2``."""
    node: Annotated[str, Meta(examples=["/dev/ttyACM*"])] | None = None
    """Device node, e.g. ``/dev/ttyACM*``."""

    @property
    def is_partial(self) -> bool:
        """Whether it may match some of a device's ports and not others."""
        return any(getattr(self, key) is not None for key in ("driver", "interface", "node"))

    @property
    def is_empty(self) -> bool:
        """Whether it matches every port."""
        return all(value is None for value in msgspec.structs.astuple(self))

    def matches(self, port: Port) -> bool:
        """Whether all that is given matches ``port``."""
        wanted = {key: value for key in _VALUES if (value := getattr(self, key)) is not None}
        return all(
            any(_fits(value, found, fold=key in _HEXADECIMAL) for found in _VALUES[key](port))
            for key, value in wanted.items()
        )


def _of_usb(read: Callable[[UsbInterface], str | int]) -> Callable[[Port], Sequence[str | int]]:
    return lambda port: ("" if port.usb is None else read(port.usb),)


_VALUES: dict[str, Callable[[Port], Sequence[str | int]]] = {
    "vendor": _of_usb(lambda usb: usb.vendor_id),
    "product": _of_usb(lambda usb: usb.product_id),
    "serial": _of_usb(lambda usb: usb.serial),
    "manufacturer": _of_usb(lambda usb: usb.manufacturer),
    "product_name": _of_usb(lambda usb: usb.product),
    "driver": lambda port: (port.driver,),
    "interface": _of_usb(lambda usb: usb.interface),
    "location": _of_usb(lambda usb: usb.location),
    "node": lambda port: (port.node, f"/dev/{port.name}"),
}
"""For each key of a selector, what of a port it is compared with; one of several will do."""

_HEXADECIMAL = frozenset({"vendor", "product"})


class ResourceRule(msgspec.Struct, frozen=True):
    """What the inventory needs to know of a resource."""

    name: str
    selectors: tuple[Selector, ...] = ()
    """Alternatives; none at all matches every port."""
    identity: IdentityMode = IdentityMode.AUTO
    unit: Unit = Unit.PORT
    checks_starts: bool = True
    """Whether each start of a container is checked, so that a displaced device can be cleared."""
    shares: int = 1
    """How many containers may have a device at once."""
    by_claim: bool = False
    """Whether ResourceClaims give out its devices, and the device plugin does not."""
    settle: float = 0.0
    """Seconds that a new device has to stay before it is listed."""

    def matches(self, port: Port) -> bool:
        """Whether one of the selectors matches."""
        return not self.selectors or any(selector.matches(port) for selector in self.selectors)


def part_of(rule: ResourceRule, rules: Sequence[ResourceRule]) -> str:
    """What tells a device of ``rule`` from the rest of the same USB device, which another has.

    Returns:
        A digest of the resource's name where ``rule`` may split a USB device that a second resource
        of such devices selects too: each then has a device of its own, whichever port comes first.
        Else the empty string.
    """
    wholes = [other for other in rules if other.unit is Unit.USB_DEVICE]
    splits = any(selector.is_partial for selector in rule.selectors)
    if rule.unit is not Unit.USB_DEVICE or len(wholes) == 1 or not splits:
        return ""
    return part_tag(rule.name)


def first_match(rules: Sequence[ResourceRule], port: Port) -> ResourceRule | None:
    """The resource that ``port`` belongs to; None if it belongs to none."""
    return next((rule for rule in rules if rule.matches(port)), None)


def _fits(wanted: str | int, found: str | int, *, fold: bool) -> bool:
    if isinstance(wanted, int) or isinstance(found, int):
        return wanted == found
    pattern = wanted.lower() if fold else wanted
    return pattern == found or fnmatchcase(found, pattern)
