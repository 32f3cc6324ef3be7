"""Uevents that somebody with CAP_SYS_ADMIN makes up: the kernel passes them on as its own."""

from __future__ import annotations

import os
import select
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from usbplugin.discovery.libudev import Libudev, Uevent

from .serve import acm_id

if TYPE_CHECKING:
    from .conftest import GadgetFactory
    from .serve import HardwareNode

pytestmark = pytest.mark.timeout(120)

_NETLINK_KOBJECT_UEVENT = 15
# linux/netlink.h
_HEADER = struct.Struct("=IHHII")
_NLMSG_MIN_TYPE, _NLM_F_REQUEST = 0x10, 1


def forge(action: str, path: str) -> None:
    """Send a uevent by way of the kernel (``uevent_net_rcv`` in lib/kobject_uevent.c)."""
    name = path.rpartition("/")[2]
    properties = (f"ACTION={action}", f"DEVPATH={path}", "SUBSYSTEM=tty", f"DEVNAME={name}")
    text = "".join(f"{part}\0" for part in (f"{action}@{path}", *properties)).encode()
    header = _HEADER.pack(_HEADER.size + len(text), _NLMSG_MIN_TYPE, _NLM_F_REQUEST, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_KOBJECT_UEVENT) as sender:
        sender.sendto(header + text, (0, 0))


async def test_forged_uevents_are_looked_into_and_not_believed(
    gadget: GadgetFactory, node: HardwareNode
) -> None:
    device, other = gadget(serial=b"MINE"), gadget(serial=b"OTHER")
    device.plug()
    path = os.path.realpath(f"/sys/class/tty/{device.ttys[0].name}").removeprefix("/sys")
    monitor = Libudev().monitor(1 << 20)
    async with node.serve() as process:
        await node.healthy(acm_id("MINE"))
        forgeries = [
            *((action, path) for action in ("remove", "offline", "unbind", "change")),
            ("add", f"{path.rpartition('/')[0]}/ttyACM77"),
            ("add", "/devices/virtual/tty/../../../../etc/ttyACM0"),
        ]
        for action, at in forgeries:
            forge(action, at)
            # It has arrived where the plugin's own monitor is.
            expected = Uevent(action, at.rpartition("/")[2])
            while expected not in monitor.receive():
                assert select.select([monitor], [], [], 10)[0], expected
        other.plug(wait=False)
        await node.healthy(acm_id("MINE"), acm_id("OTHER"))
        for message in node.kubelet.log.messages:
            assert {listed.id for listed in message.devices} <= {acm_id("MINE"), acm_id("OTHER")}
            assert all(listed.healthy for listed in message.devices), message
        assert "Traceback" not in process.log()
