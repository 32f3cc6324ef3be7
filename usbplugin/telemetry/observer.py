"""How the kubelet side reports what it does: an interface, and an observer that does nothing.

Its methods are called in the event loop, after the fact. An observer makes no decisions.
"""

from __future__ import annotations


class Observer:
    """Told what happens between us and the kubelet; this one ignores it."""

    def kubelet_called(self, resource: str, method: str, outcome: str, seconds: float) -> None:
        """A call from the kubelet was answered.

        Args:
            resource: The resource whose plugin was called.
            method: The API's name for it, e.g. ``Allocate``.
            outcome: ``ok``, or the gRPC status's name in lower case.
            seconds: From the call's arrival to its answer.
        """

    def streamed(self, resource: str, seconds: float) -> None:
        """A change was written to the kubelet's stream, ``seconds`` after a source noticed it."""

    def generation_began(self, resource: str, *, kubelet_is_new: bool) -> None:
        """A session serves on a new socket, perhaps because the kubelet was restarted."""

    def registered(self, resource: str, *, accepted: bool) -> None:
        """A registration was accepted or failed."""


UNOBSERVED = Observer()
