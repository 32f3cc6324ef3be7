"""What happened to devices, in the log: a line each."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usbplugin.inventory import Change

_log = logging.getLogger(__name__)


def log_changes(changes: Sequence[Change]) -> None:
    """Log a line per change: a warning for a device that cannot be used now."""
    for change in changes:
        device = change.device
        event = f"device {change.after.value}" if change.after else "device forgotten"
        unusable = change.after is not None and not change.after.is_usable
        level = logging.WARNING if unusable else logging.INFO
        if change.before is change.after:
            event, level = "device changed", logging.DEBUG
        _log.log(
            level,
            event,
            extra=fields(
                device=device.id,
                resource=device.resource,
                nodes=device.nodes,
                numbers=[str(port.number) for port in device.ports],
                reason=change.reason,
                before=change.before.value if change.before else "new",
                holders=device.holders,
                udevd=sorted({port.readiness.name.lower() for port in device.ports}),
            ),
        )
