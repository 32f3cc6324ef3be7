"""QEMU's own USB serial converters, plugged in from inside the guest through QEMU's monitor.

Unlike gadgets they sit on a PCI host controller, behind a hub if need be, and there can be more
than eight of them. All are FT232s (ftdi_sio); bytes written to their ttys can be looked at.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .events import TIMEOUT, Monitor, wait_until
from .sysfs import Tty, ttys_of
from .udevd import Udevd

if TYPE_CHECKING:
    from typing import Self

_PORT = "/dev/virtio-ports/qmp"

_ROOT_PORTS = 15
_HUB_PORT = 1
_HUB_PORTS = 8

MAX_SERIALS = _ROOT_PORTS - 1 + _HUB_PORTS
"""So many ports there are: all of the root hub's but one, and those of a hub on that one."""


class QmpError(Exception):
    """QEMU refused a command."""


class Qmp:
    """A connection to QEMU's monitor (JSON lines). There can be one at a time."""

    def __init__(self) -> None:
        self._fd = os.open(_PORT, os.O_RDWR | os.O_NONBLOCK)
        self._received = b""
        self._events: list[dict[str, Any]] = []
        self._numbers = itertools.count(time.monotonic_ns())
        try:
            self.command("qmp_capabilities")
        except QmpError:
            # QEMU does not notice that a client has gone: an earlier one has done this already.
            self.command("query-version")

    def command(self, name: str, **arguments: object) -> Any:  # noqa: ANN401 -- as JSON has it
        """Run a command, and return its result or raise what QEMU says is wrong."""
        number = next(self._numbers)
        request = {"execute": name, "arguments": arguments, "id": number}
        os.write(self._fd, json.dumps(request).encode() + b"\n")
        deadline = time.monotonic() + TIMEOUT
        while True:
            message = self._receive(deadline)
            # Others are the greeting, and answers an earlier client did not wait for.
            if message.get("id") == number:
                if "error" in message:
                    raise QmpError(f"{name} {arguments}: {message['error']['desc']}")
                return message["return"]

    def wait_event(self, name: str, **data: object) -> None:
        """Wait until QEMU reports an event with these data, among others."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            for event in self._events:
                if event["event"] == name and data.items() <= event["data"].items():
                    self._events.remove(event)
                    return
            self._receive(deadline)

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self._received:
            if not select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError("QEMU's monitor does not answer")
            self._received += os.read(self._fd, 65536)
        line, _, self._received = self._received.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        if "event" in message:
            self._events.append(message)
        return message


class QemuSerial:
    """One of QEMU's USB serial converters; ``index`` (0 to 21) says which port it belongs to."""

    def __init__(self, qmp: Qmp, index: int, *, serial: str | None = None) -> None:
        self.index = index
        self.serial = f"QS-{index:03}" if serial is None else serial
        self.is_plugged = False
        self._qmp = qmp
        self._name = f"port{index}"
        root_port = index + 1 + _HUB_PORT
        self.is_behind_hub = root_port > _ROOT_PORTS
        self._port = (
            f"{_HUB_PORT}.{root_port - _ROOT_PORTS}" if self.is_behind_hub else str(root_port)
        )

    @property
    def device(self) -> Path:
        """The USB device's directory in sysfs (while it is plugged in)."""
        (controller,) = Path("/sys/bus/pci/drivers/xhci_hcd").glob("*:*")
        # A controller has two root hubs; USB 2 is the first.
        bus = min(controller.resolve().glob("usb[0-9]*"), key=lambda path: int(path.name[3:]))
        name = f"{bus.name[3:]}-{self._port}"
        return bus / name.partition(".")[0] / name if self.is_behind_hub else bus / name

    @property
    def ttys(self) -> list[Tty]:
        return ttys_of(self.device)

    def plug(self, *, wait: bool = True) -> list[str]:
        """Plug in; wait until the node is there and udevd, if running, is done with it."""
        if self.is_behind_hub:
            self._plug_hub()
        backend = {"type": "ringbuf", "data": {"size": 4096}}
        self._qmp.command("chardev-add", id=self._name, backend=backend)
        self._qmp.command(
            "device_add",
            driver="usb-serial",
            id=self._name,
            bus="xhci.0",
            port=self._port,
            chardev=self._name,
            serial=self.serial,
            # Otherwise it comes and goes with whoever opens the chardev.
            **{"always-plugged": True},
        )
        self.is_plugged = True
        return self.wait_ready() if wait else []

    def wait_ready(self, *, timeout: float = TIMEOUT) -> list[str]:
        """Wait as ``plug`` does, and return the node's path in a list."""
        udevd = Udevd()

        def ready() -> bool:
            ttys = self.ttys
            return bool(ttys) and (not udevd.is_running or ttys[0].is_initialized)

        wait_until(ready, f"the port of QEMU's {self._name}, udevd done", timeout=timeout)
        return [tty.node for tty in self.ttys]

    def unplug(self, *, wait: bool = True) -> None:
        """Pull out; wait until the node is gone and udevd, if running, knows."""
        monitors = [Monitor("kernel")] if wait else []
        if wait and Udevd().is_running:
            monitors.append(Monitor("udev"))
        ttys = self.ttys
        self._qmp.command("device_del", id=self._name)
        self._qmp.wait_event("DEVICE_DELETED", device=self._name)
        self._qmp.command("chardev-remove", id=self._name)
        self.is_plugged = False
        for monitor in monitors:
            for tty in ttys:
                monitor.wait("remove", path=str(tty.path))

    def received(self, size: int = 4096) -> bytes:
        """Return what was written to the tty since the last call, at most so many bytes."""
        answer = self._qmp.command("ringbuf-read", device=self._name, size=size, format="base64")
        return base64.b64decode(answer)

    def _plug_hub(self) -> None:
        """The hub stays for good, like one that is built in."""
        devices = self._qmp.command("qom-list", path="/machine/peripheral")
        if all(device["name"] != "hub" for device in devices):
            self._qmp.command(
                "device_add",
                driver="usb-hub",
                id="hub",
                bus="xhci.0",
                port=str(_HUB_PORT),
                ports=_HUB_PORTS,
            )
