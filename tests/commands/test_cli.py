from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from usbplugin import __version__
from usbplugin.cli import main
from usbplugin.virtual import Descriptors, VirtualBus, demo, ttys

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Iterator
    from pathlib import Path

COMMANDS = (
    "serve",
    "list",
    "events",
    "check",
    "suggest",
    "classes",
    "doctor",
    "virtual",
    "demo",
    "completion",
    "man",
)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("USBPLUGIN_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[VirtualBus]:
    with VirtualBus(tmp_path / "dev") as bus:
        yield bus


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "usbplugin", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_version() -> None:
    result = run("--version")
    assert (result.returncode, result.stdout) == (0, f"usbplugin {__version__}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_documents_exit_codes(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert "exit codes:" in capsys.readouterr().out


def test_the_main_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)


def test_help_does_not_load_grpc() -> None:
    code = (
        "import sys\nfrom usbplugin.cli import main\n"
        "try: main(['serve', '--help'])\nexcept SystemExit: pass\n"
        "sys.exit('grpc' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert result.returncode == 0


def test_list_as_a_table(bus: VirtualBus, capsys: pytest.CaptureFixture[str]) -> None:
    bus.plug("ttyUSB0", Descriptors(vendor_id="0403", product_id="6001", serial="A1B2"))
    assert main(["list", "--no-udev", "--device-dir", str(bus.directory)]) == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split() == [
        "ID", "NODE", "HEALTH", "RESOURCE", "USB", "NAME", "DRIVER", "LOCATION",
    ]  # fmt: skip
    cells = row.split()
    assert cells[0] == "usb-0403:6001-A1B2-if00"
    assert cells[1].startswith("/dev/")
    assert cells[2:5] == ["ready", "usbplugin/serial", "0403:6001"]


def test_list_as_json(bus: VirtualBus, capsys: pytest.CaptureFixture[str]) -> None:
    bus.plug("ttyUSB0", Descriptors(vendor_id="0403", product_id="6001", serial="A1B2"))
    assert main(["list", "--json", "--no-udev", "--device-dir", str(bus.directory)]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["id"] == "usb-0403:6001-A1B2-if00"
    assert (row["health"], row["reason"], row["serial"]) == ("ready", "", "A1B2")
    assert row["node"] == bus.ports()[0].node


def test_list_with_nothing_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--no-udev", "--device-dir", str(tmp_path)]) == 0
    assert "No serial ports found" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["list", "check"])
def test_a_device_directory_that_does_not_exist_is_not_an_empty_one(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("{}")
    wrong = str(tmp_path / "wrong")
    code = main([command, "--config", str(config), "--no-udev", "--device-dir", wrong])
    shown = capsys.readouterr()
    assert f"the device directory {wrong} does not exist" in shown.err
    assert "No serial ports" not in shown.out
    assert code == (1 if command == "list" else 0)


def test_list_does_not_look_at_the_hardware_where_a_daemon_was_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", "--link-dir", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"no daemon answers on {tmp_path}/usbplugin.sock" in shown.err
    assert "--direct" in shown.err


def test_check_shows_what_is_selected_and_what_is_not(
    bus: VirtualBus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bus.plug("ttyUSB0", Descriptors(vendor_id="10c4", product_id="ea60", serial="ZB1"))
    bus.plug("ttyUSB1", Descriptors(vendor_id="0403", product_id="6001", serial="A1B2"))
    config = tmp_path / "config.yaml"
    config.write_text('resources: [{name: a/zigbee, selectors: [{vendor: "10c4"}]}]')
    assert main(["check", str(config), "--no-udev", "--device-dir", str(bus.directory)]) == 0
    shown = capsys.readouterr().out
    assert f"{config}: valid; resources: a/zigbee" in shown
    assert "a/zigbee       1 device: usb-10c4:ea60-ZB1-if00\n" in shown
    assert "(no resource)  1 port that nothing selects\n" in shown
    assert f"{bus.ports()[1].node}: no resource selects it" in shown


def test_check_names_each_resource_and_reads_standard_input(
    bus: VirtualBus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(5):
        bus.plug(f"ttyUSB{number}", Descriptors(vendor_id="10c4", product_id="ea60", serial="Z"))
    text = """
resources:
- {name: a/gps, selectors: [{vendor: "1546"}]}
- {name: a/all}
"""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert main(["check", "-", "--no-udev", "--device-dir", str(bus.directory)]) == 0
    shown = capsys.readouterr().out
    assert "standard input: valid; resources: a/gps, a/all\n" in shown
    assert "a/gps  matches nothing here\n" in shown
    assert re.search(r"a/all  5 devices: \S+, \S+, \S+ and 2 more\n", shown)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"resources: []")))
    assert main(["check", "-"]) == 2
    assert capsys.readouterr().err == (
        "usbplugin: standard input: line 1, column 12: resources: expected at least one resource,"
        " found none\n"
    )


def test_check_of_a_bad_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("resources: [{name: a/b, oops: 1}]")
    assert main(["check", str(config)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"usbplugin: {config}: line 1, column 25: resources[0]: unknown key 'oops'"
    )


def test_check_of_a_good_file_where_nothing_can_be_discovered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("resources: [{name: a/all}]")
    assert main(["check", str(config), "--no-udev"]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{config}: valid; resources: a/all\n"
    assert shown.err == (
        "what it would select here cannot be shown: nothing to discover: --no-udev needs at least"
        " one --device-dir\n"
    )


def test_check_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("resources: [{name: a/all}, {name: a/never}]")
    assert main(["check", str(config), "--no-udev", "--device-dir", str(tmp_path)]) == 0
    assert "a/never never gets a device" in capsys.readouterr().err


def test_classes_are_printed_for_kubectl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("resources: [{name: usbplugin/gps, front: dra}, {name: usbplugin/serial}]")
    monkeypatch.setenv("USBPLUGIN_CONFIG", str(config))
    assert main(["classes"]) == 0
    (only,) = yaml.safe_load_all(capsys.readouterr().out)
    assert (only["kind"], only["metadata"]["name"]) == ("DeviceClass", "gps.usbplugin")
    assert only["spec"]["extendedResourceName"] == "usbplugin/gps"
    assert main(["classes", "--front", "dra"]) == 0
    assert len(list(yaml.safe_load_all(capsys.readouterr().out))) == 2


def test_classes_of_a_configuration_without_any(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classes"]) == 2
    assert "no resource has front: dra" in capsys.readouterr().err


def test_two_resources_cannot_have_one_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("front: dra\nresources: [{name: a.b/x_y}, {name: a.b/x.y}]")
    assert main(["classes", str(config)]) == 2
    assert "a.b/x_y and a.b/x.y would both have the class x-y.a.b" in capsys.readouterr().err


def test_every_flag_has_an_environment_variable(
    bus: VirtualBus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (bus.directory / "ttyUSB9").symlink_to(bus.plug("ttyUSB0").node)
    monkeypatch.setenv("USBPLUGIN_UDEV", "false")
    monkeypatch.setenv("USBPLUGIN_DEVICE_DIR", f"{bus.directory}{os.pathsep}{tmp_path}")
    monkeypatch.setenv("USBPLUGIN_LINK_DIR", str(tmp_path / "links"))  # no daemon's
    assert main(["list", "--direct"]) == 0  # a daemon may run on this machine
    assert "dir-ttyUSB9-" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value"), [("USBPLUGIN_UDEV", "perhaps"), ("USBPLUGIN_LOG_LEVEL", "loud")]
)
def test_a_bad_environment_variable_is_named(
    name: str,
    value: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as caught:
        main(["serve"])
    assert caught.value.code == 2
    assert f"{name}={value}: expected" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["serve", "--help"], ["--version"]], ids=" ".join)
@pytest.mark.parametrize("name", ["USBPLUGIN_UDEV", "USBPLUGIN_LOG_LEVEL", "USBPLUGIN_LOG_FORMAT"])
def test_a_bad_environment_variable_does_no_harm_to_help(
    command: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "loud")
    with pytest.raises(SystemExit) as caught:
        main(command)
    assert caught.value.code == 0


def test_a_bad_environment_variable_does_no_harm_to_what_does_not_ask_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USBPLUGIN_LOG_LEVEL", "loud")
    monkeypatch.setenv("USBPLUGIN_UDEV", "perhaps")
    assert main(["list", "--no-udev", "--device-dir", str(tmp_path)]) == 0


@pytest.mark.parametrize("way", ["flag", "environment"])
def test_a_log_level_may_be_in_any_case(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--log-level", "INFO"] if way == "flag" else []
    if way == "environment":
        monkeypatch.setenv("USBPLUGIN_LOG_LEVEL", "INFO")
    # What is wrong is found after the level.
    where = ["--no-udev", "--device-dir", str(tmp_path), "--http-address", "9808"]
    assert main(["serve", *flags, *where]) == 2
    assert "--http-address: expected HOST:PORT" in capsys.readouterr().err


def test_a_link_directory_that_is_too_long_for_a_socket(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = tmp_path / ("x" * 120)
    assert main(["list", "--link-dir", str(long)]) == 1
    assert capsys.readouterr().err == (
        f"usbplugin: cannot connect to {long}/usbplugin.sock: AF_UNIX path too long; choose another"
        " --link-dir, or use --direct to read the hardware without the daemon\n"
    )


def test_an_http_address_that_is_none_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--no-udev", "--device-dir", str(tmp_path), "--http-address", "9808"]
    assert main(["serve", *flags]) == 2
    assert "--http-address: expected HOST:PORT" in capsys.readouterr().err


@pytest.mark.parametrize("pod", ["usbplugin", "a/b/c", "$(NAMESPACE)/$(NAME)"])
def test_an_own_pod_that_is_none_is_named(
    pod: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--no-udev", "--device-dir", str(tmp_path), "--own-pod", pod]
    assert main(["serve", *flags]) == 2
    assert f"--own-pod: expected NAMESPACE/NAME, found '{pod}'" in capsys.readouterr().err


def test_nothing_to_discover_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--no-udev"]) == 2
    assert "needs at least one --device-dir" in capsys.readouterr().err
    assert main(["list", "--no-udev", "--device-dir", ""]) == 2
    assert "--device-dir: expected a directory, found ''" in capsys.readouterr().err


def test_hotplug_played_from_another_shell(tmp_path: Path) -> None:
    directory = tmp_path / "bus"
    with subprocess.Popen(
        [sys.executable, "-m", "usbplugin", "virtual", "--dir", directory, "--count", "2"],
        stdout=subprocess.PIPE,
        text=True,
    ) as bus:
        assert bus.stdout is not None
        started = "".join(iter(bus.stdout.readline, "Ctrl-C ends it all.\n"))
        assert "ttyUSB0" in started
        assert sorted(os.listdir(directory))[-2:] == ["ttyUSB0", "ttyUSB1"]
        assert run("virtual", "--dir", str(directory), "--unplug", "ttyUSB0").returncode == 0
        assert not os.path.lexists(directory / "ttyUSB0")
        moved = run("virtual", "--dir", str(directory), "--plug", "ttyUSB0", "--as", "ttyUSB7")
        assert moved.returncode == 0
        assert os.path.lexists(directory / "ttyUSB7")
        status = run("virtual", "--dir", str(directory), "--status").stdout
        assert "ttyUSB7" in status
        assert "serial VIRTUAL-0" in status
        missing = run("virtual", "--dir", str(directory), "--unplug", "ttyUSB3")
        assert missing.returncode == 1
        assert "ttyUSB3" in missing.stderr
        bus.send_signal(signal.SIGTERM)
        assert bus.wait(10) == 0
    assert not os.path.lexists(directory / "ttyUSB7")


def test_virtual_devices_have_ids_as_the_kernel_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugged: list[Descriptors] = []

    class Bus(VirtualBus):
        def wait(self, timeout: float | None = None) -> bool:
            plugged.extend(port.descriptors for port in self.ports())
            return super().wait(0 if timeout is None else timeout)

    monkeypatch.setattr(ttys, "VirtualBus", Bus)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    ids = ["--vendor", "10C4", "--product", "EA60"]
    assert main(["virtual", "--dir", str(tmp_path / "bus"), *ids]) == 0
    assert [(one.vendor_id, one.product_id) for one in plugged] == [("10c4", "ea60")]


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--count", "0"], "--count: expected 1 or more, found 0"),
        (["--vendor", "zz"], "--vendor: expected four hexadecimal digits, found 'zz'"),
        (["--as", "ttyUSB7"], "--as: goes with --plug, to plug a device in under another name"),
    ],
)
def test_virtual_flags_that_cannot_be_meant_are_refused(
    flags: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["virtual", "--dir", str(tmp_path / "bus"), *flags]) == 2
    assert capsys.readouterr().err == f"usbplugin: {complaint}\n"


async def test_a_demo_that_fails_at_its_start_leaves_no_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[Process] = []
    start = asyncio.create_subprocess_exec

    async def start_what_never_registers(*_: str, **how: Any) -> Process:  # noqa: ANN401
        started.append(await start(sys.executable, "-c", "input()", stdin=subprocess.PIPE, **how))
        return started[0]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start_what_never_registers)
    monkeypatch.setattr(demo, "_PATIENCE", 0.01)
    assert not await demo.tell()
    assert "the demo stopped here" in capsys.readouterr().out
    (process,) = started
    assert await asyncio.wait_for(process.wait(), 10) == -signal.SIGKILL


def test_the_demo_holds() -> None:
    result = run("demo")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "11 of 11 checks passed" in result.stdout


def test_the_demo_of_the_dra_driver_holds() -> None:
    result = run("demo", "--dra")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "12 of 12 checks passed" in result.stdout


def test_the_demo_as_an_ordinary_user() -> None:
    if os.getuid() == 0:
        pytest.skip("runs as root: test_the_demo_holds shows an ordinary user's run elsewhere")
    assert run("demo").returncode == 0


def test_list_of_what_is_here_does_not_wait_for_settle(
    bus: VirtualBus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bus.plug("ttyUSB0", Descriptors(vendor_id="0403", product_id="6001", serial="A1B2"))
    config = tmp_path / "config.yaml"
    config.write_text("resources: [{name: a/serial, settle: 10m}]")
    flags = ["--config", str(config), "--no-udev", "--device-dir", str(bus.directory)]
    assert main(["list", "--json", *flags]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["health"], row["id"]) == ("ready", "usb-0403:6001-A1B2-if00")
