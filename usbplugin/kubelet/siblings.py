"""Other instances of this plugin, as their sockets in the kubelet's directories show them.

Two on one node are normal: an upgrade that surges, a second install, somebody's look by hand. The
kubelet knows one of them per resource, tells none of them that it has another, and forgets that one
with whichever of them ends first. So they have to know of each other.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import socket
import stat
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING, NamedTuple

from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from pathlib import Path

_log = logging.getLogger(__name__)

_NAME = re.compile(r"usbplugin-[0-9a-f]{8}-(?:([0-9a-f]{12})([0-9a-f]{4}))?([0-9a-f]+)\.sock")
_REGISTERED = 0o600
"""A socket's mode once the kubelet has accepted it; one is made with more than that."""
_STANDING_BY = 0o640
"""A socket's mode once its instance says nothing any more on the stream that it has."""
_NOT_YET = 0.05
"""Seconds between looks at an instance that has not registered yet."""
_LOOKS_AT_NEWBORN = 20
_LONGEST_PAUSE = 1.0
_SHORTEST_VIGIL = 0.2


class Instance(NamedTuple):
    """One life of usbplugin on this node. Of two, the greater is the newer."""

    began: int
    """Milliseconds since the boot, asleep or not (CLOCK_BOOTTIME): the same for all containers."""
    token: str
    """Four hexadecimal digits of chance, for two that began together."""

    @classmethod
    def begin(cls) -> Instance:
        """A new one."""
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
        return cls(now, secrets.token_hex(2))

    def __str__(self) -> str:
        """As it stands in the names of its sockets."""
        return f"{self.began:012x}{self.token}"


class Sibling(NamedTuple):
    """Another instance's socket, on which somebody answers."""

    path: Path
    instance: Instance | None
    """None for version 0.1, which does not tell, and stands by for nobody."""
    is_registered: bool
    """Whether the kubelet has accepted it, be it that another one has taken its place."""
    stands_by: bool
    changed_at: int
    """When all that became so: nanoseconds of the file system's clock."""


class View(NamedTuple):
    """What one look at the siblings shows."""

    alive: frozenset[Path]
    """The sockets of all of them."""
    departures: int
    """How many of version 0.1 have ended so far."""
    newer: tuple[Sibling, ...]
    """Those that the kubelet accepted, and that we have to stand by for."""
    displaces_us: bool
    """Whether an older one has registered since we did, so that we have to do so again."""
    silent: frozenset[tuple[Path, int]]
    """The older ones that stand by, and since when: until then, what they said counted."""

    def harm_since(self, before: View) -> str:
        """Why the kubelet does not know us any longer, which it did ``before``; empty if it may."""
        if self.displaces_us:
            return "an older instance has registered since"
        if self.departures > before.departures:
            return "an instance of version 0.1 has ended, and the kubelet with it forgot us"
        return ""


class Siblings:
    """Who else serves one resource."""

    def __init__(
        self,
        own: Instance,
        prefix: str,
        directories: Iterable[Path],
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """Look in ``directories`` for sockets whose names begin with ``prefix``.

        Args:
            own: Who we are.
            prefix: Of the resource.
            directories: Where instances have their sockets.
            on_change: Called in the event loop when the next ``look`` may show something else,
                unless a directory shows that anyway.
        """
        self._own = own
        self._prefix = prefix
        self._directories = tuple(dict.fromkeys(directories))
        self._on_change = on_change
        self._vigils: dict[Path, asyncio.Task[None]] = {}
        self._silent: set[Path] = set()
        """Sockets on which nobody answered when they were first seen."""
        self._known: dict[Path, list[Path]] = {}
        """What was last seen in each directory."""
        self._of_0_1: set[Path] = set()
        self._departures = 0

    def all(self) -> tuple[Sibling, ...]:
        """The other instances that are alive."""
        return tuple(one for path in self._paths() if (one := _sibling(path)) is not None)

    @property
    def is_any_registered(self) -> bool:
        """Whether one of them is registered."""
        return any(one.is_registered for one in self.all())

    def look(self, since: int | None) -> View:
        """See who is there, and follow those that matter.

        Args:
            since: When we registered, as ``mark_registered`` says; None if we are not registered.
                Version 0.1 takes a resource over whenever it registers.
        """
        alive = []
        self._silent &= (paths := set(self._paths()))
        for path in sorted(paths):
            if (one := _sibling(path)) is not None:
                alive.append(one)
            elif path not in self._silent:
                self._silent.add(path)
                self._follow(path, _birth(path))
        newer = []
        displaces_us = False
        silent = set()
        for one in alive:
            if one.instance is not None and one.instance < self._own:
                if one.stands_by:
                    silent.add((one.path, one.changed_at))
                elif one.is_registered:
                    self._follow(one.path, _change(one))
                    displaces_us |= since is not None and one.changed_at > since
                continue
            # Version 0.1 registers soon after its socket was made, to which this time belongs.
            is_later = since is not None and one.changed_at >= since
            self._follow(one.path, _vigil(one))
            if one.is_registered and (one.instance is not None or is_later):
                newer.append(one)
        here = frozenset(one.path for one in alive)
        # Also one that is just beginning: it may have ended before it was seen to answer.
        of_0_1 = {path for path in here | self._vigils.keys() if _instance_of(path) is None}
        self._departures += len(self._of_0_1 - of_0_1)
        self._of_0_1 = of_0_1
        return View(here, self._departures, tuple(newer), displaces_us, frozenset(silent))

    def stop(self) -> None:
        """Follow nobody any longer."""
        for vigil in self._vigils.values():
            vigil.cancel()
        self._vigils.clear()

    def _paths(self) -> list[Path]:
        return [path for directory in self._directories for path in self._sockets_in(directory)]

    def _sockets_in(self, directory: Path) -> list[Path]:
        try:
            names = sorted(os.listdir(directory))  # noqa: PTH208 -- raises what hinders it
        except (FileNotFoundError, NotADirectoryError):
            names = []
        except OSError:  # no file descriptors are left, say: then nobody is known to have gone
            return self._known.get(directory, [])
        self._known[directory] = [
            path
            for name in names
            if name.startswith(self._prefix) and _instance_of(path := directory / name) != self._own
        ]
        return self._known[directory]

    def _follow(self, path: Path, until_it_changes: Coroutine[object, object, None]) -> None:
        if path in self._vigils:
            until_it_changes.close()
            return
        vigil = asyncio.create_task(until_it_changes)
        vigil.add_done_callback(lambda _: self._ended(path))
        self._vigils[path] = vigil

    def _ended(self, path: Path) -> None:
        if self._vigils.pop(path, None) is not None:
            self._on_change()


def mark_registered(path: Path) -> int | None:
    """Let siblings see that the kubelet has accepted this socket.

    Returns:
        Since when it is so: nanoseconds of the file system's clock. None if the socket is gone.
    """
    _mark(path, _REGISTERED)
    return _changed_at(path)


def mark_standing_by(path: Path) -> None:
    """Let siblings see that nothing is said any more on the stream of this socket."""
    _mark(path, _STANDING_BY)


def _mark(path: Path, mode: int) -> None:
    try:
        path.chmod(mode)
    except FileNotFoundError:
        pass  # its session will notice
    except OSError as error:
        _log.warning(
            "cannot tell other instances how this one stands",
            extra=fields(socket=path, error=error),
        )


def is_dead(path: Path) -> bool:
    """Whether nobody listens on a socket any more."""
    try:
        with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
            probe.settimeout(0)
            probe.connect(str(path))
    except ConnectionRefusedError:
        return True
    except OSError:  # so many are waiting to be answered, or we have no file descriptor left
        return False
    return False


def _instance_of(path: Path) -> Instance | None:
    match = _NAME.fullmatch(path.name)
    return Instance(int(match[1], 16), match[2]) if match and match[1] else None


def _sibling(path: Path) -> Sibling | None:
    """What a socket tells; None if it has gone, or nobody is there."""
    try:
        status = path.lstat()
    except OSError:
        return None
    if not stat.S_ISSOCK(status.st_mode) or is_dead(path):
        return None
    instance = _instance_of(path)
    mode = stat.S_IMODE(status.st_mode)
    is_registered = instance is None or mode in (_REGISTERED, _STANDING_BY)
    return Sibling(path, instance, is_registered, mode == _STANDING_BY, status.st_ctime_ns)


def _changed_at(path: Path) -> int | None:
    try:
        return path.lstat().st_ctime_ns
    except OSError:
        return None


async def _birth(path: Path) -> None:
    """Return when somebody answers on a socket, or soon: one that is not listened on yet is new."""
    for _ in range(_LOOKS_AT_NEWBORN):
        await asyncio.sleep(_NOT_YET)
        if _sibling(path) is not None:
            return


async def _change(sibling: Sibling) -> None:
    """Return when an instance ends or stands by, which takes it a moment, unless it hangs."""
    pause = _NOT_YET
    while (now := _sibling(sibling.path)) is not None and now.changed_at == sibling.changed_at:
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


async def _vigil(sibling: Sibling) -> None:
    """Return when an instance ends, whatever way, or registers if it has not yet.

    A connection ends with its peer, so there is nothing to be polled.
    """
    while not sibling.is_registered:
        await asyncio.sleep(_NOT_YET)
        if (now := _sibling(sibling.path)) is None or now.is_registered:
            return
    while (seen := _sibling(sibling.path)) is not None and seen.changed_at == sibling.changed_at:
        with suppress(OSError):
            reader, writer = await asyncio.open_unix_connection(str(sibling.path))
            try:
                while await reader.read(4096):
                    pass
            finally:
                writer.close()
        if _sibling(sibling.path) is None:
            return
        # It is alive: servers end a connection on which nothing is said.
        await asyncio.sleep(_SHORTEST_VIGIL)
