"""The configurations among which an operator changes."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from usbplugin.custody import Offer
from usbplugin.discovery import IdentityMode, Unit
from usbplugin.inventory import ResourceRule, Selector

SERIAL = "usbplugin/serial"
OTHER = "usbplugin/other"
RENAMED = "example.com/ports"

EVERYTHING: tuple[Selector, ...] = ()
FTDI = (Selector(vendor="0403"),)
PARTS = (Selector(interface=2), Selector(serial="GPS-*"))
FEW = (Selector(serial="GPS-*"), Selector(product="5???"), Selector(serial="TWIN"))
MISTYPED = (Selector(vendor="0304"),)

LINKS = ("links", "other-links")


@dataclass(frozen=True)
class Resource:
    """One resource, as an operator describes it."""

    name: str
    selectors: tuple[Selector, ...]
    identity: IdentityMode = IdentityMode.AUTO
    unit: Unit = Unit.PORT
    shares: int = 1
    cdi: bool = False
    pre_start: bool = True
    by_claim: bool = False

    @property
    def rule(self) -> ResourceRule:
        return ResourceRule(
            self.name,
            self.selectors,
            self.identity,
            self.unit,
            self.pre_start or self.by_claim,
            self.shares,
            by_claim=self.by_claim,
        )

    @property
    def offer(self) -> Offer:
        return Offer(
            self.name,
            container_path="/dev/p{device}-{port}",
            pre_start=self.pre_start,
            shares=self.shares,
            cdi=self.cdi and not self.by_claim,
            by_claim=self.by_claim,
        )


@dataclass(frozen=True)
class Terms:
    """A whole configuration, and the link directory that is named on the command line."""

    resources: tuple[Resource, ...] = (Resource(SERIAL, EVERYTHING),)
    links: str = LINKS[0]

    @property
    def rules(self) -> list[ResourceRule]:
        return [one.rule for one in self.resources]

    @property
    def offers(self) -> list[Offer]:
        return [one.offer for one in self.resources]


LAYOUTS: tuple[tuple[tuple[str, tuple[Selector, ...]], ...], ...] = (
    ((SERIAL, EVERYTHING),),
    ((SERIAL, EVERYTHING),),
    ((RENAMED, EVERYTHING),),
    ((SERIAL, MISTYPED),),
    ((SERIAL, FTDI),),
    ((OTHER, FEW), (SERIAL, EVERYTHING)),
    ((SERIAL, EVERYTHING), (OTHER, FEW)),
    ((OTHER, PARTS), (SERIAL, EVERYTHING)),
    ((OTHER, PARTS), (SERIAL, FTDI)),
    ((OTHER, EVERYTHING), (SERIAL, FEW)),
)


@st.composite
def terms(draw: st.DrawFn, *, pre_start: bool = True, both_fronts: bool = False) -> Terms:
    """Any configuration; most differ from each other in little."""

    def resource(name: str, selectors: tuple[Selector, ...]) -> Resource:
        return Resource(
            name,
            selectors,
            draw(st.sampled_from([IdentityMode.AUTO, IdentityMode.AUTO, *IdentityMode])),
            draw(st.sampled_from([Unit.PORT, Unit.PORT, Unit.USB_DEVICE])),
            draw(st.sampled_from([1, 1, 1, 2, 3])),
            draw(st.sampled_from([False, False, True])),
            pre_start,
            by_claim=both_fronts and draw(st.booleans()),
        )

    layout = draw(st.sampled_from(LAYOUTS))
    return Terms(
        tuple(resource(name, selectors) for name, selectors in layout),
        draw(st.sampled_from([LINKS[0], LINKS[0], LINKS[0], LINKS[1]])),
    )
