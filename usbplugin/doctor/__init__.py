"""Examines a node: what of it keeps the plugin from working, and how to mend that.

Each check is a function that looks at one thing and changes nothing; a file that it makes to see
whether it can is gone again.
"""

from usbplugin.doctor import hardware, kubelet, rivals
from usbplugin.doctor.finding import Check, Finding, Grade, Node, fail

__all__ = ["CHECKS", "Check", "Finding", "Grade", "Node", "examine"]

CHECKS: dict[str, Check] = {
    "sysfs": hardware.check_sysfs,
    "uevents": hardware.check_uevents,
    "udevd": hardware.check_udevd,
    "ports": hardware.check_nodes,
    "permissions": hardware.check_permissions,
    "drivers": hardware.check_drivers,
    "inotify": hardware.check_inotify,
    "plugin directory": kubelet.check_plugin_directory,
    "kubelet": kubelet.check_kubelet,
    "holders": kubelet.check_holders,
    "links": kubelet.check_links,
    "CDI": kubelet.check_cdi,
    "daemon": kubelet.check_daemon,
    "SELinux": rivals.check_selinux,
    "AppArmor": rivals.check_apparmor,
    "ModemManager": rivals.check_modem_manager,
    "brltty": rivals.check_brltty,
    "open ports": rivals.check_openers,
}
"""By what they look at, in the order in which they are shown."""


def examine(node: Node) -> dict[str, Finding]:
    """Run all checks."""
    return {name: _finding(check, node) for name, check in CHECKS.items()}


def _finding(check: Check, node: Node) -> Finding:
    # What one check may not look at is no reason to leave the others out.
    try:
        return check(node)
    except OSError as error:
        return fail(f"cannot look: {error}", "run as root")
