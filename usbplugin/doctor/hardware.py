"""Checks what discovery needs: sysfs, udevd, uevents, nodes, drivers and inotify."""

from __future__ import annotations

import grp
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from usbplugin.discovery.survey import survey
from usbplugin.doctor.finding import SEE_SELINUX, Finding, Node, fail, ok, warn
from usbplugin.errors import DiscoveryError
from usbplugin.foundation.watch import DirectoryWatch
from usbplugin.inventory import first_match

if TYPE_CHECKING:
    from usbplugin.discovery import Port, Source

_RECEIVE_BUFFER = 1 << 16
_INOTIFY = "anon_inode:inotify"
_MOST_USED = 0.8


def check_sysfs(node: Node) -> Finding:
    """Whether sysfs is available."""
    if (node.root / "sys/class/tty").is_dir():
        return ok("/sys/class/tty is there")
    return fail("/sys/class/tty is missing", "mount sysfs at /sys; a pod has it by default")


def check_uevents(node: Node) -> Finding:
    """Whether the kernel reports devices that come and go."""
    first = node.read("proc/self/uid_map").split()[:3]
    if first and first != ["0", "0", "4294967295"]:
        return warn(
            "this is a user namespace, which gets no uevents: watching /dev instead",
            "set hostUsers: true in the pod's spec",
        )
    try:
        # Only here: libudev exists on Linux alone.
        from usbplugin.discovery.libudev import Libudev  # noqa: PLC0415

        Libudev().monitor(_RECEIVE_BUFFER)
    except DiscoveryError as error:
        return fail(str(error), "install libudev1; allow netlink sockets (seccomp, AppArmor)")
    return ok("kernel uevents can be received")


def check_udevd(node: Node) -> Finding:
    """Whether udevd shows when it has finished with a device."""
    try:
        if any((node.root / "run/udev/data").iterdir()):
            # A pod has no control socket, so it cannot tell whether udevd is still running.
            if node.in_container or (node.root / "run/udev/control").exists():
                return ok("udevd's database is readable")
            found = "udevd is not running (no /run/udev/control), and its database is left over"
        else:
            found = "/run/udev/data is empty"
    except OSError as error:
        found = f"cannot read /run/udev/data ({error.strerror})"
        if isinstance(error, PermissionError):
            return warn(found, f"run as root; {SEE_SELINUX}")
    remedy = "start systemd-udevd on the host"
    if node.in_container:
        remedy += "; if it is running, restart this pod: the directory may have been recreated"
        if not node.is_mounted(Path("/run/udev/data")):
            remedy = "mount the host's /run/udev/data read-only at the same path"
    return warn(f"{found}: cannot tell when udevd has finished with a port", remedy)


def check_nodes(node: Node) -> Finding:
    """Whether every port's node exists and is what sysfs says."""
    ports: list[Port] = []
    try:
        for source in node.sources:
            ports += source.scan()
    except DiscoveryError as error:
        return fail(str(error), "see the other findings")
    faults = [port.fault for port in ports if port.fault]
    if faults:
        remedy = "unplug the device and plug it in again"
        if node.in_container and not node.is_mounted(Path("/dev")):
            remedy = "mount the host's /dev at /dev: a container's own /dev gets no new nodes"
        return fail("; ".join(faults), remedy)
    found = "no serial ports found"
    if ports:
        plural = "" if len(ports) == 1 else "s"
        found = f"{len(ports)} serial port{plural}: {', '.join(port.node for port in ports)}"
    seen = survey(node.config.nodes, node.root)
    remedies = {
        "allow the device (USBGuard: usbguard allow-device)": seen.kept_off,
        "add a glob for them to nodes in the configuration, and restart the plugin": seen.left_out,
    }
    if missed := [remedy for remedy, which in remedies.items() if which]:
        told = seen._replace(without_driver=()).lines()  # the drivers finding tells of these
        return warn("; ".join([found, *told]), "; ".join(missed))
    if not ports:
        remedy = "plug in a device; if one is plugged in, see dmesg and the drivers finding"
        return warn(found, remedy)
    return ok(found)


def check_resources(node: Node) -> Finding:
    """What each resource of the configuration gets here."""
    rules = node.config.rules()
    ports = [port for source in node.sources for port in _scan(source)]
    owners = [rule.name if (rule := first_match(rules, port)) else "" for port in ports]
    counts = {rule.name: owners.count(rule.name) for rule in rules}
    found = ", ".join(
        f"{name}: {count} port{'s'[: count != 1]}" if count else f"{name}: matches nothing here"
        for name, count in counts.items()
    )
    if ports and not any(counts.values()):
        return warn(found, "compare the selectors with usbplugin list --json")
    return ok(found)


def check_permissions(node: Node) -> Finding:
    """Whether anyone but root can open the nodes."""
    closed, groups = [], set()
    for source in node.sources:
        for port in _scan(source):
            try:
                status = os.stat(port.node)  # noqa: PTH116 -- a str
            except OSError:
                continue  # check_nodes reports that
            if port.number.is_pty:
                continue
            if status.st_mode & stat.S_IRGRP and status.st_gid:
                groups.add(status.st_gid)
            else:
                closed.append(port.node)
    if closed:
        return warn(
            f"only root can open {', '.join(closed)}, even in containers",
            "give them a group on the host: udev-rules/ has a rule for that",
        )
    if not groups:
        return ok("no ports of real devices to check")
    names = ", ".join(f"{_group(gid)} ({gid})" for gid in sorted(groups))
    return ok(f"ports belong to group {names}: non-root pods need it in supplementalGroups")


def check_drivers(node: Node) -> Finding:
    """Whether any USB serial adapter is plugged in without a driver."""
    unserved = dict(survey(node.config.nodes, node.root).without_driver)
    if not unserved:
        return ok("every known USB serial adapter has its driver")
    modules = " ".join(sorted(set(unserved.values())))
    return warn(
        f"no driver for USB interface {', '.join(unserved)}, which looks like a serial port",
        f"on the host: modprobe -a {modules}; to load it at boot, use /etc/modules-load.d/",
    )


def check_inotify(node: Node) -> Finding:
    """Whether directories can be watched."""
    limit = node.read("proc/sys/fs/inotify/max_user_instances")
    used = sum(node.open_files(pid).count(_INOTIFY) for pid in node.processes())
    watch = DirectoryWatch(Path("/dev"), lambda: None)
    try:
        works = watch.refresh()
    finally:
        watch.stop()
    remedy = "sysctl fs.inotify.max_user_instances=8192; to make it permanent, use /etc/sysctl.d/"
    if not works:
        return warn("inotify is not available: polling directories every second", remedy)
    if limit.isdigit() and used > _MOST_USED * int(limit):
        return warn(
            f"inotify works, but {used} of the {limit} instances allowed per user are in use",
            remedy,
        )
    return ok(f"inotify works; up to {limit or 'an unknown number of'} instances per user")


def _scan(source: Source) -> tuple[Port, ...]:
    try:
        return source.scan()
    except DiscoveryError:
        return ()  # check_nodes reports that


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return "?"


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
