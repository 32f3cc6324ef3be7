"""Tells when a directory's entries change, however often the directory itself goes and comes.

A hint, never the truth: callers look for themselves when called back, and now and then besides,
for inotify(7) queues overflow, watches die with their directory, and instances run out.
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

# Without a filter, reading the directory would itself be an event (IN_OPEN), and so without end.
# All watches must ask for the same: inotify_add_watch(2) replaces the mask of a path it knows.
_ALWAYS: list[type[FileSystemEvent]] = [
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileDeletedEvent,
    FileMovedEvent,
]
_ENTRIES = [*_ALWAYS, FileCreatedEvent]
# A file that is only just created is empty yet, and an empty one may mean something.
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
            directory: Need not exist yet.
            on_change: Runs in watchdog's thread and must return at once.
            contents: Whether it is files that matter: then they are told of once they have been
                written, and not when they are created.
        """
        self._events = _CONTENTS if contents else _ENTRIES
        self._directory = directory.absolute()  # or it might have no parent
        self._on_change = on_change
        self._observer: BaseObserver | None = None
        self._armed: dict[Path, tuple[ObservedWatch, _Inode]] = {}
        self._deleted: deque[Path] = deque()
        self._complained = False
        self.renewed = False
        """Whether the last ``refresh`` had to begin or mend something: look, for until then changes
        may have gone unnoticed."""

    def refresh(self) -> bool:
        """Start watching, or mend what broke since. Call it before each look at the directory.

        Returns:
            False if changes may now go unnoticed, so that the caller has to look more often.
        """
        try:
            self._refresh()
        except OSError as error:
            self.stop()
            if not self._complained:
                self._complained = True
                _log.warning(
                    "inotify is not available; looking every second instead",
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
            observer.stop()  # what is left of it, if one of its threads has died
            observer.join()

    def _refresh(self) -> None:
        if self._observer is not None and not _is_alive(self._observer):
            _log.warning(
                "a watching thread has died; watching anew",
                extra=fields(directory=self._directory),
            )
            self.stop()
        if self._observer is None:
            observer = Observer()
            observer.start()
            self._observer = observer
        # What comes or goes while watches are being set is seen by the next pass.
        self.renewed = False
        for _ in range(_MOST_PASSES):
            if not self._rearm(self._observer):
                break
            self.renewed = True

    def _heed(self, watched: Path, event: FileSystemEvent) -> None:
        """In watchdog's thread: of an ancestor, only directories may be what we wait for."""
        if isinstance(event, DirDeletedEvent) and event.src_path == str(watched):
            # Its watch is dead, even if a new directory has got its name and inode by now.
            self._deleted.append(watched)
        elif watched != self._directory and not event.is_directory:
            return
        self._on_change()

    def _rearm(self, observer: BaseObserver) -> bool:
        """Watch what there is to watch; whether anything had to be changed for that."""
        # The nearest ancestor that exists tells when the directory comes back.
        ancestor = next((path for path in self._directory.parents if path.is_dir()), Path("/"))
        wanted = {path for path in (self._directory, ancestor) if path.is_dir()}
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
            with suppress(FileNotFoundError):  # it has gone again: the next pass sees that
                watch = observer.schedule(
                    _Handler(path, self._heed), str(path), event_filter=self._events
                )
                self._armed[path] = (watch, inode)
        return bool(useless or missing)


def _is_alive(part: Thread) -> bool:
    """Whether a thread of watchdog's lives, and so do those that it hears from."""
    return part.is_alive() and all(
        other.is_alive() for other in vars(part).values() if isinstance(other, Thread)
    )


_Inode = tuple[int, int, int] | None


def _inode(path: Path) -> _Inode:
    """What a watch is on: of a file system that was mounted anew, the other two may be the same."""
    try:
        status = os.stat(path)  # noqa: PTH116 -- follows links, as the watch does
        return status.st_dev, status.st_ino, os.statvfs(path).f_fsid
    except FileNotFoundError:
        return None


class _Handler(FileSystemEventHandler):
    """Hands on every event, with the path whose watch it came from."""

    def __init__(self, path: Path, heed: Callable[[Path, FileSystemEvent], None]) -> None:
        self._path = path
        self._heed = heed

    def on_any_event(self, event: FileSystemEvent) -> None:
        self._heed(self._path, event)


async def follow(
    directory: Path, changed: asyncio.Event, *, contents: bool = False
) -> AsyncIterator[None]:
    """Yield whenever a look at ``directory`` is due: at first, after changes, and now and then.

    Args:
        directory: Need not exist yet.
        changed: Set when something changed; to be set by others too who want a look.
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
