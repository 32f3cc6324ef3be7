"""What the virtual machine needs from the host, and Debian's packages that bring it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from .errors import MachineError

# Commands in /sbin are not on everybody's PATH.
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])

_PACKAGES = {
    "busybox": "busybox-static",
    "depmod": "kmod",
    "dpkg-deb": "dpkg",
    "modprobe": "kmod",
    "qemu-system-x86_64": "qemu-system-x86",
    "setpriv": "util-linux",
    "udevadm": "udev",
    "unshare": "util-linux",
    "xz": "xz-utils",  # Python may have been built without its lzma module
}

KERNEL_PACKAGE = "linux-image-amd64"


def say(text: str) -> None:
    """Tell the person at the terminal, apart from the command's own output."""
    sys.stderr.write(f"vm: {text}\n")
    sys.stderr.flush()


def missing() -> list[str]:
    """Name the Debian packages without which no guest starts."""
    packages = {
        package
        for command, package in _PACKAGES.items()
        if shutil.which(command, path=_PATH) is None
    }
    if "busybox-static" not in packages and not _is_static(find("busybox")):
        packages.add("busybox-static")
    return sorted(packages)


def find(command: str) -> Path:
    """Locate a command that ``missing`` has vouched for."""
    path = shutil.which(command, path=_PATH)
    if path is None:
        raise MachineError(f"{command} is not installed; it is in Debian's {_PACKAGES[command]}")
    return Path(path)


def call(command: str, *arguments: str | Path, data: bytes = b"") -> bytes:
    """Run one of the commands that ``missing`` has vouched for: data in, output out."""
    argv = [find(command), *arguments]
    done = subprocess.run(argv, check=False, input=data, capture_output=True)
    if done.returncode:
        line = " ".join(str(part) for part in argv)
        text = done.stderr.decode(errors="replace").rstrip()
        raise MachineError(f"{line} ended with status {done.returncode}:\n{text}")
    return done.stdout


def install(packages: list[str]) -> None:
    """Install packages on Debian when root; otherwise say what to install."""
    advice = f"apt-get install --no-install-recommends {' '.join(packages)}"
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise MachineError(
            f"the virtual machine needs packages that are not installed ({', '.join(packages)}); "
            f"on Debian or Ubuntu, as root: {advice}"
        )
    say(advice)
    command = ["apt-get", "install", "-qq", "--yes", "--no-install-recommends", *packages]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    if subprocess.run(command, check=False, env=environment, stdout=sys.stderr).returncode:
        update_lists()
        if subprocess.run(command, check=False, env=environment, stdout=sys.stderr).returncode:
            raise MachineError(f"apt-get could not install them; try it by hand: {advice}")


def update_lists() -> None:
    """Bring apt's package lists up to date, if we may."""
    if os.geteuid() == 0:
        say("apt-get update")
        subprocess.run(["apt-get", "update", "-qq"], check=False, stdout=sys.stderr)


def candidate(package: str) -> str | None:
    """Return the version apt would download; None where apt is missing or knows no such package."""
    if shutil.which("apt-get") is None:
        return None
    answer = subprocess.run(
        ["apt-get", "download", "--print-uris", package],
        check=False,
        capture_output=True,
        text=True,
    )
    # 'http://.../linux-image-amd64_6.1.1-1_amd64.deb' linux-image-amd64_6.1.1-1_amd64.deb 1480 SHA
    fields = answer.stdout.split()
    return fields[1].split("_")[1] if not answer.returncode and len(fields) > 1 else None


def download(package: str, directory: Path) -> Path:
    """Download a kernel's package; a name without a version stands for the kernel it needs."""
    if not _download(package, directory):
        update_lists()  # a list that is too old names files that are gone
        if not _download(package, directory):
            raise MachineError(f"apt-get could not download {package}; try: apt-get update")
    return next(directory.glob("*.deb"))


def _download(package: str, directory: Path) -> bool:
    depends = subprocess.run(
        ["apt-cache", "depends", "--important", package],
        check=False,
        capture_output=True,
        text=True,
    )
    for line in depends.stdout.splitlines():
        kind, _, name = line.strip().partition(": ")
        if kind == "Depends" and name.startswith("linux-image-"):
            package = name
    command = ["apt-get", "download", "-qq", package]
    if os.geteuid() == 0:
        # The cache is in root's home, where apt's own user may not write.
        command += ["-o", "APT::Sandbox::User=root"]
    say(f"downloading {package} (70 MB, once)")
    return not subprocess.run(command, check=False, cwd=directory, stdout=sys.stderr).returncode


def _is_static(program: Path) -> bool:
    # A dynamic program names its loader; in the initramfs there is none.
    return b"/ld-linux" not in program.read_bytes()
