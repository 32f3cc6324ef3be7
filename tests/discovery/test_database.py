from __future__ import annotations

import os
import select
import sys
from typing import TYPE_CHECKING

import pytest

from usbplugin.discovery.database import DatabaseWatch, udevd_has_written

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.mkdir()
    return path


@pytest.fixture
def watch(directory: Path) -> Iterator[DatabaseWatch]:
    watch = DatabaseWatch(str(directory))
    yield watch
    watch.close()


def write(directory: Path, name: str) -> None:
    """As udevd does it."""
    temporary = directory / f".#{name}abcdef"
    temporary.write_text("I:1\n")
    temporary.rename(directory / name)


def is_readable(watch: DatabaseWatch) -> bool:
    return bool(select.select([watch], [], [], 0)[0])


def test_udevd_is_recognised_by_what_it_has_written(directory: Path) -> None:
    for _ in range(2):
        assert not udevd_has_written(str(directory))
        write(directory, "c188:0")
        assert udevd_has_written(str(directory))
        (directory / "c188:0").unlink()
        directory.rmdir()
        assert not udevd_has_written(str(directory))
        directory.mkdir()


def test_written_and_deleted_entries_are_reported(watch: DatabaseWatch, directory: Path) -> None:
    assert watch.refresh()
    assert not is_readable(watch)
    write(directory, "c188:0")
    write(directory, "c166:1")
    assert is_readable(watch)
    assert watch.changed() == {"c188:0", "c166:1"}
    (directory / "c188:0").unlink()
    assert watch.changed() == {"c188:0"}
    assert watch.changed() == set()


def test_unfinished_entries_are_not_reported(watch: DatabaseWatch, directory: Path) -> None:
    watch.refresh()
    (directory / ".#c188:0abcdef").write_text("I:1\n")
    assert not is_readable(watch)


def test_a_directory_created_later_or_recreated_is_watched_from_then_on(
    watch: DatabaseWatch, directory: Path
) -> None:
    directory.rmdir()
    assert not watch.refresh()
    for _ in range(2):
        directory.mkdir()
        assert watch.refresh()
        write(directory, "c188:0")
        assert watch.changed() == {"c188:0"}
        (directory / "c188:0").unlink()
        directory.rmdir()
        assert watch.changed() is None, "who knows what happened there"
        assert not watch.refresh()


def test_after_a_queue_overflow_anything_may_have_changed(
    watch: DatabaseWatch, directory: Path
) -> None:
    watch.refresh()
    entry = directory / "c188:0"
    other = directory / "c188:1"
    entry.write_text("")
    with open("/proc/sys/fs/inotify/max_queued_events", encoding="ascii") as file:
        limit = int(file.read())
    for _ in range(limit):  # equal events in a row are one: take turns
        os.rename(entry, other)
        os.rename(other, entry)
    assert watch.changed() is None
    write(directory, "c188:2")
    assert watch.changed() == {"c188:2"}
