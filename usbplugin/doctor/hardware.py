"""Checks of what discovery needs: sysfs, udevd, uevents, nodes, drivers, inotify."""

from __future__ import annotations

import grp
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from usbplugin.doctor.finding import Finding, Node, fail, ok, warn
from usbplugin.errors import DiscoveryError
from usbplugin.foundation.watch import DirectoryWatch

if TYPE_CHECKING:
    from usbplugin.discovery import Port, Source

_RECEIVE_BUFFER = 1 << 16
_INOTIFY = "anon_inode:inotify"
_MOST_USED = 0.8

# Vendors of USB serial chips, and the kernel modules that drive them (drivers/usb/serial).
_MODULES = {
    "0403": "ftdi_sio",
    "067b": "pl2303",
    "10c4": "cp210x",
    "1a86": "ch341",
}
_ACM = ("02", "02")
"""bInterfaceClass and bInterfaceSubClass of a CDC ACM control interface (USB CDC 1.2)."""


def check_sysfs(node: Node) -> Finding:
    """Whether the kernel's view of ttys can be seen."""
    if (node.root / "sys/class/tty").is_dir():
        return ok("/sys/class/tty can be read")
    return fail(
        "/sys/class/tty is not there", "mount sysfs at /sys; in a pod it is there by itself"
    )


def check_uevents(node: Node) -> Finding:
    """Whether the kernel tells of devices that come and go."""
    first = node.read("proc/self/uid_map").split()[:3]
    if first and first != ["0", "0", "4294967295"]:
        return warn(
            "this is a user namespace, to which the kernel sends no uevents: /dev is watched"
            " instead, and udevd's answer is waited for by polling",
            "set hostUsers: true in the pod's spec",
        )
    try:
        # Only here: libudev exists on Linux alone.
        from usbplugin.discovery.libudev import Libudev  # noqa: PLC0415

        Libudev().monitor(_RECEIVE_BUFFER)
    except DiscoveryError as error:
        return fail(str(error), "install libudev1; allow netlink sockets (seccomp, AppArmor)")
    return ok("kernel uevents can be listened to")


def check_udevd(node: Node) -> Finding:
    """Whether udevd tells when it has finished with a device."""
    try:
        if any((node.root / "run/udev/data").iterdir()):
            # In the pod there is no control socket, and so no telling whether it has ended.
            if node.in_container or (node.root / "run/udev/control").exists():
                return ok("udevd keeps a database, and it can be read")
            found = "udevd has ended (no /run/udev/control), and left its database"
        else:
            found = "/run/udev/data is empty"
    except OSError as error:
        found = f"/run/udev/data cannot be read ({error.strerror})"
        if isinstance(error, PermissionError):
            return warn(found, "run as root; where SELinux enforces, see the finding about it")
    remedy = "start systemd-udevd on the host"
    if node.in_container:
        remedy += "; if it runs, restart this pod, for the directory may have been made anew"
        if not node.is_mounted(Path("/run/udev/data")):
            remedy = "mount the host's /run/udev/data, read-only, at the same path"
    return warn(f"{found}: whether udevd is done with a port is not known", remedy)


def check_nodes(node: Node) -> Finding:
    """Whether every port's node is there, and is what sysfs says."""
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
            remedy = "mount the host's /dev at /dev: a container's own one shows no new nodes"
        return fail("; ".join(faults), remedy)
    if not ports:
        return warn(
            "no serial port is here",
            "plug a device in; if it is, see dmesg, and the finding about drivers",
        )
    return ok(f"{len(ports)} serial ports: {', '.join(port.node for port in ports)}")


def check_permissions(node: Node) -> Finding:
    """Whether anybody but root can open the nodes."""
    closed, groups = [], set()
    for source in node.sources:
        for port in _scan(source):
            try:
                status = os.stat(port.node)  # noqa: PTH116 -- a str
            except OSError:
                continue  # check_nodes tells
            if port.number.is_pty:
                continue
            if status.st_mode & stat.S_IRGRP and status.st_gid:
                groups.add(status.st_gid)
            else:
                closed.append(port.node)
    if closed:
        return warn(
            f"only root can open {', '.join(closed)}, in containers too",
            "give them a group on the host: udev-rules/ has a rule",
        )
    if not groups:
        return ok("nothing to be said about permissions: no port of a real device is here")
    names = ", ".join(f"{_group(gid)} ({gid})" for gid in sorted(groups))
    return ok(f"ports belong to group {names}: supplementalGroups for pods that are not root")


def check_drivers(node: Node) -> Finding:
    """Whether a USB serial adapter is plugged in that no driver serves."""
    unserved = {}
    for interface in sorted((node.root / "sys/bus/usb/devices").glob("*:*")):
        if (interface / "driver").exists():
            continue
        vendor = _text(interface.resolve().parent / "idVendor")
        kind = (_text(interface / "bInterfaceClass"), _text(interface / "bInterfaceSubClass"))
        module = "cdc_acm" if kind == _ACM else _MODULES.get(vendor)
        if module:
            unserved[interface.name] = module
    if not unserved:
        return ok("every USB serial adapter that is known has its driver")
    modules = " ".join(sorted(set(unserved.values())))
    return warn(
        f"no driver serves USB interface {', '.join(unserved)}, a serial port by the looks of it",
        f"on the host: modprobe -a {modules}; to have that at boot, /etc/modules-load.d/",
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
    remedy = "sysctl fs.inotify.max_user_instances=8192, and for good in /etc/sysctl.d/"
    if not works:
        return warn("inotify is not available: directories are looked at every second", remedy)
    if limit.isdigit() and used > _MOST_USED * int(limit):
        return warn(
            f"inotify works, but {used} of the {limit} instances that a user may have are taken",
            remedy,
        )
    return ok(f"inotify works; up to {limit or 'an unknown number of'} instances per user")


def _scan(source: Source) -> tuple[Port, ...]:
    try:
        return source.scan()
    except DiscoveryError:
        return ()  # check_nodes tells


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
