"""Examines a node: what stops the plugin from working, and how to fix it.

Each check is a function that looks at one thing and changes nothing. A file created to test whether
a directory is writable is removed at once.
"""

from usbplugin.doctor import dra, hardware, kubelet, rivals
from usbplugin.doctor.finding import Check, Finding, Grade, Node, fail

__all__ = ["CHECKS", "Check", "Finding", "Grade", "Node", "examine"]

CHECKS: dict[str, Check] = {
    "sysfs": hardware.check_sysfs,
    "uevents": hardware.check_uevents,
    "udevd": hardware.check_udevd,
    "ports": hardware.check_nodes,
    "resources": hardware.check_resources,
    "permissions": hardware.check_permissions,
    "drivers": hardware.check_drivers,
    "inotify": hardware.check_inotify,
    "plugin directory": kubelet.check_plugin_directory,
    "kubelet": kubelet.check_kubelet,
    "holders": kubelet.check_holders,
    "links": kubelet.check_links,
    "state": kubelet.check_state,
    "CDI": kubelet.check_cdi,
    "DRA": dra.check_dra,
    "claims": dra.check_claims,
    "daemon": kubelet.check_daemon,
    "SELinux": rivals.check_selinux,
    "AppArmor": rivals.check_apparmor,
    "ModemManager": rivals.check_modem_manager,
    "brltty": rivals.check_brltty,
    "open ports": rivals.check_openers,
}
"""By what they look at, in display order."""


def examine(node: Node) -> dict[str, Finding]:
    """Run all checks."""
    return {name: _finding(check, node) for name, check in CHECKS.items()}


def _finding(check: Check, node: Node) -> Finding:
    # If one check is denied access, still run the others.
    try:
        return check(node)
    except OSError as error:
        return fail(f"cannot check: {error}", "run as root")
