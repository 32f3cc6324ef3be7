"""``usbplugin list`` and ``events`` as processes: from the daemon if one runs, else directly."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.node import SERIAL, Node
from usbplugin.cli import main
from usbplugin.commands.doctor import report
from usbplugin.commands.events import event_line
from usbplugin.commands.screen import _cropped
from usbplugin.commands.table import table
from usbplugin.discovery import AllPorts, DeviceNumber, Port, UsbInterface
from usbplugin.doctor import Finding, Grade
from usbplugin.errors import DaemonError
from usbplugin.inventory import Inventory, ResourceRule
from usbplugin.status import client
from usbplugin.status.client import Daemon
from usbplugin.status.rows import Row, rows

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(60)

GPS = "usb-0403:6001-GPS-A7-if00"


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with Node() as node:
        node.plug("ttyUSB0", "GPS-A7")
        yield node


@asynccontextmanager
async def command(*arguments: str, stdout: int = asyncio.subprocess.PIPE) -> AsyncIterator[Process]:
    plain = {name: value for name, value in os.environ.items() if "USBPLUGIN_" not in name}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "usbplugin", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
        env=plain | {"TERM": "xterm"},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def output(*arguments: str) -> str:
    async with command(*arguments) as process:
        out, error = await asyncio.wait_for(process.communicate(), 20)
        assert process.returncode == 0, error.decode()
        return out.decode()


async def line_with(process: Process, text: str) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(20):
        while line := (await process.stdout.readline()).decode():
            if text in line:
                return line
    raise AssertionError(f"it ended without {text!r}")


async def test_list_asks_the_daemon_which_knows_holders(node: Node) -> None:
    async with node.agent() as agent:
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        await node.kubelet.run_container(SERIAL, pod="reader")
        await node.until_held(agent, GPS)
        heading, row = (await output("list", "--link-dir", str(node.link_dir))).splitlines()
        assert "HOLDER" in heading
        assert "default/reader/main" in row
        (found,) = json.loads(await output("list", "--json", "--link-dir", str(node.link_dir)))
        assert found["holders"] == ["default/reader/main"]


async def test_flags_that_say_where_to_look_are_obeyed_daemon_or_not(
    node: Node, tmp_path: Path
) -> None:
    async with node.agent():
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        links = ("--link-dir", str(node.link_dir))
        shown = await output("list", "--no-udev", "--device-dir", str(tmp_path), *links)
        assert "No serial ports found" in shown
        assert GPS in await output("list", *links)


async def test_what_a_daemon_says_is_shown_without_loading_grpc(node: Node) -> None:
    async with node.agent():
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        code = (
            "import sys\nfrom usbplugin.cli import main\n"
            f"main(['list', '--link-dir', {str(node.link_dir)!r}])\n"
            "sys.exit('grpc' in sys.modules)"
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, stdout=asyncio.subprocess.DEVNULL
        )
        assert await process.wait() == 0


@pytest.mark.parametrize("source", ["daemon", "hardware"])
async def test_events_are_followed_until_ctrl_c(node: Node, source: str) -> None:
    where = ["--no-udev", "--device-dir", str(node.device_dir)]
    if source == "daemon":
        where = ["--link-dir", str(node.link_dir)]
    async with node.agent():
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        async with command("events", "--follow", "--json", *where) as process:
            assert json.loads(await line_with(process, "ready"))["device"] == GPS
            node.bus.unplug("ttyUSB0")
            event = json.loads(await line_with(process, "unplugged"))
            assert (event["before"], event["after"]) == ("ready", "unplugged")
            node.bus.replug("ttyUSB0", "ttyUSB3")
            assert json.loads(await line_with(process, "ready"))["before"] == "unplugged"
            process.send_signal(signal.SIGINT)
            _, error = await asyncio.wait_for(process.communicate(), 10)
            assert (process.returncode, error) == (0, b"")


async def test_events_of_the_past_are_lines_for_people(node: Node) -> None:
    async with node.agent():
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        node.bus.unplug("ttyUSB0")
        await node.kubelet.wait_healthy(SERIAL, set())
        ready, unplugged = (await output("events", "--link-dir", str(node.link_dir))).splitlines()
        assert f"  ready       {GPS}  /dev/pts/" in ready
        assert "(was ready; " in unplugged
        assert "is gone)" in unplugged
    # Looked at directly, what is here is all the past there is.
    node.bus.replug("ttyUSB0")
    shown = await output("events", "--no-udev", "--device-dir", str(node.device_dir))
    assert f"  ready       {GPS}  " in shown


async def test_without_a_daemon_nobody_knows_what_happened(tmp_path: Path) -> None:
    async with command("events", "--link-dir", str(tmp_path)) as process:
        out, error = await asyncio.wait_for(process.communicate(), 20)
        assert (process.returncode, out) == (1, b"")
    assert f"no daemon runs here with --link-dir {tmp_path}" in error.decode()
    assert "--follow" in error.decode()


async def test_following_ends_with_an_error_when_the_daemon_does(node: Node) -> None:
    async with node.serve() as daemon:
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        async with command("events", "-f", "--link-dir", str(node.link_dir)) as process:
            await line_with(process, "ready")
            daemon.kill()
            _, error = await asyncio.wait_for(process.communicate(), 10)
            assert process.returncode == 1
            assert error.decode().rstrip().endswith("has stopped")


async def test_a_watched_list_goes_on_one_below_the_other_where_there_is_no_terminal(
    node: Node,
) -> None:
    where = ("--no-udev", "--device-dir", str(node.device_dir))
    async with command("list", "--watch", *where) as process:
        assert "from the hardware, no daemon being asked" in await line_with(process, "from ")
        assert "ready" in await line_with(process, GPS)
        node.bus.unplug("ttyUSB0")
        assert "\033" not in await line_with(process, "unplugged")
        process.send_signal(signal.SIGINT)
        _, error = await asyncio.wait_for(process.communicate(), 10)
        assert (process.returncode, error) == (0, b"")


async def test_a_watched_list_in_json_is_a_line_per_change(node: Node) -> None:
    async with node.agent():
        await node.kubelet.wait_healthy(SERIAL, {GPS})
        where = ("--link-dir", str(node.link_dir))
        async with command("list", "--watch", "--json", *where) as process:
            assert json.loads(await line_with(process, GPS))[0]["health"] == "ready"
            node.bus.unplug("ttyUSB0")
            assert json.loads(await line_with(process, "unplugged"))[0]["id"] == GPS
            process.send_signal(signal.SIGTERM)
            await asyncio.wait_for(process.communicate(), 10)
            assert process.returncode == 0


async def test_a_watched_list_leaves_the_terminal_as_it_was(node: Node) -> None:
    master, slave = pty.openpty()
    try:
        async with node.agent():
            await node.kubelet.wait_healthy(SERIAL, {GPS})
            where = ("--link-dir", str(node.link_dir))
            async with command("list", "--watch", *where, stdout=slave) as process:
                shown = await read_until(master, b"usb-0403")
                assert shown.startswith(b"\033[?1049h\033[?25l\033[H")
                node.bus.unplug("ttyUSB0")
                shown = await read_until(master, b"\033[31munplugged")
                assert b"\033[J" in shown
                process.send_signal(signal.SIGINT)
                assert await asyncio.wait_for(process.wait(), 10) == 0
                assert (await read_until(master, b"1049l")).endswith(b"\033[?25h\033[?1049l")
    finally:
        os.close(master)
        os.close(slave)


async def read_until(terminal: int, text: bytes) -> bytes:
    shown = b""
    while text not in shown:
        shown += await asyncio.wait_for(asyncio.to_thread(os.read, terminal, 65536), 20)
    return shown


async def test_a_daemon_that_does_not_answer_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_SECONDS", 0.05)
    path = tmp_path / "usbplugin.sock"
    silent = []
    async with await asyncio.start_unix_server(lambda _, writer: silent.append(writer), path):
        with pytest.raises(DaemonError, match="does not answer: timed out"):
            await Daemon(path).rows()
        for writer in silent:
            writer.close()


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n{", b"\xff"])
async def test_a_daemon_that_talks_nonsense_is_an_error(tmp_path: Path, answer: bytes) -> None:
    def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    path = tmp_path / "usbplugin.sock"
    async with await asyncio.start_unix_server(talk, path):
        with pytest.raises(DaemonError, match="does not answer"):
            await Daemon(path).rows()


async def test_a_socket_nobody_listens_on_is_no_daemon(tmp_path: Path) -> None:
    path = tmp_path / "usbplugin.sock"
    assert not await Daemon(path).is_there()
    server = await asyncio.start_unix_server(lambda _r, _w: None, path)
    server.close()
    assert not await Daemon(path).is_there()


def test_an_event_line_leaves_out_what_is_not_known() -> None:
    event: client.Document = {
        "sequence": 1, "time": "T", "event": "forgotten", "device": "d", "resource": "a/b",
        "before": "unplugged", "after": None, "reason": "", "nodes": [], "holders": [],
    }  # fmt: skip
    assert event_line(event) == "T  forgotten   d  a/b  (was unplugged)"
    held = event | {"event": "held", "after": "unplugged", "holders": ["ns/p/c"]}
    assert event_line(held) == "T  held        d  a/b  (held by ns/p/c)"


def test_cropping_counts_what_is_seen_and_leaves_a_mark() -> None:
    assert _cropped("\033[1mabcdef\033[0m ghi", 4) == "\033[1mabc…\033[0m"
    assert _cropped("\033[1mab\033[0m ghi", 4) == "\033[1mab\033[0m …"
    assert _cropped("\033[1mabc\033[0m", 3) == "\033[1mabc\033[0m"
    assert _cropped("abc", 10) == "abc"


def _rows(serial: str) -> list[Row]:
    usb = UsbInterface(
        "0403", "6001", serial=serial, manufacturer="FTDI", product="FT232R", location="pci-1.2"
    )
    port = Port("ttyUSB0", "/dev/ttyUSB0", DeviceNumber(188, 0), usb, driver="ftdi_sio")
    inventory = Inventory([ResourceRule("usbplugin/serial")])
    inventory.apply([AllPorts("udev", (port,), "start")], now=0.0)
    found = rows(inventory.snapshot("usbplugin/serial").devices, (), [])
    return [row | {"holders": ["default/reader-7d4b9/main"]} for row in found]


@pytest.mark.parametrize("width", [40, 60, 80, 120, None])
@pytest.mark.parametrize("serial", ["A5069RR4", "0123456789" * 4])
def test_a_table_fits_the_terminal_and_loses_nothing(width: int | None, serial: str) -> None:
    found = _rows(serial)
    shown = table(found, width=width)
    lines = shown.splitlines()
    assert width is None or max(map(len, lines)) <= width
    text = "".join(line.strip() for line in lines)
    parts = ("/dev/ttyUSB0", "ftdi_sio", "pci-1.2", "default/reader-7d4b9/main")
    for wanted in (found[0]["id"], *parts):
        assert str(wanted) in text
    assert "ID" in lines[0].split() or width is not None


def test_doctors_findings_fit_too() -> None:
    long = Finding(Grade.WARN, "no serial ports found " * 5, "plug one in, and look at dmesg " * 4)
    for columns in (40, 60, 80):
        shown = report({"plugin directory": long, "ports": long}, columns)
        assert max(map(len, shown.splitlines())) <= columns
        assert "plug one in, and" in shown


def test_an_unknown_flag_shows_how_to_use_its_own_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["list", "--wach"])
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("usage: usbplugin list ")
    assert "usbplugin list: error: unknown: --wach" in shown
