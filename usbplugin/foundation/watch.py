"""Reports changes to a directory's entries, even if the directory is removed and recreated.

A report is only a hint. Callers look for themselves when called back, and periodically too:
inotify(7) queues overflow, watches die with their directory, and instances run out.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer

from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from watchdog.observers.api import BaseObserver, ObservedWatch

_log = logging.getLogger(__name__)

# Without a filter, reading the directory would itself raise an event (IN_OPEN), and so on forever.
# All watches use one mask: inotify_add_watch(2) replaces the mask of a path already watched.
_ALWAYS: list[type[FileSystemEvent]] = [
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileDeletedEvent,
    FileMovedEvent,
]
_ENTRIES = [*_ALWAYS, FileCreatedEvent]
# A newly created file is still empty, or not yet complete.
_CONTENTS = [*_ALWAYS, FileClosedEvent]

_MOST_PASSES = 8
_CHECK_INTERVAL = 10.0
_BLIND_CHECK_INTERVAL = 1.0


class DirectoryWatch:
    """Calls back when entries of ``directory`` are created, deleted or renamed (or written).

    An entry moved out of the directory is noticed half a second late: watchdog waits that long for
    the other half of a rename.
    """

    def __init__(
        self, directory: Path, on_change: Callable[[], None], *, contents: bool = False
    ) -> None:
        """Prepare to watch.

        Args:
            directory: Need not exist yet. If it is reached by a link, that the link leads elsewhere
                is noticed by the next ``refresh``.
            on_change: Runs in watchdog's thread and must return at once.
            contents: Report a file once it has been written, rather than when it is created.
        """
        self._events = _CONTENTS if contents else _ENTRIES
        self._directory = directory.absolute()  # or it might have no parent
        self._target = self._directory
        self._on_change = on_change
        self._observer: BaseObserver | None = None
        self._armed: dict[Path, tuple[ObservedWatch, _Inode]] = {}
        self._deleted: deque[Path] = deque()
        self._complained = False
        self.renewed = False
        """Whether the last ``refresh`` started or repaired a watch. If so, look again: earlier
        changes may have been missed."""

    def refresh(self) -> bool:
        """Start watching, or repair broken watches. Call it before each look at the directory.

        Returns:
            False if changes may be missed, so that the caller must look more often.
        """
        try:
            self._refresh()
        except OSError as error:
            self.stop()
            if not self._complained:
                self._complained = True
                _log.warning(
                    "inotify is not available; polling every second instead",
                    extra=fields(
                        directory=self._directory,
                        error=error,
                        hint="raise fs.inotify.max_user_instances or max_user_watches",
                    ),
                )
            return False
        self._complained = False
        return True

    def stop(self) -> None:
        """Stop watching; ``refresh`` starts again."""
        observer, self._observer = self._observer, None
        self._armed.clear()
        if observer is not None:
            observer.stop()  # stops the remaining threads if one has died
            observer.join()

    def _refresh(self) -> None:
        if self._observer is not None and not _is_alive(self._observer):
            _log.warning(
                "a directory watch's thread died; starting a new watch",
                extra=fields(directory=self._directory),
            )
            self.stop()
        if self._observer is None:
            observer = Observer()
            observer.start()
            self._observer = observer
        # Anything that appears or disappears while watches are being set is seen by the next pass.
        self.renewed = False
        for _ in range(_MOST_PASSES):
            if not self._rearm(self._observer):
                break
            self.renewed = True

    def _heed(self, watched: Path, event: FileSystemEvent) -> None:
        """Handle an event in watchdog's thread; below an ancestor, only directories matter."""
        if isinstance(event, DirDeletedEvent) and event.src_path == str(watched):
            # Its watch is dead, even if a new directory already has its name and inode.
            self._deleted.append(watched)
        elif watched != self._target and not event.is_directory:
            return
        self._on_change()

    def _rearm(self, observer: BaseObserver) -> bool:
        """Bring the watches up to date; return whether anything had to change."""
        # watchdog watches a link itself (IN_DONT_FOLLOW), where nothing ever happens.
        self._target = target = self._directory.resolve()
        # The nearest existing ancestor tells when the directory comes back.
        ancestor = next((path for path in target.parents if path.is_dir()), Path("/"))
        wanted = {path for path in (target, ancestor) if path.is_dir()}
        alive = {emitter.watch for emitter in observer.emitters if _is_alive(emitter)}
        useless = {
            path
            for path, (watch, inode) in self._armed.items()
            if path not in wanted or watch not in alive or _inode(path) != inode
        }
        while self._deleted:
            useless |= {self._deleted.popleft()} & self._armed.keys()
        for path in useless:
            observer.unschedule(self._armed.pop(path)[0])
        missing = wanted - self._armed.keys()
        for path in missing:
            inode = _inode(path)
            with suppress(FileNotFoundError):  # gone again: the next pass will see that
                watch = observer.schedule(
                    _Handler(path, self._heed), str(path), event_filter=self._events
                )
                self._armed[path] = (watch, inode)
        return bool(useless or missing)


def _is_alive(part: Thread) -> bool:
    """Whether a watchdog thread is alive, along with the threads that feed it."""
    return part.is_alive() and all(
        other.is_alive() for other in vars(part).values() if isinstance(other, Thread)
    )


_Inode = tuple[int, int, int] | None


def _inode(path: Path) -> _Inode:
    """Identifies what a watch is on; f_fsid, because a remount may repeat the other two numbers."""
    try:
        status = os.stat(path)  # noqa: PTH116 -- follows links, as the watch does
        return status.st_dev, status.st_ino, os.statvfs(path).f_fsid
    except FileNotFoundError:
        return None


class _Handler(FileSystemEventHandler):
    """Forwards every event, with the watched path it came from."""

    def __init__(self, path: Path, heed: Callable[[Path, FileSystemEvent], None]) -> None:
        self._path = path
        self._heed = heed

    def on_any_event(self, event: FileSystemEvent) -> None:
        self._heed(self._path, event)


async def follow(
    directory: Path, changed: asyncio.Event, *, contents: bool = False
) -> AsyncIterator[None]:
    """Yield whenever a look at ``directory`` is due: at once, after changes, and periodically.

    Args:
        directory: Need not exist yet.
        changed: Set on a change; callers may set it too, to request a look.
        contents: As for ``DirectoryWatch``.
    """
    loop = asyncio.get_running_loop()

    def wake() -> None:
        loop.call_soon_threadsafe(changed.set)

    watch = DirectoryWatch(directory, wake, contents=contents)
    try:
        while True:
            changed.clear()
            live = watch.refresh()
            yield
            with suppress(TimeoutError):
                async with asyncio.timeout(_CHECK_INTERVAL if live else _BLIND_CHECK_INTERVAL):
                    await changed.wait()
    finally:
        watch.stop()
