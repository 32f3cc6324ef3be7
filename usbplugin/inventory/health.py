"""The states of health, and the times and counts that matter; ``record`` decides between them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Health(Enum):
    """A device's state of health."""

    READY = "ready"
    """Its nodes are present, are the right character devices, and udevd is done with them."""
    UNPLUGGED = "unplugged"
    """It was listed, and its nodes are gone."""
    INCOMPLETE = "incomplete"
    """Some of its ports are there, others are not."""
    BROKEN = "broken"
    """A node is present, but is not the device that sysfs says it is, or does not answer; or what
    has to be on disk before it is offered cannot be written."""
    FLAPPING = "flapping"
    """It came and went too often; it is given time to calm down."""
    CONTESTED = "contested"
    """A container that was given something else, or gets it on other terms, may open it."""
    DISPLACED = "displaced"
    """It came back under other numbers than those its running container was given, or nobody
    knows what that container was given."""
    RETIRED = "retired"
    """A container may go on using it; the configuration does not offer it under this ID."""

    @property
    def is_usable(self) -> bool:
        """Whether the device may be handed to a container now."""
        return self is Health.READY

    @property
    def may_start(self) -> bool:
        """Whether a container that was given the device may perhaps be started now."""
        return self in _THERE and self is not Health.FLAPPING

    @property
    def is_there(self) -> bool:
        """Whether its nodes can be opened now, by a container that holds it already."""
        return self in _THERE


_THERE = frozenset(
    {Health.READY, Health.FLAPPING, Health.CONTESTED, Health.DISPLACED, Health.RETIRED}
)


@dataclass(frozen=True, slots=True)
class HealthPolicy:
    """How long things are remembered and waited for; all times in seconds."""

    retention: float = 3600.0
    """For how long an unplugged device that nobody holds stays listed."""
    flaps: int = 5
    """So many departures within ``flap_window`` make a device flapping."""
    flap_window: float = 60.0
    flap_quiet: float = 30.0
    """A flapping device is usable again after so long without coming or going."""
    group_settle: float = 1.0
    """A new device of several ports is complete when so long no further one has appeared."""
    group_patience: float = 10.0
    """A device nobody holds that came back with fewer ports is taken as it is after so long."""
    holder_grace: float = 2.0
    """The kubelet's word that nobody holds a device counts if asked so long after Allocate."""
