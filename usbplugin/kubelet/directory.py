"""The kubelet's device plugin directory: which kubelet is there, and which sockets are left over.

It only looks and tidies up; reacting to a new kubelet is the session's job.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import os
import secrets
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from usbplugin.errors import KubeletError
from usbplugin.foundation.watch import follow
from usbplugin.kubelet.siblings import Instance, Siblings, is_dead
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_log = logging.getLogger(__name__)

CHANNEL_OPTIONS = (
    # gRPC's C core derives an authority from a Unix socket's path that Go servers refuse.
    ("grpc.default_authority", "localhost"),
    # A shared subchannel would carry over the back-off from an old kubelet to a new one.
    ("grpc.use_local_subchannel_pool", 1),
)

_KUBELET_SOCKET = "kubelet.sock"
_PREFIX = "usbplugin-"
_LONGEST_SOCKET_PATH = 107
"""sun_path holds 108 bytes, including the final NUL (unix(7))."""


class Incarnation(NamedTuple):
    """One life of the kubelet's socket; the ctime, because a new socket may reuse the inode."""

    inode: int
    ctime_ns: int


class PluginDirectory:
    """The directory in which the kubelet and its plugins find each other's sockets."""

    def __init__(
        self, path: Path, instance: Instance | None = None, others: Sequence[Path] = ()
    ) -> None:
        """Use ``path``, which need not exist yet.

        Args:
            path: Where our sockets go.
            instance: Who we are; a new instance if not given.
            others: Further directories in which another instance may have its sockets.
        """
        self.path = path
        self.kubelet_socket = path / _KUBELET_SOCKET
        self._instance = instance or Instance.begin()
        self._all = (path, *others)

    def kubelet(self) -> Incarnation | None:
        """The kubelet's current socket; None if there is none."""
        try:
            status = self.kubelet_socket.lstat()
        except OSError:
            return None
        if not stat.S_ISSOCK(status.st_mode):
            return None
        return Incarnation(status.st_ino, status.st_ctime_ns)

    @property
    def problem(self) -> str:
        """Why no plugin can have its socket there; empty if none is known."""
        try:
            if not stat.S_ISDIR(self.path.stat().st_mode):
                return f"{self.path} is not a directory"
        except OSError as error:
            return f"{self.path}: {error.strerror}"
        if not os.access(self.path, os.W_OK | os.X_OK, effective_ids=True):
            reason = errno.EROFS if os.statvfs(self.path).f_flag & os.ST_RDONLY else errno.EACCES
            return f"cannot write to {self.path}: {os.strerror(reason)}"
        return ""

    def new_socket(self, resource: str) -> Path:
        """A path never used before, for one generation of a resource's plugin.

        Raises:
            KubeletError: the path is too long for a socket.
        """
        name = f"{_prefix(resource)}{self._instance}{secrets.token_hex(2)}.sock"
        path = self.path / name
        if len(str(path).encode()) > _LONGEST_SOCKET_PATH:
            raise KubeletError(
                f"{path} is longer than a Unix socket's path may be ({_LONGEST_SOCKET_PATH}"
                " bytes): choose a shorter --kubelet-dir"
            )
        return path

    def remove_dead_sockets(self, resource: str) -> None:
        """Delete the sockets of killed instances; leave any that somebody still answers on."""
        for path in self.path.glob(f"{_prefix(resource)}*.sock"):
            if not is_dead(path):
                continue
            # For microseconds between bind and listen, a live one looks dead. Its instance would
            # notice that the socket is gone and start a new generation.
            if self.remove_socket(path):
                _log.info(
                    "dead instance's socket removed",
                    extra=fields(resource=resource, socket=path),
                )

    def siblings(self, resource: str, on_change: Callable[[], None] = lambda: None) -> Siblings:
        """The other instances that serve a resource; ``on_change`` as they take it."""
        return Siblings(self._instance, _prefix(resource), self._all, on_change)

    @property
    def is_shared(self) -> bool:
        """Whether another instance is alive, whatever it serves."""
        return bool(Siblings(self._instance, _PREFIX, self._all).all())

    def strangers(self) -> frozenset[tuple[str, int, int]]:
        """The sockets of other plugins than ours, so that a change can be seen."""
        found = set()
        try:
            entries = list(os.scandir(self.path))
        except OSError:
            return frozenset()
        for entry in entries:
            if entry.name.startswith(_PREFIX) or entry.name == _KUBELET_SOCKET:
                continue
            with suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISSOCK(status.st_mode):
                    found.add((entry.name, status.st_ino, status.st_ctime_ns))
        return frozenset(found)

    def remove_socket(self, path: Path) -> bool:
        """Delete a socket, unless gRPC or the kubelet already has; False if that failed."""
        try:
            path.unlink(missing_ok=True)
        except OSError as error:  # harmless: nobody answers there, and no name is used twice
            _log.warning("cannot remove socket", extra=fields(socket=path, error=error))
            return False
        return True

    async def watch(self, on_change: Callable[[], None]) -> None:
        """Call ``on_change`` in this event loop whenever a look at the directory is due."""
        async for _ in follow(self.path, asyncio.Event()):
            on_change()


def unix_target(path: Path) -> str:
    """A socket's gRPC target; gRPC parses it as a URI, so special characters need quoting."""
    return f"unix:{quote(str(path))}"


def _prefix(resource: str) -> str:
    return f"{_PREFIX}{hashlib.sha256(resource.encode()).hexdigest()[:8]}-"
