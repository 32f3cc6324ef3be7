"""What keeps pods away from a device, or drives them away, and from when on. Pure.

Pods are evicted for what is known: a device is gone, or is another one to the container that has
it. Nobody is evicted for what we do not know.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING

import msgspec

from usbplugin.dra.contracts import Terms
from usbplugin.dra.names import DRIVER
from usbplugin.inventory import Health

if TYPE_CHECKING:
    from usbplugin.dra.contracts import PublishedDevice


class Effect(Enum):
    """What a taint does to pods that do not tolerate it."""

    NO_SCHEDULE = "NoSchedule"
    """No further claim is allocated the device."""
    NO_EXECUTE = "NoExecute"
    """Pods that have it are evicted, too."""


class Taint(msgspec.Struct, frozen=True, rename="camel"):
    """A device taint, in the API's words."""

    key: str
    effect: Effect
    time_added: str
    """RFC 3339, in whole seconds, which is all that the API server keeps."""

    def __str__(self) -> str:
        """For people, as ``unplugged:NoExecute``."""
        return f"{self.key.removeprefix(f'{DRIVER}/')}:{self.effect.value}"


UNPLUGGED = f"{DRIVER}/unplugged"
INCOMPLETE = f"{DRIVER}/incomplete"
DISPLACED = f"{DRIVER}/displaced"
HELD_ELSEWHERE = f"{DRIVER}/{Terms.HELD_ELSEWHERE.value}"
DRAINING = f"{DRIVER}/{Terms.DRAINING.value}"

_ABSENT = {Health.UNPLUGGED: UNPLUGGED, Health.INCOMPLETE: INCOMPLETE}
_NOT_FOR_NEW_PODS = {
    health: f"{DRIVER}/{health.value}"
    for health in (Health.BROKEN, Health.FLAPPING, Health.CONTESTED, Health.RETIRED)
}
_BY_TERMS = {Terms.HELD_ELSEWHERE: HELD_ELSEWHERE, Terms.DRAINING: DRAINING}

KEYS = (UNPLUGGED, INCOMPLETE, DISPLACED, *_NOT_FOR_NEW_PODS.values(), *_BY_TERMS.values())
"""Every key there is."""


def taints_of(published: PublishedDevice, now: float) -> tuple[Taint, ...]:
    """The taints of a device at a moment.

    A device that is away has both effects: a pod may tolerate NoExecute, to sit out a replug, and
    must not be *allocated* an absent device for it. For a while it has NoSchedule alone.

    Args:
        published: The device.
        now: Seconds of the Unix epoch, as ``published.since``.
    """
    health, since = published.device.health, published.since
    taints: list[Taint] = []
    if key := _ABSENT.get(health):
        taints.append(Taint(key, Effect.NO_SCHEDULE, rfc3339(since)))
        if (due := eviction_at(published)) is not None and due <= now:
            taints.append(Taint(key, Effect.NO_EXECUTE, _time_added(since, due)))
    elif health is Health.DISPLACED:
        taints.append(Taint(DISPLACED, Effect.NO_SCHEDULE, rfc3339(since)))
        if published.device.has_moved:
            taints.append(Taint(DISPLACED, Effect.NO_EXECUTE, rfc3339(since)))
    elif key := _NOT_FOR_NEW_PODS.get(health):
        taints.append(Taint(key, Effect.NO_SCHEDULE, rfc3339(since)))
        if health is Health.CONTESTED and published.device.has_moved:
            # Two devices have changed places: each has the other one's container at its node.
            taints.append(Taint(DISPLACED, Effect.NO_EXECUTE, rfc3339(since)))
    if key := _BY_TERMS.get(published.terms):
        taints.append(Taint(key, Effect.NO_SCHEDULE, rfc3339(since)))
    return tuple(taints)


def eviction_at(published: PublishedDevice) -> float | None:
    """When pods that hold an absent device are to be evicted; None if it is there, or never.

    A ghost has no such grace: nobody has seen it since it was unplugged, if it ever was.
    """
    if published.device.health not in _ABSENT or published.evict_after is None:
        return None
    return published.since + (0.0 if published.is_ghost else published.evict_after)


def is_absent(published: PublishedDevice) -> bool:
    """Whether it is not there to be handed over."""
    return published.device.health in _ABSENT


def rfc3339(seconds: float) -> str:
    """A moment of the Unix epoch in the API's format, cut to a second."""
    moment = datetime.fromtimestamp(math.floor(seconds), tz=UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _time_added(since: float, due: float) -> str:
    """The moment from which a pod's ``tolerationSeconds`` count.

    Rounded up to a second, for a pod that asked for a grace of so many seconds is to have all of
    them; but not beyond the moment of eviction, for no pod is evicted before its taint was added
    (kubernetes: pkg/controller/devicetainteviction), not even one that tolerates nothing.
    """
    rounded_up = math.ceil(since)
    return rfc3339(rounded_up if rounded_up <= due else since)
