"""Fixtures for tests against a real USB stack: devices to plug, and events to wait for."""

from __future__ import annotations

import itertools
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from .events import Monitor
from .gadget import UsbGadget
from .qmp import QemuSerial, Qmp
from .serve import HardwareNode
from .udevd import Udevd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    GadgetFactory = Callable[..., UsbGadget]
    QemuSerialFactory = Callable[..., QemuSerial]


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.hardware)


def pytest_runtest_setup() -> None:
    if os.environ.get("USBPLUGIN_VM") == "1":
        return
    reason = "needs the virtual machine: make hardware-test"
    if os.environ.get("USBPLUGIN_REQUIRE_HARDWARE") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture
def gadget() -> Iterator[GadgetFactory]:
    """Make ``UsbGadget``s, by the arguments of ``create``; they are gone after the test."""
    with ExitStack() as stack:
        numbers = itertools.count()

        def make(**options: Any) -> UsbGadget:  # noqa: ANN401 -- create checks them
            made = UsbGadget.create(f"test{next(numbers)}", **options)
            stack.callback(made.remove)
            return made

        yield make


@pytest.fixture
def qemu_serial() -> Iterator[QemuSerialFactory]:
    """Make ``QemuSerial``s, by index and perhaps serial; they are gone after the test."""
    with Qmp() as qmp, ExitStack() as stack:

        def make(index: int, **options: Any) -> QemuSerial:  # noqa: ANN401 -- as above
            made = QemuSerial(qmp, index, **options)
            stack.callback(lambda: made.unplug() if made.is_plugged else None)
            return made

        yield make


@pytest.fixture
async def node() -> AsyncIterator[HardwareNode]:
    """A kubelet, and a place for the plugin, which sees what other fixtures plug in."""
    async with HardwareNode() as node:
        yield node


@pytest.fixture
def kernel_monitor() -> Monitor:
    """The kernel's tty events from here on."""
    return Monitor("kernel")


@pytest.fixture
def udev_monitor() -> Monitor:
    """udevd's tty events from here on."""
    return Monitor("udev")


@pytest.fixture
def udevd() -> Iterator[Udevd]:
    """The machine's udevd, to stop and start; it runs again after the test."""
    daemon = Udevd()
    yield daemon
    daemon.start()
    daemon.settle()
