"""One run of the virtual machine: start QEMU, relay its output, collect the result."""

from __future__ import annotations

import os
import selectors
import shlex
import shutil
import subprocess
import sys
import tempfile
import termios
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from . import packages
from .errors import MachineError, MachineTimeoutError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .image import Image

_GUEST_SCRIPT = Path(__file__).with_name("guest.sh")
_SHELL_RC = Path(__file__).with_name("shellrc")

# A generous bound for booting on a busy machine (ordinarily 3 s).
_BOOT_SECONDS = 180
# For the command to end in good order after its own limit, and for the guest to power off.
_END_SECONDS = 40
_CONSOLE_LINES = 60  # a panic with its stack and registers

# The guest's command sees these of the host's variables, and those with one of these prefixes.
_VARIABLES = {"CI", "NO_COLOR", "FORCE_COLOR", "TERM"}
_VARIABLE_PREFIXES = ("USBPLUGIN_", "PYTEST_", "HYPOTHESIS_")


@dataclass(frozen=True, slots=True)
class Job:
    """What to do in the guest."""

    checkout: Path
    command: list[str]
    """Empty for an interactive shell."""
    timeout: int
    """Seconds for the command, not counting the boot. A shell has no limit."""
    output: Path
    """Directory that the guest can write to; console.log and output.log appear there too."""


def run(image: Image, job: Job) -> int:
    """Boot, run the command, and return its exit status."""
    job.output.mkdir(parents=True, exist_ok=True)
    for name in ("console.log", "output.log", "junit.xml"):
        # A guest that dies must not leave the last run's report as its own.
        (job.output / name).unlink(missing_ok=True)
    console = job.output / "console.log"
    # A short path: the QMP socket's name may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="usbplugin-vm-") as name:
        share = Path(name)
        _write_share(share, image, job)
        command = _qemu(image, job, share, console)
        if job.command:
            _run_command(command, share, job)
        else:
            _run_shell(command)
        if (share / "late").exists():
            raise MachineTimeoutError(
                f"the command did not end within {job.timeout} s: {shlex.join(job.command)}"
            )
        try:
            status = int((share / "exit").read_text())
        except FileNotFoundError:
            raise MachineError(f"the guest died; the end of {console}:\n{_tail(console)}") from None
    # How the last command of a shell went is nobody's business.
    return status if job.command else 0


def _write_share(share: Path, image: Image, job: Job) -> None:
    shutil.copyfile(_GUEST_SCRIPT, share / "guest.sh")
    shutil.copyfile(_SHELL_RC, share / "shellrc")
    (share / "command").write_text(f"exec {shlex.join(job.command)}\n")
    size = shutil.get_terminal_size()
    variables = {
        name: value
        for name, value in os.environ.items()
        if name in _VARIABLES or name.startswith(_VARIABLE_PREFIXES)
    }
    if sys.stdout.isatty() and "NO_COLOR" not in variables:
        variables["FORCE_COLOR"] = "1"
    path = [f"{job.checkout}/.venv/bin", "/run/bin", "/usr/local/sbin", "/usr/local/bin"]
    path += ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
    variables |= {
        "CHECKOUT": str(job.checkout),
        "COLUMNS": str(size.columns),
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "LINES": str(size.lines),
        "MODULES": str(image.modules),
        "OUTPUT": str(job.output),
        "PATH": ":".join(path),
        "PYTHONDONTWRITEBYTECODE": "1",  # the layer of memory goes away with the guest
        "PYTHONUNBUFFERED": "1",  # the guest's output is no terminal, and yet somebody watches
        "TERMINAL": "" if job.command else "yes",
        "TIMEOUT": str(job.timeout),
        "TMPDIR": "/run/tmp",
        "USBPLUGIN_REQUIRE_HARDWARE": "1",
        "USBPLUGIN_VM": "1",
    }
    (share / "environment").write_text(
        "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
    )


def _qemu(image: Image, job: Job, share: Path, console: Path) -> list[str]:
    # The stock kernel hangs under nested KVM here and there, so KVM has to be asked for.
    accelerator = os.environ.get("USBPLUGIN_VM_ACCEL", "tcg,thread=multi")
    append = (
        "console=ttyS0 quiet panic=-1 oops=panic mitigations=off nokaslr no_timer_check "
        "random.trust_cpu=on 8250.nr_uarts=1 "
        # Any value about right: it takes 0.6 s to measure, and emulated hardware needs no delays.
        "lpj=10000000"
    )
    port = "virtserialport,name=output" if job.command else "virtconsole"
    return [
        # A runner that is killed takes its guest along.
        *[str(packages.find("setpriv")), "--pdeathsig", "KILL"],
        str(packages.find("qemu-system-x86_64")),
        *["-machine", "q35", "-accel", accelerator, "-cpu", "max"],
        *["-smp", str(min(os.cpu_count() or 1, 4)), "-m", "2G"],
        *["-nodefaults", "-no-reboot", "-display", "none"],
        *["-kernel", str(image.kernel), "-initrd", str(image.initramfs), "-append", append],
        *["-chardev", f"file,id=console,path={_escape(console)}", "-serial", "chardev:console"],
        *_share("host", Path("/"), "readonly=on,multidevs=remap"),
        *_share("run", share, "multidevs=remap"),
        *_share("output", job.output, "multidevs=remap"),
        *["-device", "virtio-serial-pci"],
        *["-chardev", "stdio,id=terminal,signal=off", "-device", f"{port},chardev=terminal"],
        # QEMU's monitor, and its other end as a port of the guest: tests plug in QEMU's devices.
        *["-chardev", f"socket,id=monitor,path={share}/qmp,server=on,wait=off"],
        *["-mon", "chardev=monitor,mode=control"],
        *["-chardev", f"socket,id=qmp,path={share}/qmp"],
        *["-device", "virtserialport,name=qmp,chardev=qmp"],
        *["-device", "qemu-xhci,id=xhci,p2=15,p3=1"],
    ]


def _share(tag: str, path: Path, options: str) -> list[str]:
    return [
        *["-fsdev", f"local,id={tag},path={_escape(path)},security_model=none,{options}"],
        *["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"],
    ]


def _escape(path: Path) -> str:
    """Write a path so that QEMU's option parser takes a comma for part of it."""
    return str(path).replace(",", ",,")


def _run_command(command: list[str], share: Path, job: Job) -> None:
    deadline = time.monotonic() + _BOOT_SECONDS + job.timeout + _END_SECONDS
    with (
        (job.output / "output.log").open("wb") as log,
        # An input that stays open: at its end, QEMU would take the guest's output for cut off.
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as qemu,
    ):
        try:
            if qemu.stdout is not None and not _relay(qemu.stdout, log, deadline):
                what = "run the command" if (share / "up").exists() else "boot"
                raise MachineTimeoutError(
                    f"the guest took too long to {what}; the end of its console:\n"
                    f"{_tail(job.output / 'console.log')}"
                )
        finally:
            qemu.kill()  # has no effect if it ended by itself


def _relay(source: IO[bytes], log: IO[bytes], deadline: float) -> bool:
    """Copy until the end of the source, or return False at the deadline."""
    with selectors.DefaultSelector() as selector:
        selector.register(source, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            data = os.read(source.fileno(), 65536)
            if not data:
                return True
            log.write(data)
            log.flush()
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
    return False


def _run_shell(command: list[str]) -> None:
    with _terminal_restored(), subprocess.Popen(command) as qemu:
        try:
            qemu.wait()
        finally:
            qemu.kill()


@contextmanager
def _terminal_restored() -> Iterator[None]:
    """Undo QEMU's raw mode, whichever way it ends."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _tail(console: Path) -> str:
    if not console.exists():
        return "(QEMU did not start)"
    lines = console.read_text(errors="replace").splitlines()
    return "\n".join(lines[-_CONSOLE_LINES:]) or "(nothing)"
