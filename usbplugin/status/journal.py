"""Records what sources find and how devices change, as counts and as recent events."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from usbplugin.discovery import AllPorts, PortGone, PortPresent
from usbplugin.inventory import Health
from usbplugin.status.history import History
from usbplugin.telemetry.metrics import FORGOTTEN, Metrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from usbplugin.discovery import Fact
    from usbplugin.inventory import Change


class Journal:
    """Records what happens. For use in the event loop only."""

    def __init__(self) -> None:
        """Start empty."""
        self.metrics = Metrics(health.value for health in Health)
        self.history = History()
        self.listed_at: dict[str, float] = {}
        """When each source last listed all its ports; ``time.monotonic`` seconds."""

    def found(self, facts: Iterable[Fact]) -> None:
        """Record facts from sources."""
        for fact in facts:
            match fact:
                case AllPorts(source, _, reason):
                    self.listed_at[source] = time.monotonic()
                    self.metrics.rescans.add(source, reason)
                case PortPresent(source):
                    self.metrics.port_events.add(source, "present")
                case PortGone(source):
                    self.metrics.port_events.add(source, "gone")

    def changed(self, changes: Sequence[Change]) -> None:
        """Record changes to devices."""
        self.history.record(changes)
        for change in changes:
            resource, before, after = change.device.resource, change.before, change.after
            if before is after:
                continue
            self.metrics.device_changes.add(resource, after.value if after else FORGOTTEN)
            if before is Health.UNPLUGGED and after is not None:
                self.metrics.device_replugs.add(resource)
