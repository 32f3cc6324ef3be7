"""What udev-rules/ promises, with the rules installed beside those of a distribution."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .serve import acm_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .conftest import GadgetFactory, QemuSerialFactory
    from .serve import HardwareNode
    from .udevd import Udevd

RULES = Path(__file__).parents[2] / "udev-rules/95-usbplugin.rules"
DIRECTORY = Path("/run/udev/rules.d")

# What desktop distributions do to serial adapters, which the rules are to undo.
MEDDLESOME = """
SUBSYSTEM=="tty", GROUP="root", MODE="0600"
SUBSYSTEM=="usb", ENV{DEVTYPE}=="usb_device", ATTR{idVendor}=="0403|10c4", \
  ENV{BRLTTY_BRAILLE_DRIVER}="bm", ENV{SYSTEMD_WANTS}="brltty-device@test.service"
SUBSYSTEM=="usb", ENV{DEVTYPE}=="usb_device", TEST=="power/control", ATTR{power/control}="auto"
"""


@pytest.fixture
def rules(udevd: Udevd) -> Iterator[None]:
    DIRECTORY.mkdir(exist_ok=True)
    installed = [DIRECTORY / RULES.name, DIRECTORY / "90-meddlesome.rules"]
    shutil.copy(RULES, installed[0])
    installed[1].write_text(MEDDLESOME)
    udevd.reload()
    yield
    for path in installed:
        path.unlink()
    udevd.reload()


def properties(path: Path) -> dict[str, str]:
    output = udevadm("info", "--query=property", f"--path={path}")
    return dict(line.split("=", 1) for line in output.splitlines())


@pytest.mark.parametrize(
    ("function", "chip"), [("acm", "arduino"), ("ftdi", "ft232"), ("broken", "cp210x")]
)
def test_a_chip_that_is_listed(
    gadget: GadgetFactory, rules: None, function: str, chip: str
) -> None:
    device = gadget(functions=[function])
    [node] = device.plug()
    [tty] = device.ttys
    link = Path(f"/dev/usbplugin/{chip}") / properties(tty.path)["ID_PATH"]
    assert [path.parent.name for path in Path("/dev/usbplugin").glob("*/*")] == [chip]
    suffix = "" if function == "acm" else "-port0"
    assert os.path.realpath(f"{link}{suffix}") == node
    status = os.stat(node)
    assert (status.st_gid, status.st_mode & 0o7777) == (20, 0o660)
    found = properties(device.device)
    assert found["ID_MM_DEVICE_IGNORE"] == "1"
    assert not found.get("BRLTTY_BRAILLE_DRIVER")
    assert not found.get("SYSTEMD_WANTS")
    assert (device.device / "power/control").read_text() == "on\n"
    device.unplug()
    assert not list(Path("/dev/usbplugin").glob("*/*"))


def test_a_chip_that_is_not_listed(gadget: GadgetFactory, rules: None) -> None:
    device = gadget(functions=["simple"])
    [node] = device.plug()
    status = os.stat(node)
    assert (status.st_gid, status.st_mode & 0o7777) == (20, 0o660)
    assert "ID_MM_DEVICE_IGNORE" not in properties(device.device)
    assert (device.device / "power/control").read_text() == "auto\n"
    assert not list(Path("/dev/usbplugin").glob("*/*"))


def test_two_with_equal_serials_have_two_links(
    qemu_serial: QemuSerialFactory, gadget: GadgetFactory, rules: None
) -> None:
    nodes = {
        qemu_serial(3, serial="SAME").plug()[0],
        qemu_serial(16, serial="SAME").plug()[0],
        gadget(functions=["ftdi"], serial=b"SAME").plug()[0],
    }
    links = list(Path("/dev/usbplugin/ft232").iterdir())
    assert {os.path.realpath(link) for link in links} == nodes
    assert len(links) == 3


def test_several_ports_of_one_device_have_a_link_each(gadget: GadgetFactory, rules: None) -> None:
    device = gadget(functions=["acm", "acm"])
    nodes = device.plug()
    links = sorted(Path("/dev/usbplugin/arduino").iterdir())
    assert [os.path.realpath(link) for link in links] == nodes


def udevadm(*arguments: str) -> str:
    """What it says, which is on standard error for the most part."""
    done = subprocess.run(
        ["udevadm", *arguments],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.stdout


def test_udevadm_finds_nothing_wrong_with_them(gadget: GadgetFactory, rules: None) -> None:
    device = gadget(functions=["ftdi"])
    device.plug()
    for path in (device.device, device.ttys[0].path):
        output = udevadm("test", "--action=add", str(path))
        lines = [line for line in output.splitlines() if RULES.name in line]
        assert f"Reading rules file: {DIRECTORY / RULES.name}" in lines
        complaints = ("invalid", "unknown", "fail", "ignoring", "warning", "error", "overwrit")
        assert not [line for line in lines if any(word in line.lower() for word in complaints)]
    if "verify" in udevadm("--help"):  # since systemd 254
        udevadm("verify", str(RULES))


async def test_the_plugin_waits_for_what_they_do(
    gadget: GadgetFactory, node: HardwareNode, rules: None
) -> None:
    device = gadget(serial=b"MINE")
    async with node.serve():
        device.plug(wait=False)
        await node.healthy(acm_id("MINE"))
        status = os.stat(device.nodes[0])
        assert (status.st_gid, status.st_mode & 0o7777) == (20, 0o660)
