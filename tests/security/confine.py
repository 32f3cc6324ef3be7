"""Runs a command with the privileges of the DaemonSet's pod, as far as they can be given up.

    python confine.py --writable DIR ... -- COMMAND

Root without a capability, and no way to any; the whole file system read-only but for the given
directories; network, IPC and host name of its own; the system calls that container runtimes refuse
by default refused. What needs a runtime is missing: a device cgroup, masked files in /proc, and the
rest of the runtime's list of system calls, which names those that are allowed.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import platform
import struct
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

# linux/mount.h, linux/sched.h, linux/prctl.h, linux/capability.h
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
_NEW_MOUNTS, _NEW_NETWORK, _NEW_IPC, _NEW_HOST_NAME = 0x20000, 0x40000000, 0x8000000, 0x4000000
_PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 22, 24, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION = 0x20080522

# linux/filter.h, linux/seccomp.h, linux/audit.h
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _REFUSE, _MODE_FILTER = 0x7FFF0000, 0x00050000, 2
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

# By architecture; -1 where it has none of that name.
REFUSED = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "finit_module": (313, 273),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, -1),
    "iopl": (172, -1),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "pivot_root": (155, 41),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "vhangup": (153, 58),
}


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _mount(source: str, target: str, flags: int) -> None:
    _check(
        _libc.mount(source.encode(), target.encode(), None, ctypes.c_ulong(flags), None),
        f"mount {target}",
    )


def _mounts() -> list[str]:
    """All mount points, those of others before what is mounted on them."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4].encode().decode("unicode_escape") for line in lines]


def freeze_files(writable: list[str]) -> None:
    """Make all file systems read-only, in a mount namespace of our own."""
    _mount("none", "/", _MS_REC | _MS_PRIVATE)
    for path in writable:
        _mount(path, path, _MS_BIND)
    for path in dict.fromkeys(_mounts()):
        if path not in writable:
            try:
                _mount("none", path, _MS_REMOUNT | _MS_BIND | _MS_RDONLY)
            except OSError as error:
                # Hidden below another mount, or in a directory that is no longer there.
                if error.errno not in {errno.ENOENT, errno.EINVAL, errno.EACCES}:
                    raise


def drop_capabilities() -> None:
    """All of them, and whatever an executed program might get."""
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "ambient capabilities")
    for capability in range(last + 1):
        _check(_libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0), "bounding set")
    header = ctypes.create_string_buffer(struct.pack("Ii", _CAPABILITY_VERSION, 0))
    nothing = ctypes.create_string_buffer(bytes(24))
    _check(_libc.capset(header, nothing), "capset")
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def refuse_system_calls() -> None:
    """Have those fail with EPERM that a container is refused by default."""
    architecture, column = _ARCHITECTURES[platform.machine()]
    numbers = [both[column] for both in REFUSED.values() if both[column] >= 0]

    def step(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
        return struct.pack("HBBI", code, then, otherwise, value)

    refuse, allow = step(_RETURN, _REFUSE | errno.EPERM), step(_RETURN, _ALLOW)
    program = [
        step(_LOAD, _ARCHITECTURE_AT),
        step(_JUMP_IF_EQUAL, architecture, 1),
        refuse,
        step(_LOAD, _NUMBER_AT),
        # Each one jumps to the refusal, which comes after the last of them and its "allow".
        *(
            step(_JUMP_IF_EQUAL, number, len(numbers) - position)
            for position, number in enumerate(numbers)
        ),
        allow,
        refuse,
    ]
    code = b"".join(program)
    filter_program = _Program(len(program), code)
    _check(
        _libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(filter_program), 0, 0), "seccomp"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--writable", action="append", default=[])
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    namespaces = _NEW_MOUNTS | _NEW_NETWORK | _NEW_IPC | _NEW_HOST_NAME
    _check(_libc.unshare(namespaces), "unshare")
    freeze_files(options.writable)
    os.setgroups([])
    drop_capabilities()
    if platform.machine() in _ARCHITECTURES:
        refuse_system_calls()
    os.execv(options.command[0], options.command)


if __name__ == "__main__":
    main()
