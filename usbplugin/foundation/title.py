"""The process's name, as ``ps`` and /proc/PID/comm show it: it says whether the plugin is ready.

An exec probe can read it for the price of a grep. A file would outlive a process that was killed.
"""

from __future__ import annotations

import ctypes
import logging
import os

from usbplugin.telemetry.logs import fields

_log = logging.getLogger(__name__)

_PR_SET_NAME = 15
"""prctl(2). It works where /proc is mounted read-only, as writing /proc/self/comm does not."""
READY = "usbplugin:ready"
"""At most 15 bytes of a name are kept."""
NOT_READY = "usbplugin:wait"


class Title:
    """Shows readiness; does nothing when that has not changed.

    A name is the calling thread's, and the process has that of its main thread: call `show` there.
    """

    def __init__(self) -> None:
        """Show nothing yet."""
        self._shown = ""
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl

    def show(self, *, is_ready: bool) -> None:
        """Name the process accordingly."""
        title = READY if is_ready else NOT_READY
        if title == self._shown:
            return
        self._shown = title
        if self._prctl(_PR_SET_NAME, title.encode("ascii"), 0, 0, 0):
            _log.warning(
                "cannot name the process; a probe that reads its name will not find it ready",
                extra=fields(name=title, error=os.strerror(ctypes.get_errno())),
            )
