"""What the fuzz tests share: a custody in a directory of its own, and what must hold of it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from usbplugin.custody import CdiDirectory, Custody, LinkDirectory, Offer, StateStore
from usbplugin.custody.starting import Eyes
from usbplugin.deviceplugin import DevicePlugin
from usbplugin.discovery.identity import ID_FORM
from usbplugin.foundation.workers import Workers
from usbplugin.inventory import HealthPolicy, ResourceRule
from usbplugin.telemetry import logs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from typing import TypeVar

    import grpc

    from usbplugin.discovery import Port
    from usbplugin.inventory import Device

    _Result = TypeVar("_Result")

SERIAL = "usbplugin/serial"


class AbortedError(Exception):
    """A call was refused."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(code, details)
        self.code = code
        self.details = details


class Context:
    async def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        raise AbortedError(code, details)


BOOT = "2f1c8a50-9d3e-4b7a-8f61-0c5d7e9a1b23"


class Trusting(Eyes):
    """For ports that are described as no port is: whatever they were, they still are."""

    def is_unchanged(self, port: Port) -> bool:
        del port
        return True


class Keeper:
    """A custody, its plugin, and the directory that it may write to."""

    def __init__(self, root: Path, offer: Offer, eyes: Eyes | None = None) -> None:
        self.root = root
        self.offer = offer
        self.custody = Custody(
            [ResourceRule(offer.resource)],
            [offer],
            HealthPolicy(),
            LinkDirectory(root / "links"),
            StateStore(root / "states", root / "links"),
            CdiDirectory(root / "cdi"),
            lambda snapshot, noticed: None,
            lambda changes: None,
            lambda moment: None,
            workers=Workers(),
            eyes=eyes,
            boot=BOOT,
        )

    @property
    def plugin(self) -> DevicePlugin:
        return DevicePlugin(
            self.offer,
            self.custody.snapshot(self.offer.resource),
            self.custody,
            lambda: None,
        )

    def written(self) -> set[str]:
        """All paths there are below the root, and that lead nowhere else."""
        return {
            os.path.relpath(os.path.join(folder, name), self.root)
            for folder, folders, files in os.walk(self.root)
            for name in (*folders, *files)
        }


@contextmanager
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="up-") as path:
        yield Path(path)


def within_loop(action: Callable[[], _Result]) -> _Result:
    """What is done in the event loop, and what that puts off."""

    async def inside() -> _Result:
        result = action()
        await asyncio.sleep(0)
        return result

    return asyncio.run(inside())


def answer(call: Callable[[], Awaitable[_Result]]) -> _Result | AbortedError:
    async def inside() -> _Result | AbortedError:
        try:
            return await call()
        except AbortedError as error:
            return error

    return asyncio.run(inside())


def check_device(device: Device) -> None:
    """It may be shown to the kubelet, made a path of, and printed."""
    assert ID_FORM.fullmatch(device.id)
    assert len(device.id) <= 63
    assert device.reason.isprintable()
    for port in device.ports:
        if port.usb:
            texts = (port.usb.serial, port.usb.manufacturer, port.usb.product, port.usb.location)
            assert all(text.isprintable() for text in texts)


@contextmanager
def log_lines() -> Iterator[list[str]]:
    """The lines that are logged inside, in both formats; each must be a line, and printable."""
    logger = logging.getLogger("usbplugin")
    text = io.StringIO()
    lines: list[str] = []
    handlers = []
    for formatter in (logs._TextFormatter(), logs._JsonFormatter()):
        handler = logging.StreamHandler(text)
        handler.setFormatter(formatter)
        handlers.append(handler)
        logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        logger.setLevel(level)
        for handler in handlers:
            logger.removeHandler(handler)
    lines += text.getvalue().split("\n")[:-1]
    assert all(line.isprintable() for line in lines)
    for line in lines:
        if line.startswith("{"):
            json.loads(line)
