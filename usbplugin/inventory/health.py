"""The states of health a device can be in, and which of them mean that it may be handed out."""

from __future__ import annotations

from enum import Enum


class Health(Enum):
    """A device's state of health."""

    READY = "ready"
    """Its node is present, is the right character device, and udevd is done with it."""
    UNPLUGGED = "unplugged"
    """It was listed, and its node is gone."""
    BROKEN = "broken"
    """Its node is present, but is not the device that sysfs says it is."""

    @property
    def is_usable(self) -> bool:
        """Whether the device may be handed to a container now."""
        return self is Health.READY
