"""Checks for what may get in the way: security modules, and programs that grab ports."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from usbplugin.doctor.finding import Finding, Node, fail, ok, warn
from usbplugin.errors import DiscoveryError

if TYPE_CHECKING:
    from pathlib import Path

_RULE = "install the rule in udev-rules/ on the host"
_FREE_TYPES = ("container_device_plugin_t", "spc_t", "unconfined_t", "unconfined_service_t")
_ON_THE_NODE = "; a pod cannot see the node's processes, so run doctor on the node too"


def check_selinux(node: Node) -> Finding:
    """Whether SELinux lets us talk to the kubelet."""
    if node.read("sys/fs/selinux/enforce") != "1":
        return ok("SELinux is not enforcing")
    context = node.read("proc/self/attr/current")
    found = f"SELinux is enforcing, and the context is {context}"
    if any(f":{kind}:" in f"{context}:" for kind in _FREE_TYPES):
        return ok(f"{found}, which may talk to the kubelet")
    if ":container_t:" in context:
        return fail(
            f"{found}, which may not talk to the kubelet",
            "set seLinuxOptions: {type: container_device_plugin_t} (kustomize component selinux;"
            " Helm seLinuxType)",
        )
    return warn(found, "if anything is denied, ausearch -m AVC on the host shows what")


def check_apparmor(node: Node) -> Finding:
    """Whether AppArmor confines this process."""
    profile = node.read("proc/self/attr/apparmor/current") or node.read("proc/self/attr/current")
    if "(enforce)" not in profile:
        return ok("AppArmor does not confine this process")
    return ok(
        f"AppArmor applies profile {profile}; if anything is denied, dmesg on the host shows what"
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
            f"ModemManager, if running, sends AT commands to {', '.join(candidates)} for 10 to 20 s"
            " after each plug",
            f"{_RULE} (ID_MM_DEVICE_IGNORE), or remove ModemManager",
        )
    if runs:
        return warn(
            "ModemManager is running: it sends AT commands to new ports for 10 to 20 s",
            f"{_RULE} (ID_MM_DEVICE_IGNORE), or remove ModemManager",
        )
    return ok(f"ModemManager not found{_ON_THE_NODE if node.in_container else ''}")


def check_brltty(node: Node) -> Finding:
    """Whether brltty mistakes adapters for Braille displays."""
    data = node.root / "run/udev/data"
    entries = [path.name for path in _files(data) if "E:BRLTTY_BRAILLE_DRIVER=" in _read(path)]
    entries = [
        name for name in entries if "E:BRLTTY_BRAILLE_DRIVER=\n" not in _read(data / name) + "\n"
    ]
    remedy = f"remove brltty from the host, or {_RULE}"
    if entries:
        return warn("brltty's udev rules claim a USB device that is plugged in", remedy)
    if "brltty" in node.processes().values():
        return warn("brltty is running: it takes over CH340, CP210x and FTDI adapters", remedy)
    return ok(f"brltty not found{_ON_THE_NODE if node.in_container else ''}")


def check_openers(node: Node) -> Finding:
    """Whether a process outside any pod has a port open."""
    wanted = set()
    for source in node.sources:
        with suppress(DiscoveryError):  # check_nodes reports that
            wanted |= {port.node for port in source.scan() if not port.number.is_pty}
    names = node.processes()
    openers = sorted(
        f"{names[pid]} ({pid}) has {node_path} open"
        for pid in names
        for node_path in wanted.intersection(node.open_files(pid))
        if "kubepods" not in node.read(f"proc/{pid}/cgroup")
    )
    if openers:
        return warn(f"outside any pod, {'; '.join(openers)}", "stop it, or keep it off that port")
    return ok(
        f"no process outside a pod has a port open{_ON_THE_NODE if node.in_container else ''}"
    )


def _tty_entries(node: Node) -> list[tuple[str, str]]:
    """The database entries udevd has for USB ttys, each with the tty's kernel name."""
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
