"""What a container was given, and what the kubelet says of it."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from usbplugin.discovery import DeviceNumber

GrantKey = tuple[str, str]
"""Resource and listed ID: the kubelet gives each of these to one container at a time. For what
was given through a claim, see ``claim_key``."""


DRA_DRIVER = "usbplugin"
"""By which name the kubelet knows who prepares our claims."""


def claim_key(claim: str, device_name: str) -> GrantKey:
    """What the claim ``namespace/name`` has of a device; no resource is called like that."""
    return f"claim {claim}", device_name


def claim_of(key: GrantKey) -> str:
    """The claim that has it, as ``namespace/name``; empty if it was not given through one."""
    return key[0].removeprefix("claim ") if key[0].startswith("claim ") else ""


class GrantedPort(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a container was given for one port."""

    number: DeviceNumber | None
    """None if no container runs with it: one that asked to be started has ended before."""
    path: str
    """Path on the host that the kubelet replays whenever the container is restarted; empty if it
    replays a CDI name."""
    also: tuple[DeviceNumber, ...] = ()
    """Numbers it may have as well: where starts are not checked, nobody tells of them."""

    @property
    def numbers(self) -> tuple[DeviceNumber, ...]:
        """All the numbers with which a container may be running."""
        return self.also if self.number is None else (self.number, *self.also)


class Grant(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one container was given of one device."""

    resource: str
    listed_id: str
    """The ID that the kubelet knows: the device's own, or that of one of its shares."""
    ports: dict[str, GrantedPort]
    """By slot."""
    boot: str = ""
    """The boot of which the numbers are; empty if they are of this one."""
    is_of_all_shares: bool = False
    """Whether it holds for each share of the device: version 0.1 did not tell them apart."""
    is_unsure: bool = False
    """Whether the numbers are a guess: nobody has seen the container start."""
    claim: str = ""
    """``namespace/name`` of the ResourceClaim through which it was given; ``listed_id`` is then the
    device's name in there. Empty if the device plugin gave it."""

    @property
    def key(self) -> GrantKey:
        """What tells it from all others."""
        if self.claim:
            return claim_key(self.claim, self.listed_id)
        return self.resource, self.listed_id

    @property
    def numbers(self) -> frozenset[DeviceNumber]:
        """All the numbers with which its container may be running."""
        return frozenset(n for port in self.ports.values() for n in port.numbers)

    @property
    def paths(self) -> dict[str, str]:
        """By slot, what the kubelet replays."""
        return {slot: port.path for slot, port in self.ports.items()}

    @property
    def is_cdi(self) -> bool:
        """Whether the kubelet replays a CDI name of its resource's spec."""
        return not self.claim and any(not port.path for port in self.ports.values())

    def stopped(self) -> Grant:
        """The same, of a container that does not run."""
        ports = {slot: GrantedPort(None, port.path) for slot, port in self.ports.items()}
        return msgspec.structs.replace(self, ports=ports, is_unsure=False)


@dataclass(frozen=True, slots=True)
class HeldDevice:
    """Somebody holds a device, by the kubelet's word."""

    resource: str
    device_id: str
    """As it was listed: perhaps of a share."""
    holder: str
    """``namespace/pod/container``."""

    @property
    def key(self) -> GrantKey:
        """Which grant it is about."""
        return self.resource, self.device_id


@dataclass(frozen=True, slots=True)
class Holding:
    """A grant, and who has it."""

    device_id: str
    key: GrantKey
    grant: Grant | None
    """None if nobody knows what the container was given."""
    holders: tuple[str, ...] = ()
    """Empty as long as the kubelet has not named any."""
    granted_at: float = float("-inf")
    """When it was granted; seconds of the inventory's clock."""

    @property
    def may_run(self) -> bool:
        """Whether its container may be running."""
        return self.grant is None or self.grant.is_unsure or bool(self.grant.numbers)

    @property
    def claim(self) -> str:
        """The claim through which it was given; empty if the device plugin gave it."""
        return self.grant.claim if self.grant is not None else ""

    @property
    def who(self) -> str:
        """Its holders, for people."""
        unnamed = f"claim {self.claim}" if self.claim else "a pod (not yet named by the kubelet)"
        return ", ".join(self.holders) or unnamed
