"""Where a session stands, in the words of readiness, ``doctor`` and the status page."""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """Where a session stands."""

    WAITING = "waiting for the kubelet"
    REGISTERING = "registering"
    REGISTERED = "registered, no stream yet"
    STREAMING = "streaming"
    STANDING_BY = "standing by for a newer instance"
    DISPLACED = "another plugin has registered this resource"
    BACKING_OFF = "waiting to try again"
    CLOSED = "closed"
