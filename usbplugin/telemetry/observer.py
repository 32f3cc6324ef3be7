"""What the kubelet's side tells whoever counts it: a vocabulary, and a listener that does nothing.

Called in the event loop, after the thing told of was done. An observer decides nothing.
"""

from __future__ import annotations


class Observer:
    """Hears what happens between us and the kubelet; this one pays no attention."""

    def kubelet_called(self, resource: str, method: str, outcome: str, seconds: float) -> None:
        """The kubelet called ``method`` of a resource's plugin, and was answered.

        Args:
            resource: Whose plugin was called.
            method: As the API names it, e.g. ``Allocate``.
            outcome: ``ok``, or the name of the gRPC status in lower case.
            seconds: From the call's arrival to its answer.
        """

    def streamed(self, resource: str, seconds: float) -> None:
        """A change was written to the kubelet's stream, so long after a source had noticed it."""

    def generation_began(self, resource: str, *, kubelet_is_new: bool) -> None:
        """A session serves on a new socket; the kubelet may be another one than the last."""

    def registered(self, resource: str, *, accepted: bool) -> None:
        """A registration was accepted or failed."""


UNOBSERVED = Observer()
