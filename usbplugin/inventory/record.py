"""What the inventory knows of one device, and how that device fares. Pure, and mutable."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from usbplugin.discovery.identity import Fingerprint, Unit, descriptors, fingerprint
from usbplugin.inventory.device import Device, DeviceState, GrantedPort
from usbplugin.inventory.health import Health, HealthPolicy

if TYPE_CHECKING:
    from usbplugin.discovery import Port
    from usbplugin.inventory.selector import ResourceRule

Key = tuple[str, str]
"""Source and port name: what identifies a port while it is present."""

_LONG_AGO = float("-inf")


@dataclass(slots=True)
class Record:
    """One device."""

    id: str
    rule: ResourceRule
    ports: dict[str, Port] = field(default_factory=dict)
    """By slot, as last seen: all the ports that the device is known to have."""
    present: dict[str, Key] = field(default_factory=dict)
    """By slot: the ports that are there now."""
    granted: dict[str, GrantedPort] = field(default_factory=dict)
    """By slot: what the container that holds the device was given."""
    granted_at: float = _LONG_AGO
    holders: tuple[str, ...] = ()
    held_as: frozenset[str] = frozenset()
    """The resources of which the kubelet counts it as allocated; a reload may have moved it."""
    has_twin: bool = False
    """Whether another device has shown the same descriptors, be it known or forgotten by now."""
    departures: deque[float] = field(default_factory=lambda: deque(maxlen=64))
    last_move: float = _LONG_AGO
    """When a port last came or went."""
    listed: bool = False
    """Whether the kubelet was ever told of it, in this life of the plugin or an earlier one."""
    was_listed: bool = False
    """Whether it was before a reload: then it is complete as it is."""
    health: Health | None = None
    """None as long as it is not to be listed."""
    reason: str = ""
    since: float = _LONG_AGO
    wake: float | None = None
    """When time alone may change the health."""

    def arrive(self, key: Key, port: Port, now: float) -> None:
        """A port is there, or has new attributes."""
        if self.present.get(port.slot) != key:
            self.last_move = now
        self.present[port.slot] = key
        self.ports[port.slot] = port

    def leave(self, slot: str, now: float) -> None:
        """A port is gone."""
        del self.present[slot]
        self.last_move = now
        if not self.present:
            self.departures.append(now)

    def is_held(self, asked_at: float | None, policy: HealthPolicy) -> bool:
        """Whether a container has it, for all we know.

        Args:
            asked_at: When the kubelet was last asked who holds what; None if it cannot be.
            policy: Says how soon after Allocate the kubelet's answer counts.
        """
        return bool(self.holders) or self._was_just_granted(asked_at, policy)

    def awaits_holders(self, asked_at: float | None, policy: HealthPolicy) -> bool:
        """Whether the kubelet's next word on who holds it will decide something, or show it."""
        if self.holders:
            # One more holder may have come since.
            is_settled = self.health is Health.READY
            return not is_settled or self._was_just_granted(asked_at, policy)
        return bool(self.granted)

    def _was_just_granted(self, asked_at: float | None, policy: HealthPolicy) -> bool:
        """Whether the kubelet's last word on its holders came too early to count."""
        return asked_at is not None and self.granted_at + policy.holder_grace > asked_at

    def assess(self, asked_at: float | None, policy: HealthPolicy, now: float) -> None:
        """Set health, reason, and when to look again."""
        self.wake = None
        health, reason = self._judge(policy, now, held=self.is_held(asked_at, policy))
        if health is not self.health:
            self.since = now
        self.health, self.reason = health, reason

    def _judge(  # noqa: PLR0911 -- the states, worst first
        self, policy: HealthPolicy, now: float, *, held: bool
    ) -> tuple[Health | None, str]:
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
            return Health.INCOMPLETE, f"{nodes} of its {len(self.ports)} ports are missing"
        complete_at = self.last_move + policy.group_settle
        if (
            self.rule.unit is Unit.USB_DEVICE
            and not (self.listed or self.was_listed)
            and now < complete_at
        ):
            self.wake = complete_at
            return None, ""
        if faults := [port.fault for port in self.ports.values() if port.fault]:
            return Health.BROKEN, "; ".join(faults)
        if self._is_flapping(policy, now):
            self.wake = self.last_move + policy.flap_quiet
            return Health.FLAPPING, (
                f"was unplugged {len(self.departures)} times; usable after"
                f" {policy.flap_quiet:g} s of quiet"
            )
        if held and (moved := self._displacement()):
            return Health.DISPLACED, moved
        return Health.READY, ""

    def _absence(self) -> str:
        if not self.ports:
            return "held by a pod, but not seen since the plugin started"
        nodes = ", ".join(port.node for port in self.ports.values())
        return f"{nodes} {'is' if len(self.ports) == 1 else 'are'} gone"

    def _is_flapping(self, policy: HealthPolicy, now: float) -> bool:
        often = (
            len(self.departures) >= policy.flaps
            # The oldest of the last so many.
            and self.departures[-policy.flaps] > now - policy.flap_window
        )
        if not often and self.health is not Health.FLAPPING:
            return False
        if now < self.last_move + policy.flap_quiet:
            return True
        self.departures.clear()
        return False

    def _displacement(self) -> str:
        """Why whoever holds it has not what is offered here; empty if there is no reason."""
        if foreign := self.held_as - {self.rule.name}:
            return (
                f"{', '.join(self.holders)} holds it as {', '.join(sorted(foreign))}, which no"
                " longer selects it: delete the pod"
            )
        if not self.rule.checks_starts:
            return ""
        moved = [
            f"{port.node} is {port.number} now, its container has {given.number}"
            for slot, given in self.granted.items()
            if (port := self.ports.get(slot)) and given.number not in (None, port.number)
        ]
        return f"{'; '.join(moved)}: restart the container" if moved else ""

    def _in_order(self) -> tuple[Port, ...]:
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

    def device(self, health: Health) -> Device:
        """What is published of it."""
        return Device(
            id=self.id,
            resource=self.rule.name,
            health=health,
            reason=self.reason,
            ports=self._in_order(),
            since=self.since,
            holders=self.holders,
        )

    def state(self) -> DeviceState:
        """What has to be known of it after a restart of the plugin."""
        return DeviceState(
            id=self.id,
            resource=self.rule.name,
            ports=self._in_order(),
            granted=dict(self.granted),
            absent_since=None if self.present else self.since,
            has_twin=self.has_twin,
        )
