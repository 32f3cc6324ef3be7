"""What the plugin's hardware tests stand on: the machine's USB stack and udevd, and the fixtures.

They also pin down what discovery was built on, so a kernel or udev that behaves otherwise shows
here first.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .events import wait_until
from .gadget import KINDS, MAX_FUNCTIONS, UsbGadget, main
from .line import Line
from .pod import pod_command
from .qmp import MAX_SERIALS
from .sysfs import Tty, bind, unbind

if TYPE_CHECKING:
    from .conftest import GadgetFactory, QemuSerialFactory
    from .events import Monitor
    from .udevd import Udevd

BY_ID = Path("/dev/serial/by-id")

# Two bytes of status come before each packet of an FT232; ftdi_sio takes them off.
FTDI_STATUS = b"\x01\x60"


@pytest.mark.parametrize("function", ["acm", "ftdi", "simple"])
def test_a_gadget_is_a_tty_with_its_drivers_properties(
    gadget: GadgetFactory, udev_monitor: Monitor, function: str
) -> None:
    kind = KINDS[function]
    [node] = gadget(functions=[function], serial=b"A1").plug()

    event = udev_monitor.wait("add")
    tty = Tty.named(event.name)
    assert event.node == node == tty.node
    assert event.properties["ID_SERIAL_SHORT"] == "A1"
    assert event.properties["ID_USB_DRIVER"] == tty.driver.name == kind.driver
    assert int(event.properties["ID_VENDOR_ID"], 16) == kind.vendor_id
    assert int(event.properties["ID_MODEL_ID"], 16) == kind.product_id
    suffix = "" if function == "acm" else "-port0"
    assert f"{BY_ID}/usb-Maker_Serial_Thing_A1-if00{suffix}" in event.links
    assert {os.path.realpath(link) for link in event.links} == {node}
    assert Path(node).group() == "dialout"


@pytest.mark.parametrize(
    ("function", "status"), [("acm", b""), ("simple", b""), ("ftdi", FTDI_STATUS)]
)
def test_bytes_go_both_ways(gadget: GadgetFactory, function: str, status: bytes) -> None:
    device = gadget(functions=[function])
    [node] = device.plug()
    with Line(node) as host, device.line() as other:
        host.write(b"ping")
        assert other.read(4) == b"ping"
        other.write(status + b"pong")
        assert host.read(4) == b"pong"


def test_a_broken_device_has_a_node_that_cannot_be_opened(gadget: GadgetFactory) -> None:
    [node] = gadget(functions=["broken"]).plug()
    with pytest.raises(OSError, match="Input/output error"):
        Line(node)


def test_two_functions_make_two_ports_of_one_device(gadget: GadgetFactory) -> None:
    device = gadget(functions=["acm", "acm"], serial=b"TWO")
    first, second = device.plug()

    assert {tty.device for tty in device.ttys} == {device.device}
    assert [
        os.path.realpath(BY_ID / f"usb-Maker_Serial_Thing_TWO-if{number}")
        for number in ("00", "02")
    ] == [first, second]
    with Line(second) as host, device.line(1) as other:
        host.write(b"to the second")
        assert other.read(13) == b"to the second"


def test_of_equal_serials_the_link_goes_to_the_one_that_came_last(gadget: GadgetFactory) -> None:
    older, newer = gadget(serial=b"SAME"), gadget(serial=b"SAME")
    link = BY_ID / "usb-Maker_Serial_Thing_SAME-if00"

    assert older.plug() == [os.path.realpath(link)]
    assert newer.plug() == [os.path.realpath(link)]
    newer.unplug()
    assert older.nodes == [os.path.realpath(link)]


@pytest.mark.parametrize(
    ("serial", "short"),
    [
        pytest.param(b"\x01\x1b[31m\x7f", None, id="control characters"),
        pytest.param(b"a\nb\n", None, id="newlines"),
        pytest.param("ä€𝄞".encode(), None, id="not ASCII"),
        pytest.param(b"../../x:y=z", ".._.._x:y=z", id="path"),
        pytest.param(b" blank ", "blank", id="blanks"),
        pytest.param(b"x" * 126, "x" * 126, id="longest"),
    ],
)
def test_a_hostile_serial_reaches_sysfs_as_it_is(
    gadget: GadgetFactory, udev_monitor: Monitor, serial: bytes, short: str | None
) -> None:
    device = gadget(serial=serial)
    device.plug()
    assert (device.device / "serial").read_bytes() == serial + b"\n"
    assert udev_monitor.wait("add").properties.get("ID_SERIAL_SHORT") == short


@pytest.mark.parametrize("serial", [None, b"", b"invalid \xff\xfe", b"surrogate \xed\xa0\x80"])
def test_a_serial_that_cannot_be_sent_is_like_none(
    gadget: GadgetFactory, udev_monitor: Monitor, serial: bytes | None
) -> None:
    device = gadget(serial=serial)
    device.plug()
    assert not (device.device / "serial").exists()
    assert udev_monitor.wait("add").properties["ID_SERIAL"] == "Maker_Serial_Thing"


def test_a_device_without_any_string_is_named_by_its_identifiers(
    gadget: GadgetFactory, udev_monitor: Monitor
) -> None:
    gadget(serial=None, manufacturer=None, product=None).plug()
    assert udev_monitor.wait("add").properties["ID_SERIAL"] == "2341_0043"


def test_a_device_can_move_to_another_port(gadget: GadgetFactory) -> None:
    device = gadget(port=2)
    device.plug()
    before = device.device
    device.unplug()
    device.plug(port=5)
    assert device.device != before
    assert not before.exists()


def test_a_port_takes_one_device(gadget: GadgetFactory) -> None:
    gadget(port=2).plug()
    second = gadget(port=3)
    with pytest.raises(RuntimeError, match="port 2 is in use"):
        second.plug(port=2)
    with pytest.raises(RuntimeError, match="no port 99"):
        second.plug(port=99)


def test_unplugging_is_seen_by_kernel_and_udevd(
    gadget: GadgetFactory, kernel_monitor: Monitor, udev_monitor: Monitor
) -> None:
    device = gadget(serial=b"GOES")
    [node] = device.plug()
    device.unplug()
    assert not Path(node).exists()
    assert kernel_monitor.wait("remove").node == node
    assert udev_monitor.wait("remove").properties["ID_SERIAL_SHORT"] == "GOES"


def test_all_gadgets_at_once(gadget: GadgetFactory, udev_monitor: Monitor) -> None:
    devices = [gadget(serial=b"S%d" % number) for number in range(MAX_FUNCTIONS)]
    for device in devices:
        device.plug(wait=False)
    events = udev_monitor.wait_all("add", len(devices))
    assert {event.properties["ID_SERIAL_SHORT"] for event in events} == {
        f"S{number}" for number in range(MAX_FUNCTIONS)
    }
    with pytest.raises(RuntimeError, match="every port has its gadget"):
        gadget()


def test_there_are_only_so_many_functions(gadget: GadgetFactory) -> None:
    gadget(functions=["acm"] * MAX_FUNCTIONS)
    with pytest.raises(RuntimeError, match="8 serial functions"):
        gadget()
    assert len(UsbGadget.all()) == 1


def test_qemus_devices_have_a_pci_path_and_bytes(
    qemu_serial: QemuSerialFactory, udev_monitor: Monitor
) -> None:
    device = qemu_serial(3, serial="Q3")
    [node] = device.plug()
    event = udev_monitor.wait("add")
    assert event.properties["ID_SERIAL_SHORT"] == "Q3"
    assert event.properties["ID_PATH"].startswith("pci-0000:")
    with Line(node) as line:
        line.write(b"hello")
        subprocess.run(["stty", "-F", node, "sane"], check=True)  # returns when it is sent
    assert device.received() == b"hello"
    device.unplug()
    assert udev_monitor.wait("remove").node == node
    assert device.plug() == [node]


def test_a_storm_of_qemus_devices(
    qemu_serial: QemuSerialFactory, kernel_monitor: Monitor, udev_monitor: Monitor
) -> None:
    devices = [qemu_serial(index) for index in range(MAX_SERIALS)]
    for device in devices:
        device.plug(wait=False)
    events = udev_monitor.wait_all("add", len(devices), timeout=60)
    assert {event.properties["ID_SERIAL_SHORT"] for event in events} == {
        device.serial for device in devices
    }
    for device in devices:
        assert [tty.node for tty in device.ttys] == device.wait_ready()
        assert (device.device / "serial").read_text() == f"{device.serial}\n"
    for device in devices:
        device.unplug(wait=False)
    for monitor in (kernel_monitor, udev_monitor):
        removed = monitor.wait_all("remove", len(devices), timeout=60)
        assert {event.path for event in removed} == {event.path for event in events}


def test_a_driver_can_be_taken_off_and_put_back(
    gadget: GadgetFactory, udev_monitor: Monitor
) -> None:
    device = gadget()
    [node] = device.plug()
    [tty] = device.ttys
    interface = tty.interface

    driver = unbind(interface)
    assert udev_monitor.wait("remove").node == node
    assert device.device.exists()
    assert device.ttys == []
    bind(interface, driver)
    assert device.wait_ready() == [node]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_without_udevd_there_is_a_node_and_nothing_else(
    gadget: GadgetFactory, udev_monitor: Monitor, udevd: Udevd, how: signal.Signals
) -> None:
    udevd.stop(how)
    assert not udevd.is_running
    device = gadget(serial=b"BARE")
    [node] = device.plug()
    [tty] = device.ttys
    assert Path(node).stat().st_mode & 0o777 == 0o600
    assert not tty.is_initialized
    assert not (BY_ID / "usb-Maker_Serial_Thing_BARE-if00").exists()
    assert udev_monitor.receive() == []

    udevd.start()
    udevd.trigger()
    wait_until(lambda: tty.is_initialized, "udevd done with what it missed")
    assert udev_monitor.wait("add", name=tty.name).node == node
    assert Path(node).stat().st_mode & 0o777 == 0o660


@pytest.mark.parametrize("uid", [0, 65534])
def test_a_pod_has_no_capability_and_no_network(uid: int) -> None:
    script = "cat /proc/self/status; readlink /proc/self/ns/net; cat /proc/net/dev"
    done = subprocess.run(
        pod_command(["sh", "-c", script], uid=uid), check=True, capture_output=True, text=True
    )
    for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb"):
        assert f"Cap{kind}:\t{0:016}\n" in done.stdout
    assert f"Uid:\t{uid}\t{uid}\t{uid}\t{uid}\n" in done.stdout
    assert os.readlink("/proc/self/ns/net") not in done.stdout


def test_a_pod_hears_the_kernel_but_not_udevd(gadget: GadgetFactory) -> None:
    listen = (
        "import pyudev, select, sys\n"
        "sources = ['kernel', 'udev']\n"
        "monitors = [pyudev.Monitor.from_netlink(pyudev.Context(), name) for name in sources]\n"
        "for monitor in monitors:\n"
        "    monitor.filter_by('tty')\n"
        "    monitor.start()\n"
        "print('listening', flush=True)\n"
        "sys.stdin.readline()\n"
        "ready = select.select(monitors, [], [], 0)[0]\n"
        "print([name for name, monitor in zip(sources, monitors) if monitor in ready])\n"
    )
    with subprocess.Popen(
        pod_command([sys.executable, "-c", listen]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        gadget().plug()
        output, _ = process.communicate("look\n")
    assert output == "['kernel']\n"


def test_the_command_line_plugs_lists_and_unplugs(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert main(["plug", "meter", "--serial", "M1", "--function", "ftdi"]) == 0
        [node] = capsys.readouterr().out.split()
        link = BY_ID / "usb-Maker_Serial_Thing_M1-if00-port0"
        assert os.path.realpath(link) == node

        assert main(["unplug", "meter"]) == 0
        assert main(["list"]) == 0
        assert capsys.readouterr().out == "meter: port 0, unplugged, other side /dev/ttyGS0\n"

        assert main(["plug", "meter"]) == 0
        assert os.path.realpath(link) == node
        assert main(["plug", "meter", "--serial", "M2"]) == 0
        assert not link.exists()

        assert main(["unplug", "other"]) == 1
        assert "there is no device other" in capsys.readouterr().err
    finally:
        assert main(["unplug", "meter", "--forget"]) == 0
    assert UsbGadget.all() == []
