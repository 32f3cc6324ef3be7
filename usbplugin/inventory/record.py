"""What the inventory knows of one device, and how that device fares. Pure, and mutable."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from usbplugin.discovery.identity import Fingerprint, Unit, descriptors, fingerprint
from usbplugin.inventory.health import Health, HealthPolicy

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from usbplugin.discovery import Port
    from usbplugin.inventory.grant import Holding
    from usbplugin.inventory.selector import ResourceRule

Key = tuple[str, str]
"""Source and port name: what identifies a port while it is present."""

_LONG_AGO = float("-inf")

_RESETS = "; if it goes each time its container starts, the application resets it: turn that off"


@dataclass(frozen=True, slots=True)
class Standing:
    """How a device stands with others and their containers, in words for people."""

    contest: str = ""
    """Which container, given something else or on other terms, may open it; empty if none may."""
    retirement: str = ""
    """What becomes of a device that is not offered any longer."""


@dataclass(slots=True, eq=False)
class Record:
    """One device."""

    id: str
    rule: ResourceRule
    ports: dict[str, Port] = field(default_factory=dict)
    """By slot, as last seen: all the ports that the device is known to have."""
    present: dict[str, Key] = field(default_factory=dict)
    """By slot: the ports that are there now."""
    is_offered: bool = True
    """Whether the configuration offers it under this ID; if not, it is here for its holders."""
    has_twin: bool = False
    """Whether another device has shown the same descriptors, be it known or forgotten by now."""
    departures: deque[float] = field(default_factory=lambda: deque(maxlen=64))
    must_calm_down: bool = False
    """Whether it has flapped, and not been quiet since."""
    obstacle: str = ""
    """What its containers need and could not be written to disk, and why."""
    last_move: float = _LONG_AGO
    """When a port last came or went."""
    pause: float = 0.0
    """Seconds from the move before until then."""
    listed: bool = False
    """Whether the kubelet was ever told of it, in this life of the plugin or an earlier one."""
    was_listed: bool = False
    """Whether it was before a reload: then it is complete as it is."""
    health: Health | None = None
    """None as long as it is not to be listed."""
    reason: str = ""
    has_moved: bool = False
    """Whether a container is known to have other numbers than the device has now."""
    since: float = _LONG_AGO
    wake: float | None = None
    """When time alone may change the health."""

    def arrive(self, key: Key, port: Port, now: float) -> None:
        """A port is there, or has new attributes."""
        if self.present.get(port.slot) != key:
            self._move(now)
        self.present[port.slot] = key
        self.ports[port.slot] = port

    def leave(self, slot: str, now: float) -> None:
        """A port is gone."""
        del self.present[slot]
        self._move(now)
        if not self.present:
            self.departures.append(now)

    def _move(self, now: float) -> None:
        self.pause, self.last_move = now - self.last_move, now

    def assess(
        self, policy: HealthPolicy, now: float, holdings: Collection[Holding], standing: Standing
    ) -> None:
        """Decide on ``health``, ``reason``, ``since`` and ``wake``.

        Args:
            policy: How long things are waited for.
            now: The present moment.
            holdings: What containers have of it, for all we know.
            standing: How it stands with other devices and their containers.
        """
        self.wake = None
        self.has_moved = False
        health, reason = self._judge(policy, now, holdings, standing)
        if health is not self.health:
            self.since = now
        self.health, self.reason = health, reason

    def _judge(
        self, policy: HealthPolicy, now: float, holdings: Collection[Holding], standing: Standing
    ) -> tuple[Health | None, str]:
        held = bool(holdings)
        if not self.present:
            if not held:
                away = self.since if self.health is Health.UNPLUGGED else now
                self.wake = away + policy.retention
            return Health.UNPLUGGED, self._absence()
        missing = sorted(self.ports.keys() - self.present.keys())
        if missing and not held and now >= self.last_move + policy.group_patience:
            for slot in missing:
                del self.ports[slot]
            missing = []
        if missing:
            self.wake = None if held else self.last_move + policy.group_patience
            nodes = ", ".join(f"{slot} ({self.ports[slot].node})" for slot in missing)
            way_out = "; if they are gone for good, delete the pod" if held else ""
            return Health.INCOMPLETE, (
                f"{nodes} of its {len(self.ports)} ports are missing{way_out}"
            )
        whole = policy.group_settle if self.rule.unit is Unit.USB_DEVICE else 0.0
        complete_at = self.last_move + max(whole, self.rule.settle)
        if not (self.listed or self.was_listed) and now < complete_at:
            self.wake = complete_at
            return None, ""
        return self._judge_present(policy, now, holdings, standing)

    def _judge_present(  # noqa: PLR0911 -- the states, worst first
        self, policy: HealthPolicy, now: float, holdings: Collection[Holding], standing: Standing
    ) -> tuple[Health, str]:
        moved = self._displacement(holdings)  # also told where something else is worse
        if faults := [port.fault for port in self.ports.values() if port.fault]:
            return Health.BROKEN, "; ".join(faults)
        if self.obstacle:
            return Health.BROKEN, self.obstacle
        if self._is_flapping(policy, now):
            self.wake = self.last_move + policy.flap_quiet
            return Health.FLAPPING, (
                f"was unplugged {len(self.departures)} times; usable after"
                f" {policy.flap_quiet:g} s of quiet{_RESETS if holdings else ''}"
            )
        if standing.contest:
            return Health.CONTESTED, standing.contest
        if moved:
            return Health.DISPLACED, moved
        if not self.is_offered:
            return Health.RETIRED, standing.retirement
        return Health.READY, ""

    def _absence(self) -> str:
        if not self.ports:
            return "held by a pod, but not seen since the plugin started"
        nodes = ", ".join(port.node for port in self.ports.values())
        return f"{nodes} {'is' if len(self.ports) == 1 else 'are'} gone"

    def _is_flapping(self, policy: HealthPolicy, now: float) -> bool:
        if (
            len(self.departures) >= policy.flaps
            # The oldest of the last so many.
            and self.departures[-policy.flaps] > now - policy.flap_window
        ):
            self.must_calm_down = True
        if self.must_calm_down and max(now - self.last_move, self.pause) >= policy.flap_quiet:
            self.must_calm_down = False
            self.departures.clear()
        return self.must_calm_down

    def _displacement(self, holdings: Collection[Holding]) -> str:
        """Why whoever holds it has not what is offered here; empty if there is no reason."""
        if unknown := _names(holding for holding in holdings if holding.grant is None):
            return (
                f"held by {unknown}, but nobody knows what the container was given: delete the pod"
            )
        if not self.rule.checks_starts:
            return ""
        if unsure := _names(h for h in holdings if h.grant is not None and h.grant.is_unsure):
            return (
                f"held by {unsure}, but nobody knows which device numbers the container has:"
                " restart it"
            )
        moved = {
            f"{port.node} is {port.number} now, its container has {given.number}": None
            for holding in holdings
            if holding.grant is not None
            for slot, given in holding.grant.ports.items()
            if (port := self.ports.get(slot)) and given.number not in (None, port.number)
        }
        self.has_moved = bool(moved)
        is_claimed = any(holding.claim for holding in holdings)
        if moved:
            # Restarting it again helps nobody if the start itself is what unplugs the device.
            again = _RESETS if len(self.departures) > 1 else ""
            way_out = "delete the pod" if is_claimed else f"restart the container{again}"
            return f"{'; '.join(moved)}: {way_out}"
        if is_claimed and (doubtful := _names(h for h in holdings if self._may_differ(h))):
            return (
                f"held by {doubtful}, which may have been restarted with another device number:"
                " delete the pod"
            )
        return ""

    def _may_differ(self, holding: Holding) -> bool:
        """Whether a container that nobody tells us of may have a number that is not the present."""
        ports = holding.grant.ports.items() if holding.grant is not None and holding.claim else ()
        return any(
            number != port.number
            for slot, given in ports
            if (port := self.ports.get(slot))
            for number in given.numbers
        )

    def in_order(self) -> tuple[Port, ...]:
        """Its ports as last seen, in interface order."""
        return tuple(sorted(self.ports.values(), key=lambda port: port.position))

    def port_at(self, key: Key) -> Port | None:
        """Its port that is present under that key; None if there is none."""
        return next((self.ports[s] for s, seen_as in self.present.items() if seen_as == key), None)

    def fingerprint(self) -> Fingerprint | None:
        """What it says of itself, and where it is or was; None if it was never seen."""
        # One that is there: of a device that moves, the others are still known by their old place.
        slots = (*self.present, *self.ports)
        return fingerprint(self.ports[slots[0]], self.rule.unit) if slots else None

    def claims(self) -> list[Fingerprint]:
        """What its ports have said of themselves."""
        return [descriptors(port, self.rule.unit) for port in self.ports.values()]


def _names(holdings: Iterable[Holding]) -> str:
    """Who has these, for people, each once."""
    return ", ".join(dict.fromkeys(holding.who for holding in holdings))
