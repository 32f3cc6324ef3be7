"""The virtual bus, looked at from outside: opened ptys, entries of the directory, descriptors."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import gc
import json
import os
import queue
import re
import resource
import select
import stat
import struct
import subprocess
import sys
import termios
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from usbplugin.errors import VirtualTtyError
from usbplugin.virtual.pump import Lines, Pty
from usbplugin.virtual.ttys import Descriptors, Peer, VirtualBus

if TYPE_CHECKING:
    from collections.abc import Iterator

DEADLINE_S = 20.0
ALL_BYTES = bytes(range(256)) * 400  # 102,400 bytes
GPS = Descriptors(
    vendor_id="067b",
    product_id="2303",
    serial="GPS-1",
    manufacturer="Prolific",
    product="USB-Serial Controller",
    location="virtual-1",
    driver="pl2303",
)


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[VirtualBus]:
    with VirtualBus(tmp_path / "bus") as made:
        yield made


@contextmanager
def opened(path: str) -> Iterator[int]:
    """Open a tty as an application does, but so that no read or write blocks for ever."""
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        yield fd
    finally:
        os.close(fd)


def transfer(source: int, sink: int, data: bytes) -> bytes:
    """Write ``data`` to one descriptor while reading as much from another."""
    sent, received = 0, bytearray()
    until = time.monotonic() + DEADLINE_S
    while len(received) < len(data):
        writers = [source] if sent < len(data) else []
        readable, writable, _ = select.select([sink], writers, [], until - time.monotonic())
        assert readable or writable, f"stuck with {sent} bytes sent, {len(received)} received"
        if writable:
            sent += os.write(source, data[sent : sent + 4096])
        if readable:
            received += os.read(sink, 65536)
    return bytes(received)


def read_line(fd: int) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        assert select.select([fd], [], [], DEADLINE_S)[0], f"only {line!r} arrived"
        line += os.read(fd, 1)
    return bytes(line)


def unread(fd: int) -> int:
    (count,) = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, struct.pack("i", 0)))
    return int(count)


def assert_hung_up(fd: int) -> None:
    assert select.select([fd], [], [], DEADLINE_S)[0]
    assert os.read(fd, 100) == b""
    with pytest.raises(OSError, match="Input/output error") as raised:
        os.write(fd, b"x")
    assert raised.value.errno == errno.EIO


def open_files() -> int:
    gc.collect()
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")


class TestBytes:
    def test_a_pair_carries_every_byte_both_ways(self, bus: VirtualBus) -> None:
        port = bus.plug()
        with opened(port.path) as device, opened(port.peer_path) as peer:
            assert transfer(device, peer, ALL_BYTES) == ALL_BYTES
            assert transfer(peer, device, ALL_BYTES[::-1]) == ALL_BYTES[::-1]

    def test_a_pair_carries_both_ways_at_the_same_time(self, bus: VirtualBus) -> None:
        port = bus.plug()
        with (
            opened(port.path) as device,
            opened(port.peer_path) as peer,
            ThreadPoolExecutor() as pool,
        ):
            out = pool.submit(transfer, device, peer, ALL_BYTES)
            back = pool.submit(transfer, peer, device, ALL_BYTES[::-1])
            assert out.result() == ALL_BYTES
            assert back.result() == ALL_BYTES[::-1]

    def test_an_echo_returns_every_byte(self, bus: VirtualBus) -> None:
        with opened(bus.plug(peer=Peer.ECHO).path) as device:
            assert transfer(device, device, ALL_BYTES) == ALL_BYTES

    def test_lines_are_numbered_and_name_the_device(self, bus: VirtualBus) -> None:
        port = bus.plug("ttyACM3", GPS, peer=Peer.LINES, interval=0.01)
        with opened(port.path) as device:
            lines = [json.loads(read_line(device)) for _ in range(5)]
        assert lines == [{"device": "GPS-1", "count": count} for count in range(1, 6)]

    def test_lines_go_on_whatever_they_are_sent(self, bus: VirtualBus) -> None:
        port = bus.plug(peer=Peer.LINES, interval=0.01)
        with opened(port.path) as device:
            left = len(ALL_BYTES)
            while left:
                assert select.select([], [device], [], DEADLINE_S)[1]
                left -= os.write(device, ALL_BYTES[-left:][:4096])
            assert json.loads(read_line(device)) == {"device": "ttyUSB0", "count": 1}

    def test_lines_that_nobody_reads_give_way_to_newer_ones(self) -> None:
        until = time.monotonic() + DEADLINE_S
        with ExitStack() as undo:
            loop = asyncio.SelectorEventLoop()  # never runs: the test is its clock
            undo.callback(loop.close)
            pty = Pty(undo)
            lines = Lines(loop, pty, "GPS-1", 3600)
            undo.callback(lines.close)
            waiting = 0
            for count in range(1, 201):
                lines._send()
                length = len(f'{{"device":"GPS-1","count":{count}}}\n')
                waiting = waiting + length if waiting + length <= 2048 else length
                while unread(pty.slave) != waiting:  # the kernel delivers it in its own time
                    assert time.monotonic() < until
            counts = [json.loads(line)["count"] for line in os.read(pty.slave, 4096).splitlines()]
        assert counts[0] > 100
        assert counts == list(range(counts[0], 201))

    def test_a_full_pair_waits_and_leaves_the_others_alone(self, bus: VirtualBus) -> None:
        port = bus.plug("ttyUSB0")
        other = bus.plug("ttyUSB1", peer=Peer.ECHO)
        with (
            opened(port.path) as device,
            opened(port.peer_path) as peer,
            opened(other.path) as echo,
        ):
            written = bytearray()
            refused = 0
            while refused < 5:
                chunk = ALL_BYTES[len(written) % 256 :][:1000]
                try:
                    written += chunk[: os.write(device, chunk)]
                    refused = 0
                except BlockingIOError:
                    refused += 1
                    assert transfer(echo, echo, b"alive") == b"alive"
                assert len(written) < 256 * 1024, "what nobody reads must not pile up"
            received = bytearray()
            while len(received) < len(written):
                assert select.select([peer], [], [], DEADLINE_S)[0]
                received += os.read(peer, 65536)
            assert received == written

    def test_fifty_at_once(self, bus: VirtualBus) -> None:
        ports = [bus.plug(f"ttyUSB{number}", peer=Peer.ECHO) for number in range(50)]
        assert bus.ports() == tuple(ports)
        with ExitStack() as stack:
            fds = [stack.enter_context(opened(port.path)) for port in ports]
            for number, fd in enumerate(fds):
                os.write(fd, b"I am %d\n" % number)
            assert [read_line(fd) for fd in fds] == [b"I am %d\n" % n for n in range(50)]


class TestTheTty:
    def test_is_raw(self, bus: VirtualBus) -> None:
        port = bus.plug()
        for path in (port.path, port.peer_path):
            with opened(path) as fd:
                _, oflag, _, lflag, _, _, _ = termios.tcgetattr(fd)
            assert not oflag & termios.OPOST
            assert not lflag & (termios.ECHO | termios.ICANON | termios.ISIG)

    def test_may_be_opened_by_anybody(self, bus: VirtualBus) -> None:
        port = bus.plug()
        assert stat.S_IMODE(Path(port.path).stat().st_mode) == 0o666
        assert stat.S_IMODE(Path(port.peer_path).stat().st_mode) == 0o666

    def test_survives_applications_that_close_it(self, bus: VirtualBus) -> None:
        port = bus.plug(peer=Peer.ECHO)
        for word in (b"first", b"second"):
            with opened(port.path) as device:
                assert transfer(device, device, word) == word


class TestUnplug:
    @pytest.mark.parametrize("peer", Peer)
    def test_hangs_up_what_is_open(self, bus: VirtualBus, peer: Peer) -> None:
        port = bus.plug(peer=peer, interval=3600)
        with ExitStack() as stack:
            device = stack.enter_context(opened(port.path))
            if peer is Peer.LINES:
                read_line(device)
            fds = [device]
            if port.peer_path:
                fds.append(stack.enter_context(opened(port.peer_path)))
            bus.unplug("ttyUSB0")
            for fd in fds:
                assert_hung_up(fd)
            assert not os.path.lexists(port.path)
            # While a descriptor of it is open, no other pty gets its number.
            assert not Path(port.node).exists()

    def test_ends_a_blocked_read(self, bus: VirtualBus) -> None:
        port = bus.plug()
        fd = os.open(port.path, os.O_RDWR | os.O_NOCTTY)

        def read() -> bytes:
            try:
                return os.read(fd, 100)
            except OSError as error:
                return str(error.strerror).encode()

        with ThreadPoolExecutor() as pool, opened(port.peer_path) as peer:
            first, second = pool.submit(read), pool.submit(read)
            os.write(peer, b"x")
            wait((first, second), DEADLINE_S, FIRST_COMPLETED)
            bus.unplug("ttyUSB0")
            # An error for a read that was under way, b"" for one that came too late.
            answers = {first.result(DEADLINE_S), second.result(DEADLINE_S)}
        assert answers in ({b"x", b"Input/output error"}, {b"x", b""})
        os.close(fd)

    def test_leaves_the_others_working(self, bus: VirtualBus) -> None:
        bus.plug("ttyUSB0")
        port = bus.plug("ttyUSB1", peer=Peer.ECHO)
        bus.unplug("ttyUSB0")
        with opened(port.path) as device:
            assert transfer(device, device, ALL_BYTES) == ALL_BYTES

    def test_removes_nothing_that_somebody_put_in_its_place(self, bus: VirtualBus) -> None:
        port = bus.plug()
        Path(port.path).unlink()
        Path(port.path).symlink_to("/dev/null")
        Path(port.peer_path).unlink()
        Path(port.peer_path).write_text("mine")
        bus.unplug("ttyUSB0")
        assert Path(port.path).readlink() == Path("/dev/null")
        assert Path(port.peer_path).read_text() == "mine"

    def test_does_not_mind_that_its_entries_are_gone(self, bus: VirtualBus) -> None:
        port = bus.plug()
        for path in (port.path, port.peer_path, bus.directory / ".ttyUSB0.json"):
            Path(path).unlink()
        assert not bus.unplug("ttyUSB0").plugged

    def test_of_an_unknown_device_names_the_known_ones(self, bus: VirtualBus) -> None:
        bus.plug("ttyUSB0")
        bus.plug("ttyUSB1")
        bus.unplug("ttyUSB1")
        with pytest.raises(
            VirtualTtyError, match=r"'ttyUSB2'.*ttyUSB0 \(plugged\), ttyUSB1 \(unplugged\)"
        ):
            bus.unplug("ttyUSB2")

    def test_twice_is_an_error(self, bus: VirtualBus) -> None:
        bus.plug()
        bus.unplug("ttyUSB0")
        with pytest.raises(VirtualTtyError, match="ttyUSB0 is already unplugged"):
            bus.unplug("ttyUSB0")


class TestReplug:
    def test_under_another_name_keeps_the_device(self, bus: VirtualBus) -> None:
        before = bus.plug("ttyUSB0", GPS, peer=Peer.ECHO)
        side = (bus.directory / ".ttyUSB0.json").read_bytes()
        with opened(before.path):  # a held pty keeps its number
            bus.unplug("ttyUSB0")
            after = bus.replug("ttyUSB0", "ttyUSB7")
            assert after.node != before.node
        assert after.descriptors == GPS
        assert (bus.directory / ".ttyUSB7.json").read_bytes() == side
        assert bus.ports() == (after,)
        assert bus.unplugged() == ()
        with opened(after.path) as device:
            assert transfer(device, device, ALL_BYTES) == ALL_BYTES

    def test_numbers_lines_from_one_again(self, bus: VirtualBus) -> None:
        bus.plug(peer=Peer.LINES, interval=3600)
        bus.unplug("ttyUSB0")
        with opened(bus.replug("ttyUSB0").path) as device:
            assert json.loads(read_line(device))["count"] == 1

    def test_can_swap_two_devices(self, bus: VirtualBus) -> None:
        bus.plug("ttyUSB0", Descriptors(serial="A"))
        bus.plug("ttyUSB1", Descriptors(serial="B"))
        bus.unplug("ttyUSB0")
        bus.unplug("ttyUSB1")
        bus.replug("ttyUSB0", "ttyUSB1")
        bus.replug("ttyUSB1", "ttyUSB0")
        assert {port.name: port.descriptors.serial for port in bus.ports()} == {
            "ttyUSB0": "B",
            "ttyUSB1": "A",
        }

    def test_takes_the_latest_of_two_that_had_the_name(self, bus: VirtualBus) -> None:
        for serial in ("A", "B"):
            bus.plug("ttyUSB0", Descriptors(serial=serial))
            bus.unplug("ttyUSB0")
        assert bus.replug("ttyUSB0").descriptors.serial == "B"
        assert bus.replug("ttyUSB0", "ttyUSB1").descriptors.serial == "A"

    def test_of_a_plugged_device_is_an_error(self, bus: VirtualBus) -> None:
        bus.plug()
        with pytest.raises(VirtualTtyError, match="already plugged"):
            bus.replug("ttyUSB0")

    def test_under_a_taken_name_is_an_error_and_loses_nothing(self, bus: VirtualBus) -> None:
        bus.plug("ttyUSB0")
        bus.plug("ttyUSB1")
        bus.unplug("ttyUSB0")
        with pytest.raises(VirtualTtyError, match="the name ttyUSB1 is taken"):
            bus.replug("ttyUSB0", "ttyUSB1")
        assert [port.name for port in bus.unplugged()] == ["ttyUSB0"]

    def test_remembers_equal_devices_once(self, bus: VirtualBus) -> None:
        for _ in range(3):
            bus.plug("ttyUSB0", GPS)
            assert bus.unplugged() == ()
            bus.unplug("ttyUSB0")
        assert len(bus.unplugged()) == 1


class TestEntries:
    def test_side_file_holds_what_the_device_says(self, bus: VirtualBus) -> None:
        bus.plug("ttyUSB0", GPS)
        bus.plug("ttyUSB1")
        assert json.loads((bus.directory / ".ttyUSB0.json").read_bytes()) == {
            "vendor_id": "067b",
            "product_id": "2303",
            "serial": "GPS-1",
            "manufacturer": "Prolific",
            "product": "USB-Serial Controller",
            "location": "virtual-1",
            "driver": "pl2303",
        }
        assert json.loads((bus.directory / ".ttyUSB1.json").read_bytes()) == {}

    def test_only_devices_match_the_usual_patterns(self, bus: VirtualBus) -> None:
        bus.plug("ttyUSB0")
        bus.plug("ttyACM0")
        assert sorted(path.name for path in bus.directory.glob("tty*")) == ["ttyACM0", "ttyUSB0"]
        assert sorted(path.name for path in bus.directory.glob("[!.]*")) == [
            "peer-ttyACM0",
            "peer-ttyUSB0",
            "ttyACM0",
            "ttyUSB0",
        ]

    def test_the_link_is_there_only_while_the_side_file_is(self, bus: VirtualBus) -> None:
        events: queue.Queue[FileSystemEvent] = queue.Queue()

        class Collect(FileSystemEventHandler):
            def on_any_event(self, event: FileSystemEvent) -> None:
                events.put(event)

        observer = Observer()
        observer.schedule(Collect(), str(bus.directory))
        observer.start()
        try:
            bus.plug()
            bus.unplug("ttyUSB0")
            seen: list[tuple[str, str]] = []
            while ("deleted", "peer-ttyUSB0") not in seen or (
                "deleted",
                ".ttyUSB0.json",
            ) not in seen:
                event = events.get(timeout=DEADLINE_S)
                path = Path(os.fsdecode(event.dest_path or event.src_path))
                seen.append((event.event_type, path.name))
        finally:
            observer.stop()
            observer.join()
        entries = [
            (kind, name)
            for kind, name in seen
            if kind in {"created", "moved", "deleted"}
            and name in {"ttyUSB0", "peer-ttyUSB0", ".ttyUSB0.json"}
        ]
        assert entries == [
            ("moved", ".ttyUSB0.json"),
            ("created", "peer-ttyUSB0"),
            ("created", "ttyUSB0"),
            ("deleted", "ttyUSB0"),
            ("deleted", "peer-ttyUSB0"),
            ("deleted", ".ttyUSB0.json"),
        ]

    @pytest.mark.parametrize("entry", ["ttyUSB0", "peer-ttyUSB0", ".ttyUSB0.json"])
    def test_of_others_are_in_the_way_and_stay(self, bus: VirtualBus, entry: str) -> None:
        (bus.directory / entry).symlink_to("/nowhere")
        with pytest.raises(VirtualTtyError, match=re.escape(f"{bus.directory / entry}")):
            bus.plug()
        assert bus.ports() == ()
        bus.close()
        assert [path.name for path in bus.directory.iterdir()] == [entry]

    def test_are_all_gone_after_closing(self, tmp_path: Path) -> None:
        with VirtualBus(tmp_path / "new" / "bus") as bus:
            bus.plug("ttyUSB0", GPS)
            bus.plug("ttyUSB1", peer=Peer.LINES)
            bus.unplug("ttyUSB1")
        assert list((tmp_path / "new" / "bus").iterdir()) == []


class TestValues:
    @pytest.mark.parametrize(
        "hostile",
        [
            'quote" and \\backslash',
            "new\nline\r\n\x1b[31m\x00",
            "../../etc/passwd",
            "\u202eright to left",
            "\U0001f50c\ufdd0\uffff",
            "x" * 126,
        ],
    )
    def test_hostile_strings_survive(self, bus: VirtualBus, hostile: str) -> None:
        descriptors = Descriptors(serial=hostile, product=hostile)
        port = bus.plug("ttyUSB0", descriptors, peer=Peer.LINES)
        assert json.loads((bus.directory / ".ttyUSB0.json").read_bytes()) == {
            "serial": hostile,
            "product": hostile,
        }
        with opened(port.path) as device:
            assert json.loads(read_line(device)) == {"device": hostile, "count": 1}

    def test_bytes_that_are_not_utf8_are_refused(self, bus: VirtualBus) -> None:
        with pytest.raises(VirtualTtyError, match=r"ttyUSB0 contain .*udcff.* not valid Unicode"):
            bus.plug("ttyUSB0", Descriptors(serial=os.fsdecode(b"SN\xff")))

    @pytest.mark.parametrize(
        ("descriptors", "words"),
        [
            (Descriptors(vendor_id="1A86", product_id="7523"), r"vendor_id"),
            (Descriptors(vendor_id="1a86\n", product_id="7523"), r"vendor_id"),
            (Descriptors(vendor_id="1a86"), "only one of vendor_id and product_id"),
            (Descriptors(interface=256), "interface"),
            (Descriptors(serial="x" * 127), "serial"),
        ],
    )
    def test_impossible_descriptors_are_refused(
        self, bus: VirtualBus, descriptors: Descriptors, words: str
    ) -> None:
        with pytest.raises(VirtualTtyError, match=words):
            bus.plug("ttyUSB0", descriptors)
        assert bus.ports() == ()

    @pytest.mark.parametrize(
        "name",
        ["", "ttyS0", "ttyUSB", "ttyUSB0\n", "../ttyUSB0", "ttyUSB\N{ARABIC-INDIC DIGIT ONE}"],
    )
    def test_impossible_names_are_refused(self, bus: VirtualBus, name: str) -> None:
        with pytest.raises(VirtualTtyError, match="is not a valid virtual tty name"):
            bus.plug(name)
        bus.plug()
        bus.unplug("ttyUSB0")
        if name:
            with pytest.raises(VirtualTtyError, match="is not a valid virtual tty name"):
                bus.replug("ttyUSB0", name)

    @pytest.mark.parametrize("interval", [0.0, -1.0, float("nan"), float("inf")])
    def test_impossible_intervals_are_refused(self, bus: VirtualBus, interval: float) -> None:
        with pytest.raises(VirtualTtyError, match="interval"):
            bus.plug(peer=Peer.LINES, interval=interval)


class TestTheDirectory:
    def test_takes_one_bus_at_a_time(self, bus: VirtualBus) -> None:
        port = bus.plug()
        with pytest.raises(VirtualTtyError, match=f"process {os.getpid()}.* --status"):
            VirtualBus(bus.directory)
        assert bus.ports() == (port,)
        assert os.path.lexists(port.path)
        bus.close()
        VirtualBus(bus.directory).close()

    def test_is_cleaned_of_what_a_killed_bus_left(self, tmp_path: Path) -> None:
        script = (
            "import sys; from pathlib import Path\n"
            "from usbplugin.virtual.control import ControlServer\n"
            "from usbplugin.virtual.ttys import VirtualBus\n"
            "bus = VirtualBus(Path(sys.argv[1])); bus.plug(); bus.plug('ttyACM1')\n"
            "server = ControlServer(bus); print('ready', flush=True); bus.wait()\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            process.kill()
        left = {path.name for path in tmp_path.iterdir()}
        assert {"ttyUSB0", "peer-ttyUSB0", ".ttyUSB0.json", ".control.sock", "ttyACM1"} <= left
        # Made by hand, and by another program: never on a bus's list.
        (tmp_path / "ttyUSB5").symlink_to("/nowhere")
        (tmp_path / ".ttyUSB5.json").write_text("{}")
        with VirtualBus(tmp_path) as bus:
            assert bus.plug().plugged
        assert {path.name for path in tmp_path.iterdir()} == {"ttyUSB5", ".ttyUSB5.json"}

    def test_journal_of_nonsense_removes_nothing(self, tmp_path: Path) -> None:
        victim = tmp_path / "victim"
        victim.write_text("precious")
        (tmp_path / "bus").mkdir()
        (tmp_path / "bus" / ".bus").write_bytes(b"1\n../victim\n\xff\xfe\nvictim\n\n")
        VirtualBus(tmp_path / "bus").close()
        assert victim.read_text() == "precious"

    def test_that_is_a_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(VirtualTtyError, match=r"cannot use .*file as a bus"):
            VirtualBus(tmp_path / "file")

    def test_whose_name_is_not_utf8_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(VirtualTtyError, match="as a bus"):
            VirtualBus(tmp_path / os.fsdecode(b"\xff"))


class TestLife:
    @needs_proc
    def test_no_descriptor_leaks(self, tmp_path: Path) -> None:
        VirtualBus(tmp_path).close()  # what is opened once per process is open from here on
        before = open_files()
        with VirtualBus(tmp_path) as bus:
            for peer in Peer:
                bus.plug("ttyUSB0", peer=peer)
                bus.unplug("ttyUSB0")
                bus.replug("ttyUSB0")
                bus.unplug("ttyUSB0")
            bus.plug("ttyUSB1")
            (tmp_path / "ttyUSB2").symlink_to("/nowhere")
            for name in ("ttyUSB1", "ttyUSB2", "tty"):
                with pytest.raises(VirtualTtyError):
                    bus.plug(name)
            with pytest.raises(VirtualTtyError):
                VirtualBus(tmp_path)
        assert open_files() == before

    @needs_proc
    def test_a_directory_that_is_gone_fails_the_plug_and_leaks_nothing(
        self, tmp_path: Path
    ) -> None:
        with VirtualBus(tmp_path / "bus") as bus:
            before = open_files()
            (bus.directory / ".bus").unlink()
            bus.directory.rmdir()
            with pytest.raises(VirtualTtyError, match=r"cannot plug ttyUSB0 .*ttyUSB0\.json"):
                bus.plug()
            assert open_files() == before

    @needs_proc
    def test_a_lack_of_file_descriptors_fails_the_plug_and_leaks_nothing(
        self, bus: VirtualBus
    ) -> None:
        before = open_files()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
        for room in range(1, 5):
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + room, hard))
            try:
                for number in range(256):  # fills what was free below the highest
                    bus.plug(f"ttyUSB{number}")
            except VirtualTtyError as error:
                message = str(error)
            else:
                message = ""
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert "Too many open files" in message
            assert "ulimit -n" in message
            for port in bus.ports():
                bus.unplug(port.name)
            assert open_files() == before
            assert {path.name for path in bus.directory.iterdir()} == {".bus"}

    def test_plugging_from_many_threads(self, bus: VirtualBus) -> None:
        def play(number: int) -> None:
            for _ in range(5):
                port = bus.plug(f"ttyUSB{number}", peer=Peer.ECHO)
                with opened(port.path) as device:
                    assert transfer(device, device, b"hello") == b"hello"
                bus.unplug(port.name)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(play, range(8)))
        assert bus.ports() == ()

    def test_closing_twice_does_nothing(self, bus: VirtualBus) -> None:
        bus.close()
        bus.close()

    def test_a_closed_bus_says_so(self, bus: VirtualBus) -> None:
        bus.close()
        with pytest.raises(VirtualTtyError, match="is closed"):
            bus.plug()

    def test_wait_ends_with_the_bus(self, bus: VirtualBus) -> None:
        assert not bus.wait(0)
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(bus.wait)
            bus.close()
            assert waiting.result(DEADLINE_S)

    @needs_proc
    def test_a_failure_of_the_pump_shows_everywhere_and_is_cleaned_up(self, tmp_path: Path) -> None:
        VirtualBus(tmp_path).close()
        before = open_files()
        bus = VirtualBus(tmp_path)
        bus.plug()

        def break_down() -> None:
            raise ZeroDivisionError("unforeseen")

        with pytest.raises(VirtualTtyError, match=r"has failed.*unforeseen") as raised:
            bus.pump.call(break_down)
        assert isinstance(raised.value.__cause__, ZeroDivisionError)
        with pytest.raises(VirtualTtyError, match="has failed"):
            bus.wait(DEADLINE_S)
        with pytest.raises(VirtualTtyError, match="has failed"):
            bus.unplug("ttyUSB0")
        with pytest.raises(VirtualTtyError, match="has failed"):
            bus.close()
        assert list(tmp_path.iterdir()) == []
        assert open_files() == before

    def test_a_pty_hung_up_from_elsewhere_is_a_failure(self, bus: VirtualBus) -> None:
        port = bus.plug(peer=Peer.ECHO)
        slaves = [fd for fd in map(int, os.listdir("/dev/fd")) if node_of(fd) == port.node]
        assert slaves
        null = os.open("/dev/null", os.O_RDWR)
        for fd in slaves:
            os.dup2(null, fd)
        os.close(null)
        with pytest.raises(VirtualTtyError, match="Input/output error"):
            bus.wait(DEADLINE_S)
        with pytest.raises(VirtualTtyError, match="Input/output error"):
            bus.close()


def node_of(fd: int) -> str:
    try:
        return os.ttyname(fd)
    except OSError:  # no tty, the master of one, or what listed the descriptors
        return ""
