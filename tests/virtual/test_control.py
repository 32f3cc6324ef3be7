"""The control socket of a virtual bus: what another shell can ask, and each way to be refused."""

from __future__ import annotations

import gc
import json
import os
import resource
import socket
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from usbplugin.errors import VirtualTtyError
from usbplugin.virtual.control import ControlServer, Plug, Status, Unplug, control
from usbplugin.virtual.ttys import Descriptors, Peer, VirtualBus

if TYPE_CHECKING:
    from collections.abc import Iterator

DEADLINE_S = 20.0


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[VirtualBus]:
    with VirtualBus(tmp_path / "bus") as made, ControlServer(made):
        yield made


def connect(directory: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(DEADLINE_S)
    connection.connect(str(directory / ".control.sock"))
    return connection


def ask(directory: Path, request: bytes) -> dict[str, object]:
    with connect(directory) as connection, connection.makefile("rwb") as stream:
        stream.write(request)
        stream.flush()
        answer: dict[str, object] = json.loads(stream.readline())
        return answer


class TestCommands:
    def test_status_lists_all_devices(self, bus: VirtualBus) -> None:
        gone = bus.plug("ttyUSB0", Descriptors(serial="A"))
        bus.unplug("ttyUSB0")
        port = bus.plug("ttyACM0", Descriptors(serial="B\n\x00\u202e"), peer=Peer.ECHO)
        answer = control(bus.directory, Status())
        assert [(each.name, each.plugged) for each in answer] == [
            ("ttyACM0", True),
            ("ttyUSB0", False),
        ]
        assert answer[0] == port
        assert answer[1].descriptors == gone.descriptors

    def test_status_of_very_many_devices(self, bus: VirtualBus) -> None:
        for number in range(600):
            descriptors = Descriptors(serial=str(number), product="\x00" * 126)
            bus.plug("ttyUSB0", descriptors, peer=Peer.ECHO)
            bus.unplug("ttyUSB0")
        assert len(control(bus.directory, Status())) == 600

    def test_unplug_and_plug_again(self, bus: VirtualBus) -> None:
        port = bus.plug()
        (device,) = control(bus.directory, Unplug("ttyUSB0"))
        assert not device.plugged
        assert not os.path.lexists(port.path)
        (again,) = control(bus.directory, Plug("ttyUSB0"))
        assert again == bus.ports()[0]
        assert Path(again.path).readlink() == Path(again.node)

    def test_plug_under_another_name(self, bus: VirtualBus) -> None:
        bus.plug("ttyUSB0", Descriptors(serial="A"))
        control(bus.directory, Unplug("ttyUSB0"))
        (port,) = control(bus.directory, Plug("ttyUSB0", "ttyUSB7"))
        assert (port.name, port.descriptors.serial) == ("ttyUSB7", "A")
        assert (bus.directory / "ttyUSB7").exists()
        control(bus.directory, Unplug("ttyUSB7"))
        assert control(bus.directory, Plug("ttyUSB7"))[0].name == "ttyUSB7"

    def test_the_words_on_the_wire(self, bus: VirtualBus) -> None:
        bus.plug("ttyUSB0", peer=Peer.ECHO)
        ask(bus.directory, b'{"command":"unplug","name":"ttyUSB0"}\n')
        assert ask(bus.directory, b'{"command":"plug","name":"ttyUSB0","as":"ttyUSB7"}\nmore') == {
            "ports": [
                {
                    "name": "ttyUSB7",
                    "descriptors": {},
                    "peer": "echo",
                    "interval": 1.0,
                    "path": str(bus.directory / "ttyUSB7"),
                    "node": bus.ports()[0].node,
                    "peer_path": "",
                }
            ]
        }


class TestRefusals:
    def test_unknown_device(self, bus: VirtualBus) -> None:
        bus.plug("ttyUSB0")
        for command in (Unplug("ttyUSB3"), Plug("ttyUSB3")):
            with pytest.raises(VirtualTtyError, match=r"'ttyUSB3'.*ttyUSB0 \(plugged\)"):
                control(bus.directory, command)

    def test_unknown_device_of_an_empty_bus(self, bus: VirtualBus) -> None:
        with pytest.raises(VirtualTtyError, match="it has no devices"):
            control(bus.directory, Unplug("\x1b[31m"))

    def test_already_plugged(self, bus: VirtualBus) -> None:
        bus.plug()
        with pytest.raises(VirtualTtyError, match="ttyUSB0 is already plugged"):
            control(bus.directory, Plug("ttyUSB0"))

    def test_already_unplugged(self, bus: VirtualBus) -> None:
        bus.plug()
        bus.unplug("ttyUSB0")
        with pytest.raises(VirtualTtyError, match="ttyUSB0 is already unplugged"):
            control(bus.directory, Unplug("ttyUSB0"))

    def test_name_taken(self, bus: VirtualBus) -> None:
        bus.plug("ttyUSB0")
        bus.plug("ttyUSB1")
        bus.unplug("ttyUSB0")
        with pytest.raises(VirtualTtyError, match=r"ttyUSB1 is taken .*--as"):
            control(bus.directory, Plug("ttyUSB0", "ttyUSB1"))

    def test_impossible_name(self, bus: VirtualBus) -> None:
        bus.plug()
        bus.unplug("ttyUSB0")
        with pytest.raises(VirtualTtyError, match="is not a valid virtual tty name"):
            control(bus.directory, Plug("ttyUSB0", "../ttyUSB0"))

    def test_name_that_is_not_unicode(self, bus: VirtualBus) -> None:
        with pytest.raises(VirtualTtyError, match="not valid Unicode"):
            control(bus.directory, Unplug(os.fsdecode(b"tty\xff")))

    @pytest.mark.parametrize("where", ["bus", "nowhere", "file"])
    def test_no_bus(self, tmp_path: Path, where: str) -> None:
        (tmp_path / "bus").mkdir()
        (tmp_path / "file").write_text("")
        with pytest.raises(VirtualTtyError, match=r"no virtual bus .* usbplugin virtual --dir /"):
            control(tmp_path / where, Status())

    def test_socket_of_a_killed_process(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / ".control.sock"))
        with pytest.raises(VirtualTtyError, match="no virtual bus is running"):
            control(tmp_path, Status())
        with VirtualBus(tmp_path) as bus, ControlServer(bus):
            assert control(tmp_path, Status()) == ()

    def test_something_else_at_the_socket(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / ".control.sock"))
            listener.listen()

            def answer() -> None:
                accepted, _ = listener.accept()
                with accepted:
                    accepted.recv(100)
                    accepted.sendall(b"hello \xff\n")

            thread = threading.Thread(target=answer)
            thread.start()
            with pytest.raises(VirtualTtyError, match="invalid answer"):
                control(tmp_path, Status())
            thread.join(DEADLINE_S)

    def test_directory_with_too_long_a_path(self, tmp_path: Path) -> None:
        directory = tmp_path / ("x" * 120)
        with (
            VirtualBus(directory) as bus,
            pytest.raises(VirtualTtyError, match=r"cannot serve .* shorter path"),
        ):
            ControlServer(bus)
        with pytest.raises(VirtualTtyError, match="cannot reach"):
            control(directory, Status())

    @pytest.mark.parametrize(
        "request_line",
        [
            b"\n",
            b"status\n",
            b"[]\n",
            b'{"command":"reboot"}\n',
            b'{"command":"unplug"}\n',
            b'{"command":"unplug","name":7}\n',
            b'{"command":"unplug","name":"\xff"}\n',
            b"x" * 5000,
        ],
    )
    def test_no_command(self, bus: VirtualBus, request_line: bytes) -> None:
        answer = ask(bus.directory, request_line)
        assert str(answer["error"]).startswith("not a command for a virtual bus: ")
        assert control(bus.directory, Status()) == ()


class TestServer:
    def test_is_for_its_owner_alone(self, bus: VirtualBus) -> None:
        mode = (bus.directory / ".control.sock").stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600

    def test_is_not_held_up_by_the_silent_and_the_gone(self, bus: VirtualBus) -> None:
        with connect(bus.directory), connect(bus.directory) as half:
            half.sendall(b'{"command":')
            connect(bus.directory).close()
            with connect(bus.directory) as impatient:
                impatient.sendall(b'{"command":"status"}\n')
            assert control(bus.directory, Status()) == ()
            half.sendall(b'"status"}\n')
            assert half.recv(100) == b"{}\n"

    def test_outlives_a_lack_of_file_descriptors(self, bus: VirtualBus) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(DEADLINE_S)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            try:
                connection.connect(str(bus.directory / ".control.sock"))
                connection.sendall(b'{"command":"status"}\n')
                bus.ports()  # one turn of the pump
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert connection.recv(100) == b"{}\n"

    def test_cuts_open_connections_when_it_closes(self, bus: VirtualBus) -> None:
        with connect(bus.directory) as connection:
            control(bus.directory, Status())
            bus.close()
            assert connection.recv(100) == b""

    def test_there_is_one(self, bus: VirtualBus) -> None:
        with pytest.raises(VirtualTtyError, match="cannot serve"):
            ControlServer(bus)
        assert control(bus.directory, Status()) == ()

    def test_closes_in_any_order_and_twice(self, tmp_path: Path) -> None:
        bus = VirtualBus(tmp_path)
        server = ControlServer(bus)
        server.close()
        server.close()
        assert sorted(path.name for path in tmp_path.iterdir()) == [".bus"]
        server = ControlServer(bus)
        bus.close()
        server.close()
        assert list(tmp_path.iterdir()) == []

    def test_needs_an_open_bus(self, tmp_path: Path) -> None:
        bus = VirtualBus(tmp_path)
        bus.close()
        with pytest.raises(VirtualTtyError, match="is closed"):
            ControlServer(bus)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
    def test_leaks_no_descriptor(self, tmp_path: Path) -> None:
        def open_files() -> int:
            gc.collect()
            return sum(1 for _ in Path("/proc/self/fd").iterdir())

        before = open_files()
        with VirtualBus(tmp_path) as bus, ControlServer(bus):
            bus.plug()
            for _ in range(20):
                control(tmp_path, Unplug("ttyUSB0"))
                control(tmp_path, Plug("ttyUSB0"))
            with connect(tmp_path) as connection:
                connection.sendall(b"{")
                with pytest.raises(VirtualTtyError):
                    ControlServer(bus)
        assert open_files() == before
