"""``usbplugin doctor``: each check against a node with the problem, and one without."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import json
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.node import SERIAL
from tests.node import Node as WholeNode
from tests.support import usb_port
from usbplugin.cli import main
from usbplugin.config import Config, Registration, ResourceConfig
from usbplugin.discovery import DeviceNumber, Port, Post
from usbplugin.doctor import CHECKS, Check, Finding, Grade, Node, examine, hardware, kubelet, rivals
from usbplugin.errors import DiscoveryError
from usbplugin.foundation.places import Places
from usbplugin.foundation.watch import DirectoryWatch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

pytestmark = pytest.mark.timeout(30)

HOST = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n23 22 0:5 / /dev rw - devtmpfs udev rw\n"
POD = (
    "100 1 0:50 / / ro - overlay overlay rw\n"
    "101 100 0:5 / /dev ro - devtmpfs udev rw\n"
    "102 100 0:23 /udev/data /run/udev/data ro - tmpfs tmpfs rw\n"
    r"103 100 8:1 /x /var/lib/with\040blank rw - ext4 /dev/sda1 rw"
)


class Here:
    """A source that sees these ports, or cannot see at all."""

    name = "here"

    def __init__(self, *ports: Port, blind: bool = False) -> None:
        self._ports = ports
        self._blind = blind

    def run(self, post: Post) -> None:
        raise NotImplementedError

    def scan(self) -> tuple[Port, ...]:
        if self._blind:
            raise DiscoveryError("cannot see")
        return self._ports

    def stop(self) -> None:
        raise NotImplementedError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return tmp_path / "root"


def grow(root: Path, files: Mapping[str, str]) -> Node:
    """A node with these files in proc, sys and run."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Node(root=root)


def is_(finding: Finding, grade: Grade, found: str, remedy: str = "") -> None:
    assert (finding.grade, bool(finding.remedy)) == (grade, grade is not Grade.OK)
    assert found in finding.found
    assert remedy in finding.remedy


def test_containers_and_hosts_are_told_apart(tree: Path) -> None:
    assert not grow(tree, {"proc/self/mountinfo": HOST}).in_container
    node = grow(tree, {"proc/self/mountinfo": POD})
    assert node.in_container
    assert node.is_mounted(Path("/run/udev/data"))
    assert node.is_mounted(Path("/dev/serial/by-id")), "below a mount"
    assert node.is_mounted(Path("/var/lib/with blank"))
    assert not node.is_mounted(Path("/run/usbplugin"))
    (tree / "var").mkdir()
    (tree / "var/run").symlink_to("../run")
    assert node.is_mounted(Path("/var/run/udev/data")), "by way of a link"
    assert not node.is_mounted(Path("/var/run/cdi"))


def test_udevd(tree: Path) -> None:
    check = hardware.check_udevd
    data = "/run/udev/data"
    node = grow(tree, {"x": ""})
    is_(check(node), Grade.WARN, f"cannot read {data} (No such file", "start systemd-udevd")
    node = grow(tree, {"run/udev/control": "", "proc/self/mountinfo": POD.replace(data, "/else")})
    is_(check(node), Grade.WARN, f"cannot read {data}", f"mount the host's {data} read-only")
    (tree / "run/udev/data").mkdir()
    node = grow(tree, {"proc/self/mountinfo": POD})
    is_(check(node), Grade.WARN, f"{data} is empty", "restart this pod")
    node = grow(tree, {"proc/self/mountinfo": POD.replace(data, "/run/udev")})
    is_(check(node), Grade.WARN, f"{data} is empty", "restart this pod")
    is_(check(grow(tree, {"run/udev/data/c188:0": ""})), Grade.OK, "udevd's database is readable")
    on_the_host = grow(tree, {"proc/self/mountinfo": HOST})
    is_(check(on_the_host), Grade.OK, "udevd's database is readable")
    (tree / "run/udev/control").unlink()
    is_(check(on_the_host), Grade.WARN, "udevd is not running", "start systemd-udevd")


def test_uevents(tree: Path) -> None:
    node = grow(tree, {"proc/self/uid_map": "0 1000 1\n"})
    is_(hardware.check_uevents(node), Grade.WARN, "user namespace", "hostUsers: true")


def test_sysfs(tree: Path) -> None:
    is_(hardware.check_sysfs(grow(tree, {"x": ""})), Grade.FAIL, "/sys/class/tty", "mount sysfs")
    is_(hardware.check_sysfs(grow(tree, {"sys/class/tty/x": ""})), Grade.OK, "is there")


def test_ports(tree: Path) -> None:
    node = grow(tree, {"proc/self/mountinfo": HOST})

    def check(*ports: Port, blind: bool = False) -> Finding:
        return hardware.check_nodes(dataclasses.replace(node, sources=[Here(*ports, blind=blind)]))

    is_(check(blind=True), Grade.FAIL, "cannot see", "other findings")
    is_(check(), Grade.WARN, "no serial ports", "plug in a device")
    is_(check(usb_port("ttyUSB3")), Grade.OK, "1 serial port: /dev/ttyUSB3")
    broken = usb_port(fault="/dev/ttyUSB0: No such file or directory")
    is_(check(usb_port("ttyUSB1"), broken), Grade.FAIL, "No such file", "unplug the device")
    node = grow(tree, {"proc/self/mountinfo": POD.replace("/dev ", "/other ")})
    is_(check(broken), Grade.FAIL, "No such file", "mount the host's /dev")


def test_permissions(tree: Path, tmp_path: Path) -> None:
    file = tmp_path / "ttyUSB0"
    file.write_text("")
    file.chmod(0o660)
    if os.getuid() == 0:
        os.chown(file, 0, 20)
    node = grow(tree, {})
    port = usb_port(node=str(file))
    is_(check_permissions(node, port), Grade.OK, "supplementalGroups")
    file.chmod(0o600)
    is_(check_permissions(node, port), Grade.WARN, f"only root can open {file}", "udev-rules/")
    pty = usb_port(node=str(file), number=DeviceNumber(136, 0))
    is_(check_permissions(node, pty), Grade.OK, "no ports of real devices")
    is_(check_permissions(node, usb_port(node="/nowhere")), Grade.OK, "no ports of real devices")


def check_permissions(node: Node, port: Port) -> Finding:
    return hardware.check_permissions(dataclasses.replace(node, sources=[Here(port)]))


@pytest.mark.parametrize(
    ("files", "module"),
    [
        ({"idVendor": "0403"}, "ftdi_sio"),
        ({"idVendor": "10c4"}, "cp210x"),
        (
            {"idVendor": "2341", "if/bInterfaceClass": "02", "if/bInterfaceSubClass": "02"},
            "cdc_acm",
        ),
        ({"idVendor": "046d", "if/bInterfaceClass": "03"}, None),
        ({"idVendor": "0403", "if/driver/x": ""}, None),
    ],
    ids=str,
)
def test_drivers(tree: Path, files: dict[str, str], module: str | None) -> None:
    device = "sys/devices/pci/usb1/1-1"
    node = grow(
        tree,
        {f"{device}/1-1:1.0/x": ""}
        | {f"{device}/{name.replace('if/', '1-1:1.0/')}": text for name, text in files.items()},
    )
    (tree / "sys/bus/usb/devices").mkdir(parents=True)
    (tree / "sys/bus/usb/devices/1-1:1.0").symlink_to(tree / device / "1-1:1.0")
    finding = hardware.check_drivers(node)
    if module:
        is_(finding, Grade.WARN, "1-1:1.0", f"modprobe -a {module}")
    else:
        is_(finding, Grade.OK, "has its driver")


def test_ports_that_are_kept_off_or_left_out(tree: Path) -> None:
    device = {"idVendor": "0403", "idProduct": "6001"}
    below = "sys/bus/usb/devices/1-1"
    files = {f"{below}/{name}": value for name, value in device.items()}
    node = grow(tree, files | {f"{below}/authorized": "0"})
    is_(
        hardware.check_nodes(node),
        Grade.WARN,
        "1-1 (0403:6001) is plugged in, but kept",
        "usbguard",
    )
    node = grow(tree, {f"{below}/authorized": "1", "sys/class/tty/x": ""})
    (tree / "sys/class/tty/ttyXRUSB0").symlink_to("../../devices/usb1/1-1/tty/ttyXRUSB0")
    is_(hardware.check_nodes(node), Grade.WARN, "1 USB tty matches none of nodes", "add a glob")


def test_inotify(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = "proc/sys/fs/inotify/max_user_instances"
    node = grow(tree, {limit: "8\n", "proc/77/comm": "watcher\n"})
    (tree / "proc/77/fd").mkdir()
    is_(hardware.check_inotify(node), Grade.OK, "up to 8 instances")
    for number in range(7):
        (tree / f"proc/77/fd/{number}").symlink_to("anon_inode:inotify")
    is_(hardware.check_inotify(node), Grade.WARN, "7 of the 8 instances", "sysctl")
    monkeypatch.setattr(DirectoryWatch, "refresh", lambda _: False)
    is_(hardware.check_inotify(node), Grade.WARN, "not available", "sysctl")


@pytest.fixture
async def kubelet_node() -> AsyncIterator[WholeNode]:
    async with WholeNode() as node:
        node.plug("ttyUSB0", "GPS-A7")
        yield node


async def run(check: Check, places: Places, config: Config | None = None) -> Finding:
    return await asyncio.to_thread(check, Node(config=config or Config(), places=places))


async def test_a_running_kubelet(kubelet_node: WholeNode) -> None:
    places = kubelet_node.places
    is_(await run(kubelet.check_kubelet, places), Grade.OK, "the kubelet answers")
    assert not kubelet_node.kubelet.log.registrations
    is_(await run(kubelet.check_plugin_directory, places), Grade.OK, "is writable")
    is_(await run(kubelet.check_holders, places), Grade.OK, "0 of our devices held")
    assert os.listdir(places.kubelet_dir) == ["kubelet.sock"]
    async with kubelet_node.agent():
        await kubelet_node.kubelet.wait_for(
            lambda: len(kubelet_node.kubelet.resource(SERIAL).healthy) == 1
        )
        await kubelet_node.kubelet.run_container(SERIAL)
        is_(await run(kubelet.check_holders, places), Grade.OK, "1 of our devices held")


async def test_a_missing_kubelet(kubelet_node: WholeNode) -> None:
    places = kubelet_node.places
    await kubelet_node.kubelet.stop()
    is_(await run(kubelet.check_kubelet, places), Grade.FAIL, "does not answer", "log")
    for path in places.kubelet_dir.iterdir():
        path.unlink()
    is_(await run(kubelet.check_kubelet, places), Grade.FAIL, "is not running", "MicroK8s")
    places.pod_resources.unlink(missing_ok=True)
    finding = await run(kubelet.check_holders, places)
    is_(finding, Grade.WARN, f"neither a socket at {places.pod_resources} nor", "--pod-resources")
    assert "whatever was granted counts as held" in finding.found


async def test_without_pod_resources_the_checkpoint_stands_in(kubelet_node: WholeNode) -> None:
    places = dataclasses.replace(kubelet_node.places, pod_resources=kubelet_node.root / "none")
    async with kubelet_node.agent():
        await kubelet_node.kubelet.wait_healthy(SERIAL, {"usb-0403:6001-GPS-A7-if00"})
        await kubelet_node.kubelet.run_container(SERIAL)
        finding = await run(kubelet.check_holders, places)
    is_(finding, Grade.WARN, "checkpoint stands in (1 of our devices held)", "--pod-resources")
    (places.kubelet_dir / "kubelet_internal_checkpoint").write_text("{")
    finding = await run(kubelet.check_holders, places)
    is_(finding, Grade.WARN, "another form than expected", "--pod-resources")
    assert "whatever was granted counts as held" in finding.found


def forbid(monkeypatch: pytest.MonkeyPatch, forbidden: Path) -> None:
    """Deny access to everything below a path, even to root, whom file modes do not stop."""
    look = Path.stat

    def stat(self: Path, **how: bool) -> os.stat_result:
        if forbidden in self.parents:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return look(self, **how)

    monkeypatch.setattr(Path, "stat", stat)


def test_a_socket_that_cannot_be_looked_at_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid(monkeypatch, tmp_path)
    places = Places(kubelet_dir=tmp_path, pod_resources=tmp_path / "kubelet.sock")
    finding = kubelet.check_holders(Node(places=places))
    is_(finding, Grade.WARN, "neither a socket at", "--pod-resources")


def test_a_check_that_is_denied_access_says_so_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid(monkeypatch, tmp_path)
    found = examine(Node(places=Places(kubelet_dir=tmp_path, state_dir=tmp_path)))
    assert list(found) == list(CHECKS)
    socket = tmp_path / "kubelet.sock"
    trouble = f"cannot check: [Errno 13] Permission denied: '{socket}'"
    is_(found["kubelet"], Grade.FAIL, trouble, "run as root")


async def test_with_the_plugin_watcher(tmp_path: Path) -> None:
    config = Config(registration=Registration.WATCHER)
    places = Places(registry_dir=tmp_path)
    is_(await run(kubelet.check_kubelet, places, config), Grade.OK, "finds us by itself")
    is_(await run(kubelet.check_plugin_directory, places, config), Grade.OK, str(tmp_path))
    places = Places(registry_dir=tmp_path / "none")
    finding = await run(kubelet.check_plugin_directory, places, config)
    is_(finding, Grade.FAIL, "there is no directory", "--registry-dir")


def test_directories_that_are_not_shared_with_the_host(tree: Path, tmp_path: Path) -> None:
    node = grow(tree, {"proc/self/mountinfo": POD})
    node = dataclasses.replace(
        node,
        places=Places(kubelet_dir=tmp_path, link_dir=tmp_path, cdi_dir=tmp_path),
        config=Config(resources=(ResourceConfig(name="a/b", cdi=True),)),
    )
    mount = f"mount the host's {tmp_path} read-write"
    is_(kubelet.check_plugin_directory(node), Grade.FAIL, "the host cannot see it", mount)
    mount_links = f"mount a directory of the host read-write at {tmp_path}"
    is_(kubelet.check_links(node), Grade.FAIL, "the host cannot see it", mount_links)
    is_(kubelet.check_cdi(node), Grade.FAIL, "the host cannot see it", mount)


def test_directories_that_cannot_be_used(tmp_path: Path) -> None:
    # Nobody, not even root, can create files in proc.
    places = Places(kubelet_dir=Path("/proc/self"))
    is_(kubelet.check_plugin_directory(Node(places=places)), Grade.FAIL, "cannot write to")
    long = tmp_path / ("x" * 100)
    long.mkdir()
    finding = kubelet.check_plugin_directory(Node(places=Places(kubelet_dir=long)))
    is_(finding, Grade.FAIL, "longer than", "shorter --kubelet-dir")


def test_links_and_cdi_that_are_fine(tmp_path: Path) -> None:
    places = Places(link_dir=tmp_path / "later", cdi_dir=tmp_path)
    is_(kubelet.check_links(Node(places=places)), Grade.OK, "serve will create it")
    is_(kubelet.check_links(Node(places=Places(link_dir=tmp_path))), Grade.OK, "can be kept")
    assert os.listdir(tmp_path) == [], "it only looks"
    is_(kubelet.check_cdi(Node(places=places)), Grade.OK, "no resource")
    config = Config(cdi=True)
    is_(kubelet.check_cdi(Node(places=places, config=config)), Grade.OK, "can be written")


def test_links_that_cannot_be_kept(tree: Path, tmp_path: Path) -> None:
    def check(path: Path) -> Finding:
        node = grow(tree, {"proc/self/mountinfo": HOST})
        return kubelet.check_links(dataclasses.replace(node, places=Places(link_dir=path)))

    # Nobody, not even root, can create files in proc.
    for path in (Path("/proc/self"), Path("/proc/self/later")):
        finding = check(path)
        is_(finding, Grade.FAIL, "cannot write to /proc/self: ", "--link-dir")
        assert "no device can be offered" in finding.found
    (tmp_path / "file").touch()
    is_(check(tmp_path / "file"), Grade.FAIL, f"cannot write to {tmp_path}/file: Not a directory")
    in_pod = f"{POD}\n104 100 0:4 / /proc ro - proc proc rw"
    node = grow(tree, {"proc/self/mountinfo": in_pod})
    node = dataclasses.replace(node, places=Places(link_dir=Path("/proc/self")))
    is_(kubelet.check_links(node), Grade.FAIL, "cannot write to", "must be its path on the host")


def test_state_that_can_be_kept(tree: Path, tmp_path: Path) -> None:
    node = grow(tree, {"proc/self/mountinfo": HOST})

    def check(path: Path) -> Finding:
        return kubelet.check_state(dataclasses.replace(node, places=Places(state_dir=path)))

    is_(check(tmp_path), Grade.OK, f"can be kept in {tmp_path}")
    is_(check(tmp_path / "a/b"), Grade.OK, f"{tmp_path}/a/b does not exist yet")
    assert os.listdir(tmp_path) == [tree.name], "it only looks"
    in_pod = f"{POD}\n104 100 8:1 /state {tmp_path} rw - ext4 /dev/sda1 rw"
    node = grow(tree, {"proc/self/mountinfo": in_pod})
    is_(check(tmp_path), Grade.OK, "can be kept")


def test_state_that_cannot_be_kept(tree: Path, tmp_path: Path) -> None:
    node = grow(tree, {"proc/self/mountinfo": HOST})

    def check(path: Path) -> Finding:
        return kubelet.check_state(dataclasses.replace(node, places=Places(state_dir=path)))

    # Nobody, not even root, can create files in proc.
    for path in (Path("/proc/self"), Path("/proc/self/later")):
        finding = check(path)
        is_(finding, Grade.FAIL, "cannot write to /proc/self: ", "--state-dir")
        assert "no device can be offered" in finding.found
    (tmp_path / "file").touch()
    is_(check(tmp_path / "file"), Grade.FAIL, f"cannot write to {tmp_path}/file: Not a directory")
    node = grow(tree, {"proc/self/mountinfo": POD})
    is_(check(Path("/proc/self")), Grade.FAIL, "cannot write to", "mount a directory of the host")


def test_state_that_is_forgotten_too_early(tree: Path, tmp_path: Path) -> None:
    def check(mounts: str) -> Finding:
        node = grow(tree, {"proc/self/mountinfo": mounts})
        return kubelet.check_state(dataclasses.replace(node, places=Places(state_dir=tmp_path)))

    mount = f"mount a directory of the host read-write at {tmp_path}"
    is_(check(POD), Grade.WARN, f"{tmp_path} is the container's own", mount)
    in_memory = f"104 100 0:23 / {tmp_path.parent} rw - tmpfs tmpfs rw\n"
    is_(check(f"{POD}\n{in_memory}"), Grade.WARN, f"{tmp_path} is in memory", mount)
    is_(check(HOST + in_memory), Grade.WARN, f"{tmp_path} is in memory", "--state-dir")
    on_disk = f"105 104 8:1 / {tmp_path} rw - ext4 /dev/sda1 rw\n"
    is_(check(HOST + in_memory + on_disk), Grade.OK, "can be kept")


@pytest.mark.parametrize("way", ["flag", "environment"])
def test_the_state_directory_is_the_one_that_was_named(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--no-udev", "--device-dir", str(tmp_path), "--kubelet-dir", str(tmp_path)]
    if way == "flag":
        flags += ["--state-dir", "/proc/self"]
    else:
        monkeypatch.setenv("USBPLUGIN_STATE_DIR", "/proc/self")
    assert main(["doctor", "--json", *flags]) == 1
    found = {finding["check"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert "cannot write to /proc/self: " in found["state"]["found"]


async def test_the_daemon(kubelet_node: WholeNode) -> None:
    places = kubelet_node.places
    is_(await run(kubelet.check_daemon, places), Grade.OK, "usbplugin serve is not running here")
    async with kubelet_node.agent():
        await kubelet_node.kubelet.wait_for(
            lambda: len(kubelet_node.kubelet.resource(SERIAL).healthy) == 1
        )
        async with asyncio.timeout(10):  # the session knows a little after the kubelet does
            while (finding := await run(kubelet.check_daemon, places)).grade is not Grade.OK:
                pass
        is_(finding, Grade.OK, "running and ready")
        await kubelet_node.kubelet.stop()
        async with asyncio.timeout(10):
            while (finding := await run(kubelet.check_daemon, places)).grade is Grade.OK:
                pass
        is_(finding, Grade.WARN, f"not ready: session {SERIAL}: ", "log")


def test_a_daemon_that_should_be_there(tmp_path: Path) -> None:
    places = Places(link_dir=tmp_path)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(places.control_socket))
    finding = kubelet.check_daemon(Node(places=places))
    is_(finding, Grade.WARN, f"its socket is left at {places.control_socket}", "log")


def test_a_daemon_that_talks_nonsense(tmp_path: Path) -> None:
    places = Places(link_dir=tmp_path)
    places.control_socket.write_text("no socket")
    is_(kubelet.check_daemon(Node(places=places)), Grade.OK, "usbplugin serve is not running here")


@pytest.mark.parametrize(
    ("context", "grade", "text"),
    [
        ("system_u:system_r:container_t:s0:c1,c2", Grade.FAIL, "may not talk to the kubelet"),
        ("system_u:system_r:container_device_plugin_t:s0", Grade.OK, "may talk"),
        ("system_u:system_r:spc_t:s0", Grade.OK, "may talk"),
        ("system_u:system_r:odd_t:s0", Grade.WARN, "odd_t"),
    ],
)
def test_selinux(tree: Path, context: str, grade: Grade, text: str) -> None:
    node = grow(tree, {"sys/fs/selinux/enforce": "1", "proc/self/attr/current": f"{context}\0"})
    is_(rivals.check_selinux(node), grade, text)
    node = grow(tree, {"sys/fs/selinux/enforce": "0"})
    is_(rivals.check_selinux(node), Grade.OK, "is not enforcing")


def test_apparmor(tree: Path) -> None:
    is_(rivals.check_apparmor(grow(tree, {"x": ""})), Grade.OK, "does not confine")
    node = grow(tree, {"proc/self/attr/current": "cri-containerd.apparmor.d (enforce)\n"})
    is_(rivals.check_apparmor(node), Grade.OK, "cri-containerd.apparmor.d")


def test_modem_manager(tree: Path) -> None:
    is_(rivals.check_modem_manager(grow(tree, {"proc/1/comm": "init"})), Grade.OK, "not found")
    node = grow(tree, {"proc/77/comm": "ModemManager\n"})
    is_(rivals.check_modem_manager(node), Grade.WARN, "is running", "ID_MM_DEVICE_IGNORE")
    node = grow(
        tree,
        {
            "sys/class/tty/ttyACM0/dev": "166:0\n",
            "run/udev/data/c166:0": "E:ID_MM_CANDIDATE=1\n",
        },
    )
    is_(rivals.check_modem_manager(node), Grade.WARN, "ttyACM0", "ID_MM_DEVICE_IGNORE")
    (tree / "proc/77/comm").unlink()
    is_(rivals.check_modem_manager(node), Grade.OK, "ModemManager not found")
    # Inside a pod, the only sign of it is in udevd's database.
    node = grow(tree, {"proc/self/mountinfo": POD})
    is_(rivals.check_modem_manager(node), Grade.WARN, "if running", "ID_MM_DEVICE_IGNORE")
    text = "E:ID_MM_CANDIDATE=1\nE:ID_MM_DEVICE_IGNORE=1\n"
    node = grow(tree, {"run/udev/data/c166:0": text})
    is_(rivals.check_modem_manager(node), Grade.OK, "run doctor on the node too")


def test_brltty(tree: Path) -> None:
    is_(rivals.check_brltty(grow(tree, {"proc/1/comm": "init"})), Grade.OK, "brltty not found")
    node = grow(tree, {"proc/77/comm": "brltty\n"})
    is_(rivals.check_brltty(node), Grade.WARN, "brltty is running", "remove brltty")
    (tree / "proc/77/comm").unlink()
    node = grow(tree, {"run/udev/data/c189:3": "E:BRLTTY_BRAILLE_DRIVER=bm\nE:X=1\n"})
    is_(rivals.check_brltty(node), Grade.WARN, "claim a USB device", "remove brltty")
    node = grow(tree, {"run/udev/data/c189:3": "E:BRLTTY_BRAILLE_DRIVER=\nE:X=1\n"})
    is_(rivals.check_brltty(node), Grade.OK, "brltty not found")


def test_other_processes_with_a_port_open(tree: Path) -> None:
    node = grow(
        tree,
        {
            "proc/77/comm": "minicom\n",
            "proc/77/cgroup": "0::/user.slice",
            "proc/78/comm": "reader\n",
            "proc/78/cgroup": "0::/kubepods/pod1/c1",
        },
    )
    for pid in ("77", "78"):
        (tree / f"proc/{pid}/fd").mkdir()
        (tree / f"proc/{pid}/fd/3").symlink_to("/dev/ttyUSB0")
    node = dataclasses.replace(node, sources=[Here(usb_port("ttyUSB0")), Here(blind=True)])
    is_(rivals.check_openers(node), Grade.WARN, "minicom (77) has /dev/ttyUSB0 open", "stop it")
    assert "reader" not in rivals.check_openers(node).found, "pods may open ports"
    (tree / "proc/77/cgroup").write_text("0::/kubepods/pod2")
    is_(rivals.check_openers(node), Grade.OK, "no process outside a pod")


async def test_the_command_on_a_healthy_node(
    kubelet_node: WholeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    places = kubelet_node.places
    flags = [
        *("--no-udev", "--device-dir", str(kubelet_node.device_dir)),
        *("--kubelet-dir", str(places.kubelet_dir), "--link-dir", str(places.link_dir)),
        *("--pod-resources", str(places.pod_resources), "--state-dir", str(places.state_dir)),
    ]
    code = await asyncio.to_thread(main, ["doctor", "--json", *flags])
    found = json.loads(capsys.readouterr().out)
    assert [finding["check"] for finding in found] == list(CHECKS)
    assert {"check", "grade", "found", "remedy"} == found[0].keys()
    failed = {finding["check"]: finding for finding in found if finding["grade"] == "fail"}
    # Whatever this machine itself lacks does not matter here.
    assert failed.keys() <= {"sysfs", "uevents"}
    assert code == bool(failed)
    for finding in found:
        assert finding["found"].isprintable()
        assert (finding["grade"] == "ok") == (not finding["remedy"])


def test_the_command_on_a_node_without_a_kubelet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--no-udev", "--device-dir", str(tmp_path), "--kubelet-dir", str(tmp_path)]
    assert main(["doctor", *flags, "--state-dir", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "\nfail  kubelet" in shown
    assert "-> start the kubelet" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_a_process_that_calls_itself_an_escape_sequence_does_not_reach_the_terminal(
    tree: Path,
) -> None:
    node = grow(tree, {"proc/77/comm": "\x1b]0;owned\x07\n"})
    assert node.processes() == {"77": r"\x1b]0;owned\x07"}
