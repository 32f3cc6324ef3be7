"""A pod's surroundings for a process: its own network namespace, and no capability at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def pod_command(command: Sequence[str], *, uid: int = 0) -> list[str]:
    """Wrap a command so that it runs as in a pod without hostNetwork and with all caps dropped.

    The loopback device is up. The mounts are the machine's own.
    """
    return [
        *["unshare", "--net", "--"],
        # While there are still the rights to do so.
        *["sh", "-c", 'busybox ip link set lo up && exec "$@"', "sh"],
        *["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"],
        *[f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--"],
        *command,
    ]
