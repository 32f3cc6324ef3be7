"""The process's name, as ``ps`` and /proc/PID/comm show it: it says whether the plugin is ready.

An exec probe can read it for the price of a grep. A file would outlive a process that was killed.
"""

from __future__ import annotations

import logging
from pathlib import Path

from usbplugin.telemetry.logs import fields

_log = logging.getLogger(__name__)

_COMM = Path("/proc/self/comm")
"""At most 15 bytes of it are kept (proc(5))."""
READY = "usbplugin:ready"
NOT_READY = "usbplugin:wait"


class Title:
    """Shows readiness; does nothing when that has not changed."""

    def __init__(self) -> None:
        """Show nothing yet."""
        self._shown = ""

    def show(self, *, is_ready: bool) -> None:
        """Name the process accordingly."""
        title = READY if is_ready else NOT_READY
        if title == self._shown:
            return
        self._shown = title
        try:
            _COMM.write_text(title, encoding="ascii")
        except OSError as error:
            _log.warning(
                "cannot name the process; a probe that reads its name will not find it ready",
                extra=fields(file=_COMM, error=error),
            )
