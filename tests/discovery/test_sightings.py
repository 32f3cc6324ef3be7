"""One life of a name and the next, and what udevd's word counts for; with a made-up sysfs."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.discovery.test_sysfs import FakeSysfs
from usbplugin.discovery import Readiness, sightings
from usbplugin.discovery.libudev import DatabaseEntry
from usbplugin.discovery.sightings import Look, Sightings
from usbplugin.foundation.reads import Reads
from usbplugin.foundation.workers import Workers

if TYPE_CHECKING:
    from pathlib import Path

    from usbplugin.discovery import Port
    from usbplugin.discovery.glance import Glance

NOTHING = DatabaseEntry(initialized=False, initialized_usec=0, links=())
AS_LONG_AS_IT_TAKES = 60.0
LINKS = ("/dev/serial/by-id/usb-mine",)


class FakeUdev:
    """udevd's database, with one entry."""

    def __init__(self) -> None:
        self.entry = NOTHING

    def write(self, usec: int) -> None:
        self.entry = DatabaseEntry(initialized=True, initialized_usec=usec, links=LINKS)

    def database_entry(self, sysfs_path: str) -> DatabaseEntry:
        return self.entry


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Bench:
    """A machine with one port, ttyACM0, and what there is to know of it."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._sysfs = FakeSysfs(root)
        self._class = root / "class"
        self._class.mkdir()
        self._kept = root / "kept"
        self._lives = 0
        self.udevd_runs = True
        self.udev = FakeUdev()
        self.clock = Clock()
        monkeypatch.setattr(sightings, "CLASS", str(self._class))
        monkeypatch.setattr(sightings, "time", self.clock)
        monkeypatch.setattr(sightings, "udevd_has_written", lambda: self.udevd_runs)
        self.reads: Reads[Glance] = Reads(Workers(), lambda: None)
        self.sightings = Sightings(self.udev, 10.0, self.reads)  # type: ignore[arg-type]
        self.sightings.told = True

    def plug(self) -> None:
        tty = self._sysfs.cdc_acm(self._sysfs.device(serial=b"S1"), "ttyACM0")
        (self._class / "ttyACM0").symlink_to(tty)

    def unplug(self) -> None:
        # Kept, for a temporary file system reuses inode numbers where sysfs does not.
        self._lives += 1
        target = (self._class / "ttyACM0").resolve()
        shutil.move(target, self._kept / str(self._lives))
        (self._class / "ttyACM0").unlink()
        shutil.rmtree(self._sysfs.devices)

    def look(self) -> Look:
        (look,) = self.sightings.look(["ttyACM0"], AS_LONG_AS_IT_TAKES)
        return look

    def names(self) -> list[str]:
        looks = self.sightings.look_at_all(lambda _: True, AS_LONG_AS_IT_TAKES)
        return [look.name for look in looks]

    def port(self) -> Port:
        port = self.look().port
        assert port is not None
        return port

    def readiness(self) -> Readiness:
        return self.port().readiness

    def udevd_writes(self, usec: int) -> None:
        self.udev.write(usec)
        assert self.sightings.heard({"c166:0"}) == {"ttyACM0"}

    def udevd_deletes(self) -> None:
        self.udev.entry = NOTHING
        assert self.sightings.heard({"c166:0"}) == {"ttyACM0"}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    (tmp_path / "kept").mkdir()
    return Bench(tmp_path, monkeypatch)


def test_a_port_settles_when_udevd_is_done(bench: Bench) -> None:
    assert bench.look().port is None
    bench.plug()
    assert bench.readiness() is Readiness.SETTLING
    bench.clock.now += 0.05
    bench.udevd_writes(1)
    look = bench.look()
    assert look.port is not None
    assert (look.port.readiness, look.port.links, look.port.initialized_usec) == (
        Readiness.READY,
        LINKS,
        1,
    )
    assert look.noticed == 100.0, "what it waited for is part of how long it took"
    assert bench.sightings.next_look == float("inf")
    bench.clock.now += 5
    assert bench.look().noticed == 105.05


def test_two_lives_of_a_name_and_their_entries_are_told_apart(bench: Bench) -> None:
    bench.plug()
    bench.udev.write(1)
    assert bench.readiness() is Readiness.READY
    bench.unplug()
    bench.plug()  # nobody has looked in between
    look = bench.look()
    assert look.replaced
    assert look.port is not None
    assert (look.port.readiness, look.port.links) == (Readiness.SETTLING, ())
    assert not bench.look().replaced
    bench.udevd_deletes()
    assert bench.readiness() is Readiness.SETTLING
    bench.udevd_writes(2)
    assert bench.readiness() is Readiness.READY


def test_a_late_udevd_entry_about_the_previous_life_does_not_count(bench: Bench) -> None:
    bench.plug()
    bench.udev.write(1)
    bench.look()
    bench.unplug()
    assert bench.look().port is None
    bench.plug()
    bench.look()
    bench.udevd_writes(1)
    bench.clock.now += 0.9
    assert bench.readiness() is Readiness.SETTLING
    bench.udevd_deletes()
    bench.clock.now += 0.9
    assert bench.readiness() is Readiness.SETTLING
    bench.udevd_writes(2)
    assert bench.readiness() is Readiness.READY


def test_a_udevd_that_missed_a_removal_keeps_the_old_entry(bench: Bench) -> None:
    bench.plug()
    bench.udev.write(1)
    bench.look()
    bench.unplug()
    bench.plug()
    bench.look()
    bench.udevd_writes(1)
    assert bench.readiness() is Readiness.SETTLING
    assert bench.sightings.next_look <= bench.clock.now + 1.0
    bench.clock.now += 1.0
    assert bench.sightings.due(bench.clock.now) == {"ttyACM0"}
    assert bench.readiness() is Readiness.READY


def test_a_silent_udevd_is_waited_for_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.plug()
    assert bench.readiness() is Readiness.SETTLING
    bench.clock.now += 10.0
    assert bench.readiness() is Readiness.UNCONFIRMED
    assert bench.sightings.next_look == float("inf")
    bench.unplug()
    bench.plug()
    assert bench.readiness() is Readiness.UNCONFIRMED
    assert [record.getMessage() for record in caplog.records] == [
        "udevd did not finish in time; using the port as sysfs describes it, without links"
    ]
    bench.udevd_writes(1)
    assert bench.readiness() is Readiness.READY
    bench.unplug()
    bench.plug()
    assert bench.readiness() is Readiness.SETTLING, "it is at work again"


def test_a_busy_udevd_is_waited_for_each_time(bench: Bench) -> None:
    bench.plug()
    bench.look()
    bench.clock.now += 5.0
    bench.sightings.heard({"b8:0"})
    bench.clock.now += 5.0
    assert bench.readiness() is Readiness.UNCONFIRMED
    bench.unplug()
    bench.plug()
    assert bench.readiness() is Readiness.SETTLING


def test_without_udevd_sysfs_is_used_at_once(bench: Bench) -> None:
    bench.udevd_runs = False
    bench.plug()
    assert bench.readiness() is Readiness.UNCONFIRMED
    bench.udevd_runs = True
    bench.udevd_writes(1)
    assert bench.readiness() is Readiness.READY


def test_looks_are_frequent_only_without_notifications(bench: Bench) -> None:
    bench.plug()
    bench.look()
    assert bench.sightings.next_look == pytest.approx(bench.clock.now + 0.25)
    bench.unplug()
    bench.sightings.told = False
    bench.plug()
    bench.look()
    looks = 0
    while bench.readiness() is Readiness.SETTLING:
        bench.clock.now = bench.sightings.next_look
        looks += 1
    assert bench.clock.now == pytest.approx(110.0)
    assert 30 < looks < 60


def test_any_entry_may_have_changed_after_an_overflow(bench: Bench) -> None:
    bench.plug()
    bench.look()
    assert bench.sightings.heard({"c188:0"}) == set()
    assert bench.sightings.heard(None) == {"ttyACM0"}


def test_a_listing_forgets_what_is_not_there(bench: Bench) -> None:
    bench.plug()
    assert bench.names() == ["ttyACM0"]
    bench.unplug()
    assert bench.names() == []
    assert bench.sightings.heard(None) == set()
