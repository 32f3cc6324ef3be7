"""A container runtime's part: what a cached answer becomes when a container is created."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .cgroup import DeviceCgroup

if TYPE_CHECKING:
    from typing import Self

    from usbplugin.virtual import Container

_CHECKOUT = Path(__file__).resolve().parents[2]
_numbers = itertools.count()


class RunningContainer:
    """``application.py`` in a mount namespace with a /dev of its own, and a cgroup's device filter.

    As runc does it: links on the host are followed now, and what is found is made anew in the
    container, with the numbers that the host's node has now.
    """

    def __init__(self, container: Container) -> None:
        """Create and start it from the kubelet's cached answer."""
        script = ["mount -t tmpfs tmpfs /dev"]
        numbers = []
        for spec in container.devices:
            status = os.stat(spec.host_path)
            assert stat.S_ISCHR(status.st_mode)
            number = os.major(status.st_rdev), os.minor(status.st_rdev)
            path = shlex.quote(spec.container_path)
            script.append(f"mknod -m 660 {path} c {number[0]} {number[1]}")
            numbers.append(number)
        self._cgroup = DeviceCgroup(f"usbplugin-test-{next(_numbers)}", numbers)
        program = [sys.executable, "-S", "-m", "tests.hardware.application"]
        script += [f"echo $$ > {self._cgroup.processes}", f"exec {shlex.join(program)}"]
        self._process = subprocess.Popen(
            ["unshare", "--mount", "--", "sh", "-euc", "\n".join(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_CHECKOUT,
        )

    def send(self, path: str, text: str) -> str | None:
        """Open the node and write; the name of the error, if there is one."""
        return self._ask("send", path, text)

    def number(self, path: str) -> str | None:
        """The node's numbers."""
        return self._ask("number", path)

    def make(self, path: str, number: str) -> str | None:
        """Make a node; the name of the error, if there is one."""
        return self._ask("make", path, number)

    def stop(self) -> None:
        self._process.communicate()
        self._cgroup.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _ask(self, *command: str) -> str | None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer: str | None = json.loads(self._process.stdout.readline())
        return answer
