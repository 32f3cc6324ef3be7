"""A node whose devices are real device nodes, for tests that start real containers.

Their numbers are those of devices that any machine has. What they lead to is no tty, which matters
to nobody between the plugin and the container.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from typing import TYPE_CHECKING, NamedTuple

from tests.node import SERIAL, Node

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ZERO, NULL = (1, 5), (1, 3)
"""/dev/zero and /dev/null differ in what is read from them. Every container may open both."""
KMSG = (1, 11)
"""/dev/kmsg is opened only by those who were given it."""
OPEN = "exec 3>/dev/ttyUSB0 && echo opened"
"""For writing alone: for reading, /dev/kmsg may want a capability."""
GROUP = 20
"""dialout on Debian."""
APPLETS = ("head", "id", "ls", "sh", "sleep", "stat", "wc")


class Ended(NamedTuple):
    """What became of a command in a container."""

    code: int
    output: str
    errors: str


class DeviceNodes:
    """A directory of device nodes as udevd leaves them."""

    device_dir: Path

    def plug_node(
        self,
        name: str,
        serial: str,
        number: tuple[int, int],
        mode: int = 0o660,
        *,
        interface: int = 0,
        location: str = "",
    ) -> None:
        side: dict[str, str | int] = {"vendor_id": "0403", "product_id": "6001", "serial": serial}
        side |= {"location": location or f"bench-{serial}", "interface": interface}
        (self.device_dir / f".{name}.json").write_text(json.dumps(side))
        make_node(self.device_dir / name, number, mode)

    def unplug_node(self, name: str) -> None:
        (self.device_dir / name).unlink()


class RealNode(DeviceNodes, Node):
    """With such nodes beside the virtual ttys."""

    def configure(self, **resource: object) -> tuple[str, str]:
        """Flags of serve."""
        path = self.root / "config.yaml"
        path.write_text(json.dumps({"resources": [{"name": SERIAL, **resource}]}))
        return "--config", str(path)


def make_node(path: Path, number: tuple[int, int], mode: int) -> None:
    """Make a device node of ``GROUP``; nobody sees it half made."""
    draft = path.with_name(f".{path.name}.new")
    os.mknod(draft, stat.S_IFCHR, os.makedev(*number))
    os.chown(draft, 0, GROUP)
    draft.chmod(mode)
    draft.rename(path)


def make_root(root: Path) -> None:
    """Make a container's file system of a static busybox."""
    for folder in ("bin", "dev", "etc", "proc", "run", "sys", "tmp"):
        (root / folder).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox
    shutil.copy(busybox, root / "bin/busybox")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")


def absent(packages: Mapping[str, str]) -> str:
    """Which Debian packages are missing, by the programs that are in them; empty if none is."""
    missing = dict.fromkeys(packages[name] for name in packages if not shutil.which(name))
    return f"needs the packages {' '.join(missing)}" if missing else ""
