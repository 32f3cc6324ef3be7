"""The machine's udevd: stop it, start it."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
from pathlib import Path

from .events import TIMEOUT

_PROGRAM = "/lib/systemd/systemd-udevd"


class Udevd:
    """The one udevd of this machine."""

    @property
    def pid(self) -> int | None:
        """Return the daemon's process, None if it is not running."""
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                name, _, rest = status.read_text().partition("(")[2].rpartition(")")
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile
            state, parent = rest.split()[:2]
            # Its workers are its children and bear another name; a zombie is not running.
            if name == "systemd-udevd" and parent == "1" and state != "Z":
                return int(status.parent.name)
        return None

    @property
    def is_running(self) -> bool:
        # A crash leaves the socket behind, but nobody who listens.
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
            return control.connect_ex("/run/udev/control") == 0

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it and wait until it is gone. SIGKILL is a crash: it leaves its workers' mess."""
        if (pid := self.pid) is None:
            return
        process = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(process, how)
            if not select.select([process], [], [], TIMEOUT)[0]:
                raise AssertionError(f"udevd (process {pid}) did not end within {TIMEOUT:g} s")
        finally:
            os.close(process)

    def start(self) -> None:
        """Start it, if it is not running; return when it listens. It does not replay events."""
        if not self.is_running:
            subprocess.run([_PROGRAM, "--daemon"], check=True, capture_output=True)

    def trigger(self, action: str = "add") -> None:
        """Let it work on all USB ttys again, as after a restart at boot."""
        match = ["--subsystem-match=tty", "--sysname-match=tty[AU]*"]
        subprocess.run(["udevadm", "trigger", f"--action={action}", *match], check=True)

    def reload(self) -> None:
        """Let it read its rules anew."""
        subprocess.run(["udevadm", "control", "--reload"], check=True)

    def settle(self) -> None:
        """Wait until its queue is empty."""
        subprocess.run(["udevadm", "settle", f"--timeout={TIMEOUT:.0f}"], check=True)
