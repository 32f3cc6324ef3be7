"""Checks of who else has a say: security modules, and programs that take ports for themselves."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from usbplugin.doctor.finding import Finding, Node, fail, ok, warn
from usbplugin.errors import DiscoveryError

if TYPE_CHECKING:
    from pathlib import Path

_RULE = "install the rule in udev-rules/ on the host"
_FREE_TYPES = ("container_device_plugin_t", "spc_t", "unconfined_t", "unconfined_service_t")
_ON_THE_NODE = "; a pod does not see the node's processes: run doctor on the node as well"


def check_selinux(node: Node) -> Finding:
    """Whether SELinux lets us speak to the kubelet."""
    if node.read("sys/fs/selinux/enforce") != "1":
        return ok("SELinux does not enforce anything here")
    context = node.read("proc/self/attr/current")
    if any(f":{kind}:" in f"{context}:" for kind in _FREE_TYPES):
        return ok(f"SELinux enforces, and runs us as {context}, which may speak to the kubelet")
    if ":container_t:" in context:
        return fail(
            f"SELinux enforces, and runs us as {context}, which may not speak to the kubelet",
            "seLinuxOptions: {type: container_device_plugin_t} (kustomize component selinux; Helm"
            " seLinuxType)",
        )
    return warn(
        f"SELinux enforces, and runs us as {context}",
        "if something is denied, ausearch -m AVC on the host tells what",
    )


def check_apparmor(node: Node) -> Finding:
    """Whether AppArmor confines us."""
    profile = node.read("proc/self/attr/apparmor/current") or node.read("proc/self/attr/current")
    if "(enforce)" not in profile:
        return ok("AppArmor does not confine us")
    return ok(
        f"AppArmor confines us by {profile}; if something is denied, dmesg on the host tells what"
    )


def check_modem_manager(node: Node) -> Finding:
    """Whether ModemManager talks to new ports."""
    candidates = [
        name
        for name, entry in _tty_entries(node)
        if "E:ID_MM_CANDIDATE=1" in entry
        and not any(key in entry for key in ("E:ID_MM_DEVICE_IGNORE=1", "E:ID_MM_PORT_IGNORE=1"))
    ]
    runs = "ModemManager" in node.processes().values()
    if candidates and (runs or node.in_container):
        return warn(
            f"ModemManager, if it runs, sends AT commands to {', '.join(candidates)} for 10 to 20 s"
            " after each plug",
            f"{_RULE} (ID_MM_DEVICE_IGNORE), or remove ModemManager",
        )
    if runs:
        return warn(
            "ModemManager runs: it sends AT commands to new ports for 10 to 20 s",
            f"{_RULE} (ID_MM_DEVICE_IGNORE), or remove ModemManager",
        )
    return ok(f"no ModemManager is seen{_ON_THE_NODE if node.in_container else ''}")


def check_brltty(node: Node) -> Finding:
    """Whether brltty takes adapters for Braille displays."""
    data = node.root / "run/udev/data"
    entries = [path.name for path in _files(data) if "E:BRLTTY_BRAILLE_DRIVER=" in _read(path)]
    entries = [
        name for name in entries if "E:BRLTTY_BRAILLE_DRIVER=\n" not in _read(data / name) + "\n"
    ]
    remedy = f"remove brltty from the host, or {_RULE}"
    if entries:
        return warn("brltty's udev rules claim a USB device that is plugged in", remedy)
    if "brltty" in node.processes().values():
        return warn("brltty runs: it takes CH340, CP210x and FTDI adapters away", remedy)
    return ok(f"no brltty is seen{_ON_THE_NODE if node.in_container else ''}")


def check_openers(node: Node) -> Finding:
    """Whether a process that is in no pod has a port open."""
    wanted = set()
    for source in node.sources:
        with suppress(DiscoveryError):  # check_nodes tells
            wanted |= {port.node for port in source.scan() if not port.number.is_pty}
    names = node.processes()
    openers = sorted(
        f"{names[pid]} ({pid}) has {node_path}"
        for pid in names
        for node_path in wanted.intersection(node.open_files(pid))
        if "kubepods" not in node.read(f"proc/{pid}/cgroup")
    )
    if openers:
        return warn(
            f"open outside of any pod: {'; '.join(openers)}", "stop it, or keep it off that port"
        )
    return ok(
        f"no process outside of pods has a port open{_ON_THE_NODE if node.in_container else ''}"
    )


def _tty_entries(node: Node) -> list[tuple[str, str]]:
    """Entries of udevd's database of USB ttys, by the kernel's name."""
    found = []
    for folder in sorted((node.root / "sys/class/tty").glob("tty[UA][SC][BM]*")):
        number = node.read(f"sys/class/tty/{folder.name}/dev")
        if entry := node.read(f"run/udev/data/c{number}"):
            found.append((folder.name, entry))
    return found


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
