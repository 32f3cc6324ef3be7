"""A device that does not answer: what is said of its port, and that nobody else waits for it."""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from select import select
from typing import TYPE_CHECKING

import pytest

from tests.discovery.test_directory import plug, pull
from tests.discovery.test_sightings import Clock, FakeUdev
from tests.discovery.test_sysfs import FakeSysfs
from usbplugin.discovery import (
    AllPorts,
    DirectorySource,
    Port,
    PortGone,
    PortPresent,
    Readiness,
    directory,
    hanging,
    sightings,
    udev,
)
from usbplugin.discovery.libudev import DatabaseEntry
from usbplugin.discovery.sightings import Look, Sightings
from usbplugin.foundation.reads import Reads
from usbplugin.foundation.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from usbplugin.discovery import Fact, Source
    from usbplugin.discovery.glance import Glance

LONG = 30.0
ME, OTHER = "ttyACM0", "ttyACM1"
REASON = "/dev/ttyACM0 does not answer: reading its attributes has taken 1.5 s and goes on"


class HangingUdev(FakeUdev):
    """udevd's database, where reading the entry of a device may hang."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: dict[str, threading.Event] = {}
        self.waiting: queue.Queue[str] = queue.Queue()

    def hang(self, name: str) -> None:
        self.gates[name] = threading.Event()

    def answer(self, name: str) -> None:
        self.gates.pop(name).set()

    def database_entry(self, sysfs_path: str) -> DatabaseEntry:
        entry = self.entry
        if gate := self.gates.get(name := os.path.basename(sysfs_path)):
            self.waiting.put(name)
            assert gate.wait(LONG)
        return entry


class PatientReads(Reads["Glance"]):
    """Waits for what will be read, and not at all for what hangs, however busy the machine is."""

    def __init__(self) -> None:
        self.done: queue.Queue[None] = queue.Queue()
        self.hanging: set[str] = set()
        self.workers = Workers(most=3)
        super().__init__(self.workers, lambda: self.done.put(None))

    def read(self, reads: Mapping[str, Glance], patience: float) -> dict[str, Glance]:
        held = {name: read for name, read in reads.items() if name in self.hanging}
        free = {name: read for name, read in reads.items() if name not in self.hanging}
        return {**super().read(held, 0.0), **super().read(free, LONG)}


class Bench:
    """A machine with ports, of which some may hang."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._sysfs = FakeSysfs(root)
        self._class = root / "class"
        self._class.mkdir()
        self._kept = root / "kept"
        self._kept.mkdir()
        self.udev = HangingUdev()
        self.udev.write(1)
        self.clock = Clock()
        monkeypatch.setattr(sightings, "CLASS", str(self._class))
        monkeypatch.setattr(sightings, "time", self.clock)
        monkeypatch.setattr(sightings, "udevd_has_written", lambda: True)
        self.reads = PatientReads()
        self.sightings = Sightings(self.udev, 10.0, self.reads)  # type: ignore[arg-type]

    def device(self, name: str) -> Path:
        return self._sysfs.devices / f"pci0000:00/0000:00:14.0/usb1/1-{name[-1]}"

    def plug(self, name: str, serial: str = "S") -> None:
        device = self._sysfs.device(chain=name[-1], serial=serial.encode())
        (self._class / name).symlink_to(self._sysfs.cdc_acm(device, name))

    def unplug(self, name: str) -> None:
        # Kept, for a temporary file system reuses inode numbers where sysfs does not.
        shutil.move(self.device(name), self._kept / f"{name}-{time.monotonic_ns()}")
        (self._class / name).unlink()

    def hang(self, name: str) -> None:
        """A look at a device that is known, which waits for udevd's entry to be read."""
        self.udev.hang(name)
        self.reads.hanging.add(name)
        self.look(name)
        assert self.udev.waiting.get(timeout=LONG) == name

    def hang_with_serial(self, name: str) -> threading.Thread:
        """Reading the serial number of what is plugged in waits until the thread is started."""
        file = self.device(name) / "serial"
        file.unlink()
        os.mkfifo(file)
        self.reads.hanging.add(name)
        return threading.Thread(target=file.write_text, args=("S\n",), daemon=True)

    def answer(self, name: str) -> None:
        self.udev.answer(name)
        self.answered(name)

    def answered(self, name: str) -> None:
        self.reads.hanging.discard(name)
        self.reads.done.get(timeout=LONG)

    def look(self, *names: str) -> list[Look]:
        return self.sightings.look(names)

    def port(self, name: str = ME) -> Port:
        (look,) = self.look(name)
        assert look.port is not None
        return look.port

    def listed(self) -> dict[str, str]:
        """The faults of all ports, but for nodes that no made-up tty has."""
        looks = self.sightings.look_at_all(lambda _: True)
        return {look.name: said(look.port) for look in looks if look.port is not None}


def said(port: Port) -> str:
    return port.fault if "does not answer" in port.fault else ""


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    bench = Bench(tmp_path, monkeypatch)
    yield bench
    for gate in bench.udev.gates.values():
        gate.set()


def test_one_that_hangs_is_as_it_was_and_then_faulty_and_then_well(bench: Bench) -> None:
    bench.plug(ME)
    before = bench.port()
    bench.clock.now += 10
    bench.hang(ME)
    assert bench.port() == before
    assert bench.sightings.next_look == 111.5
    bench.clock.now = 111.49
    assert bench.port() == before
    assert bench.sightings.due(bench.clock.now) == set()
    bench.clock.now = 111.5
    assert bench.sightings.due(bench.clock.now) == {ME}
    (look,) = bench.look(ME)
    assert look.port is not None
    assert look.port.fault == REASON
    assert (look.noticed, look.replaced) == (111.5, False)
    bench.clock.now += 500
    assert bench.port() == look.port, "the reason is news once"
    assert bench.sightings.next_look == float("inf")
    bench.answer(ME)
    assert bench.sightings.due(bench.clock.now) == {ME}
    assert bench.port() == before
    assert bench.sightings.due(bench.clock.now) == set()


def test_one_that_hangs_again_stays_faulty(bench: Bench) -> None:
    bench.plug(ME)
    bench.look(ME)
    bench.hang(ME)
    bench.clock.now += 1.5
    assert said(bench.port()) == REASON
    bench.answer(ME)
    bench.hang(ME)
    assert said(bench.port()) == REASON
    assert bench.sightings.next_look == 103.0
    bench.answer(ME)
    assert said(bench.port()) == ""


def test_the_others_are_looked_at_while_several_hang(bench: Bench) -> None:
    names = [f"ttyACM{number}" for number in range(5)]
    for name in names:
        bench.plug(name)
    bench.look(*names)
    for name in names[:2]:
        bench.hang(name)
    bench.udev.write(2)
    found = {look.name: look.port for look in bench.look(*names)}
    usecs = {name: port.initialized_usec for name, port in found.items() if port is not None}
    assert usecs == dict(zip(names, (1, 1, 2, 2, 2), strict=True))


def test_what_it_said_before_it_was_asked_again_does_not_count(bench: Bench) -> None:
    bench.plug(ME)
    bench.look(ME)
    bench.hang(ME)
    bench.udev.write(2)
    bench.sightings.heard({"c166:0"})
    bench.look(ME)
    bench.answer(ME)
    assert bench.port().initialized_usec == 2


def test_what_it_said_late_was_true_when_it_was_asked(bench: Bench) -> None:
    bench.plug(ME)
    assert bench.port().readiness is Readiness.READY
    bench.unplug(ME)
    bench.plug(ME)
    assert bench.port().readiness is Readiness.SETTLING
    bench.sightings.heard({"c166:0"})  # of the entry that udevd has not deleted yet
    bench.clock.now += 0.5
    bench.hang(ME)
    bench.clock.now += 0.7
    bench.answer(ME)
    assert bench.port().readiness is Readiness.SETTLING
    assert bench.port().readiness is Readiness.READY


def test_a_listing_has_what_hangs(bench: Bench) -> None:
    bench.plug(ME)
    bench.plug(OTHER)
    assert bench.listed() == {ME: "", OTHER: ""}
    bench.hang(ME)
    assert bench.listed() == {ME: "", OTHER: ""}
    bench.clock.now += 1.5
    assert bench.listed() == {ME: REASON, OTHER: ""}


def test_one_that_was_never_read_is_told_of_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.plug(ME)
    bench.plug(OTHER)
    writer = bench.hang_with_serial(ME)
    for _ in range(3):
        assert bench.listed() == {OTHER: ""}
        assert bench.look(ME) == []
    assert caplog.records == []
    assert bench.sightings.next_look == 101.5
    bench.clock.now = bench.sightings.next_look
    for _ in range(3):
        assert bench.listed() == {OTHER: ""}
        bench.clock.now += 60
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.fields["port"] == "/dev/ttyACM0"  # type: ignore[attr-defined]
    writer.start()
    bench.answered(ME)
    (bench.device(ME) / "serial").unlink()
    (bench.device(ME) / "serial").write_text("S\n")
    assert bench.sightings.due(bench.clock.now) == {ME}
    port = bench.port()
    assert port.usb is not None
    assert port.usb.serial == "S"


def test_one_that_hangs_and_is_unplugged_is_gone(bench: Bench) -> None:
    bench.plug(ME)
    bench.look(ME)
    bench.hang(ME)
    bench.unplug(ME)
    (look,) = bench.look(ME)
    assert (look.port, look.replaced) == (None, False)
    assert bench.sightings.next_look == float("inf")
    assert bench.listed() == {}


@pytest.mark.parametrize("listing", [True, False])
@pytest.mark.parametrize("known", [True, False])
def test_the_next_device_of_that_name_does_not_wait(
    bench: Bench, *, known: bool, listing: bool
) -> None:
    bench.plug(ME, "FIRST")
    if known:
        bench.look(ME)
    bench.hang(ME)
    bench.unplug(ME)
    if listing:
        assert bench.listed() == {}
    else:
        bench.look(ME)
    assert bench.sightings.next_look == float("inf")
    gate = bench.udev.gates.pop(ME)
    bench.reads.hanging.clear()
    bench.plug(ME, "SECOND")
    port = bench.port()
    assert port.usb is not None
    assert port.usb.serial == "SECOND"
    gate.set()


def test_one_that_hangs_from_its_first_moment_is_not_the_one_before_it(bench: Bench) -> None:
    bench.plug(ME)
    bench.look(ME)
    bench.unplug(ME)
    bench.plug(ME)
    writer = bench.hang_with_serial(ME)
    gone: list[Look] = []
    while not gone:  # the thread that reads finds the inode in a moment
        gone = [look for look in bench.look(ME) if look.port is None]
    assert not gone[0].replaced
    assert bench.look(ME) == []
    writer.start()
    bench.answered(ME)
    bench.sightings.look_at_all(lambda _: False)


def test_one_that_settles_and_hangs_is_not_looked_at_all_the_time(bench: Bench) -> None:
    bench.udev.entry = DatabaseEntry(initialized=False, initialized_usec=0, links=())
    bench.plug(ME)
    assert bench.port().readiness is Readiness.SETTLING
    assert bench.sightings.next_look < 100.1
    bench.clock.now = 101.0
    bench.hang(ME)
    assert bench.sightings.next_look == 102.5
    assert bench.sightings.due(102.0) == set()
    bench.answer(ME)
    bench.clock.now = 102.0
    assert bench.port().readiness is Readiness.SETTLING
    bench.udev.write(1)
    bench.clock.now = bench.sightings.next_look
    assert bench.port().readiness is Readiness.READY


def test_when_too_many_hang_the_rest_is_tried_again(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"ttyACM{number}" for number in range(5)]
    for name in names:
        bench.plug(name)
    bench.look(*names)
    for name in names[:3]:
        bench.hang(name)
    bench.udev.write(2)
    assert [look.port and look.port.initialized_usec for look in bench.look(*names)] == [1] * 5
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    bench.clock.now += 1
    assert bench.sightings.due(bench.clock.now) == set(names[3:])
    bench.clock.now += 1
    assert [said(bench.port(name)) != "" for name in names] == [True] * 3 + [False] * 2
    assert len(caplog.records) == 1
    for name in names[:3]:
        bench.answer(name)
    while bench.port(names[4]).initialized_usec < 2:
        bench.clock.now += 1
    assert {port.fault for port in map(bench.port, names) if said(port)} == set()


def test_what_was_read_for_earlier_sightings_does_not_count(bench: Bench) -> None:
    bench.plug(ME)
    bench.look(ME)
    bench.hang(ME)
    bench.answer(ME)
    bench.udev.write(2)
    bench.sightings = Sightings(bench.udev, 10.0, bench.reads)  # type: ignore[arg-type]
    assert bench.port().initialized_usec == 2


class Facts:
    """What a running source posts."""

    def __init__(self) -> None:
        self.posted: queue.Queue[Fact] = queue.Queue()
        self.ports: dict[str, Port] = {}

    def until(self, **wanted: str) -> None:
        """Wait until exactly these ports are there, with a word of the fault of each."""
        while not (
            self.ports.keys() == wanted.keys()
            and all(
                said(port) == "" if word == "well" else word in port.fault
                for (_, port), (_, word) in zip(
                    sorted(self.ports.items()), sorted(wanted.items()), strict=True
                )
            )
        ):
            match self.posted.get(timeout=LONG):
                case AllPorts(ports=ports):
                    self.ports = {port.name: port for port in ports}
                case PortPresent(port=port):
                    self.ports[port.name] = port
                case PortGone(name=name):
                    self.ports.pop(name, None)


@contextmanager
def running(source: Source) -> Iterator[Facts]:
    """A source that runs in a thread, and ends when told to."""
    facts = Facts()
    thread = threading.Thread(target=source.run, args=(facts.posted.put,), daemon=True)
    thread.start()
    yield facts
    source.stop()
    thread.join(LONG)
    assert not thread.is_alive()


class Pipe:
    """A file that makes whoever reads it wait."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._text = file.read_text()
        file.unlink()
        os.mkfifo(file)

    def open(self, text: str = "") -> None:
        """Let those who wait read the file as it was, and others as it is now."""
        with self._file.open("w") as pipe:
            self._file.rename(self._file.with_suffix(".pipe"))
            self._file.write_text(text or self._text)
            pipe.write(self._text)


@pytest.fixture
def short_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (hanging, directory, udev):
        monkeypatch.setattr(module, "LIMIT", 0.2)


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up machine for the udev source, which learns of changes from the directory."""
    for name in ("class", "dev"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(sightings, "CLASS", str(tmp_path / "class"))
    monkeypatch.setattr(sightings, "udevd_has_written", lambda: False)
    monkeypatch.setattr(udev, "udevd_has_written", lambda: False)
    monkeypatch.setattr(udev, "uevents_cannot_arrive", lambda: True)
    monkeypatch.setattr(udev, "_DEV", tmp_path / "dev")
    return tmp_path


def add(root: Path, name: str, *, told: bool = True) -> Path:
    """A new tty; where its serial number is."""
    tree = FakeSysfs(root)
    device = tree.device(chain=name.removeprefix("ttyUSB"), serial=b"S")
    (root / "class" / name).symlink_to(tree.usb_serial(device, name))
    if told:
        (root / "dev" / name).touch()
    return device / "serial"


def test_udev_one_that_hangs_from_the_start_and_others(sysfs: Path) -> None:
    pipes = [Pipe(add(sysfs, f"ttyUSB90{number}", told=False)) for number in range(3)]
    add(sysfs, "ttyUSB905")
    with running(udev.UdevSource(("/dev/ttyUSB90*",))) as facts:
        facts.until(ttyUSB905="well")
        add(sysfs, "ttyUSB906")
        facts.until(ttyUSB905="well", ttyUSB906="well")
        for pipe in pipes:
            pipe.open()
        everybody = [f"ttyUSB90{number}" for number in (0, 1, 2, 5, 6)]
        facts.until(**dict.fromkeys(everybody, "well"))


@pytest.mark.usefixtures("short_limit")
def test_udev_one_that_hangs_is_faulty_until_it_answers(
    sysfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(sysfs, "ttyUSB900")
    source = udev.UdevSource(("/dev/ttyUSB90*",))
    database = HangingUdev()
    monkeypatch.setattr(source._udev, "database_entry", database.database_entry)
    with running(source) as facts:
        facts.until(ttyUSB900="well")
        database.hang("ttyUSB900")
        add(sysfs, "ttyUSB901")
        facts.until(ttyUSB900="well", ttyUSB901="well")
        facts.until(ttyUSB900="does not answer", ttyUSB901="well")
        (sysfs / "dev/ttyUSB901").unlink()
        (sysfs / "class/ttyUSB901").unlink()
        facts.until(ttyUSB900="does not answer")
        database.answer("ttyUSB900")
        facts.until(ttyUSB900="well")


@pytest.mark.usefixtures("short_limit")
def test_directory_one_that_hangs_from_the_start_and_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(4):
        plug(tmp_path, f"ttyUSB{number}", f"S{number}")
    pipes = [Pipe(tmp_path / f".ttyUSB{number}.json") for number in range(3)]
    with running(DirectorySource(tmp_path)) as facts:
        facts.until(ttyUSB3="well")
        plug(tmp_path, "ttyUSB4", "S4")
        facts.until(ttyUSB3="well", ttyUSB4="well")
        for pipe in pipes:
            pipe.open()
        facts.until(**dict.fromkeys([f"ttyUSB{number}" for number in range(5)], "well"))
    assert all("does not answer" in record.message for record in caplog.records)


@pytest.mark.usefixtures("short_limit")
def test_directory_one_that_hangs_is_faulty_until_it_answers(tmp_path: Path) -> None:
    plug(tmp_path, "ttyUSB0", "S0")
    plug(tmp_path, "ttyUSB1", "S1")
    source = DirectorySource(tmp_path)
    with running(source) as facts:
        facts.until(ttyUSB0="well", ttyUSB1="well")
        pipe = Pipe(tmp_path / ".ttyUSB0.json")
        pull(tmp_path, "ttyUSB1")
        facts.until(ttyUSB0="well")
        facts.until(ttyUSB0="/dev/null does not answer")
        plug(tmp_path, "ttyUSB1", "S1")
        facts.until(ttyUSB0="does not answer", ttyUSB1="well")
        pipe.open()
        facts.until(ttyUSB0="well", ttyUSB1="well")
        assert list(source._hanging) == []


@pytest.mark.usefixtures("short_limit")
def test_directory_another_entry_of_that_name_is_another_port(tmp_path: Path) -> None:
    plug(tmp_path, "ttyUSB0", "S0")
    with running(DirectorySource(tmp_path)) as facts:
        facts.until(ttyUSB0="well")
        pipe = Pipe(tmp_path / ".ttyUSB0.json")
        plug(tmp_path, "ttyUSB1", "S1")
        facts.until(ttyUSB0="well", ttyUSB1="well")
        (tmp_path / "new").symlink_to("/dev/zero")
        (tmp_path / "new").rename(tmp_path / "ttyUSB0")
        facts.until(ttyUSB1="well")
        pipe.open()
        facts.until(ttyUSB0="well", ttyUSB1="well")
        assert facts.ports["ttyUSB0"].node == "/dev/zero"


def test_directory_the_next_entry_of_that_name_does_not_wait(tmp_path: Path) -> None:
    plug(tmp_path, "ttyUSB0", "S0")
    plug(tmp_path, "ttyUSB1", "S1")
    Pipe(tmp_path / ".ttyUSB0.json")
    with running(DirectorySource(tmp_path)) as facts:
        facts.until(ttyUSB1="well")
        (tmp_path / "ttyUSB0").unlink()
        pull(tmp_path, "ttyUSB1")
        facts.until()
        (tmp_path / ".ttyUSB0.json").rename(tmp_path / "pipe")
        plug(tmp_path, "ttyUSB0", "S2")
        facts.until(ttyUSB0="well")
        (tmp_path / "pipe").write_text("")


@pytest.mark.usefixtures("short_limit")
@pytest.mark.parametrize("again", ["scan", "run"])
def test_directory_what_was_read_long_ago_does_not_count(tmp_path: Path, again: str) -> None:
    plug(tmp_path, "ttyUSB0", "S0")
    pipe = Pipe(tmp_path / ".ttyUSB0.json")
    source = DirectorySource(tmp_path)
    assert source.scan() == ()
    pipe.open('{"serial": "S1"}')
    assert select([source._waker], [], [], LONG)[0], "it has been read at last"
    if again == "scan":
        (port,) = source.scan()
    else:
        with running(source) as facts:
            facts.until(ttyUSB0="well")
        port = facts.ports["ttyUSB0"]
    assert port.usb is not None
    assert port.usb.serial == "S1"


def test_the_first_listing_has_what_takes_a_moment(
    tmp_path: Path, sysfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (directory, udev):
        monkeypatch.setattr(module, "FIRST_PATIENCE", LONG)
        monkeypatch.setattr(module, "PATIENCE", 0.0)
    (entries := tmp_path / "entries").mkdir()
    plug(entries, "ttyUSB900", "S")
    pipes = [Pipe(entries / ".ttyUSB900.json"), Pipe(add(sysfs, "ttyUSB900"))]
    sources: list[Source] = [DirectorySource(entries), udev.UdevSource(("/dev/ttyUSB90*",))]
    for source, pipe in zip(sources, pipes, strict=True):
        with running(source) as facts:
            pipe.open()  # which waits for whoever reads
            first = facts.posted.get(timeout=LONG)
        assert isinstance(first, AllPorts)
        assert [port.name for port in first.ports] == ["ttyUSB900"]


@pytest.mark.usefixtures("short_limit")
def test_a_scan_has_an_end(tmp_path: Path, sysfs: Path, caplog: pytest.LogCaptureFixture) -> None:
    (entries := tmp_path / "entries").mkdir()
    for name in ("ttyUSB900", "ttyUSB901"):
        plug(entries, name, name)
        add(sysfs, name)
    serial = FakeSysfs(sysfs).device(chain="900") / "serial"
    pipes = [Pipe(entries / ".ttyUSB900.json"), Pipe(serial)]
    sources: list[Source] = [DirectorySource(entries), udev.UdevSource(("/dev/ttyUSB90*",))]
    for source in sources:
        assert [port.name for port in source.scan()] == ["ttyUSB901"]
    assert [record.fields["port"] for record in caplog.records] == [  # type: ignore[attr-defined]
        f"{entries}/ttyUSB900",
        "/dev/ttyUSB900",
    ]
    for pipe in pipes:
        pipe.open()
    for source in sources:
        while [port.name for port in source.scan()] != ["ttyUSB900", "ttyUSB901"]:
            continue  # whoever waited for the pipe has not read it yet


def test_what_hangs_does_not_keep_the_process(tmp_path: Path) -> None:
    plug(tmp_path, "ttyUSB0", "S0")
    plug(tmp_path, "ttyUSB1", "S1")
    Pipe(tmp_path / ".ttyUSB0.json")
    script = f"""
import threading
from pathlib import Path
from usbplugin.discovery import DirectorySource

source = DirectorySource(Path({str(tmp_path)!r}))

def post(fact):
    print(*(port.name for port in fact.ports))
    source.stop()

thread = threading.Thread(target=source.run, args=(post,))
thread.start()
thread.join()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], timeout=60, check=True, capture_output=True, text=True
    )
    assert done.stdout == "ttyUSB1\n"
