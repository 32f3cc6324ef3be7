"""Waits for a kubelet that a plugin can register with, and says what stands in the way."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from usbplugin.kubelet.directory import Incarnation
    from usbplugin.kubelet.registration import Registrar

_log = logging.getLogger(__name__)

_SAID_AGAIN_AFTER = 300.0
LOOK_INTERVAL = 10.0
"""Seconds between looks at what stands in the way: nothing else tells of new permissions."""


class Waiting:
    """Looks for the kubelet of one resource."""

    def __init__(self, resource: str, registrar: Registrar) -> None:
        """Look where ``registrar`` would register."""
        self._resource = resource
        self._registrar = registrar
        self._said = ""
        self._said_at = 0.0

    def look(self) -> Incarnation | None:
        """The kubelet; None if there is none, or it cannot be reached, which is said."""
        problem = self._registrar.directory.problem
        kubelet = None if problem else self._registrar.kubelet()
        if kubelet is not None:
            return kubelet
        reason = problem or "no kubelet"
        now = time.monotonic()
        if reason != self._said or (problem and now >= self._said_at + _SAID_AGAIN_AFTER):
            self._said, self._said_at = reason, now
            self._say(problem)
        return None

    def _say(self, problem: str) -> None:
        if problem:
            _log.error(
                "cannot register: there can be no socket in the kubelet's directory",
                extra=fields(
                    resource=self._resource,
                    reason=problem,
                    hint="--kubelet-dir (--registry-dir for the plugin watcher) names it",
                ),
            )
            return
        _log.info(
            "waiting for the kubelet",
            extra=fields(resource=self._resource, socket=self._registrar.directory.kubelet_socket),
        )
