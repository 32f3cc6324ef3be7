"""A configuration file that is written in place: it is empty, then cut off, then complete."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.node import Node
from usbplugin.agent.config_file import configurations
from usbplugin.config import load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

    from usbplugin.config import Config

DOOR = "resources:\n  - name: example.com/door\n    selectors: [{serial: DOOR}]\n"
GATE = "resources:\n  - name: example.com/gate\n    selectors: [{serial: DOOR}]\n"
EMPTY = "expected a mapping, such as resources: [...], found nothing: write {} for the defaults"
DOOR_ID = "usb-0403:6001-DOOR-if00"


class Reader:
    """Whoever applies what the file says."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen: asyncio.Queue[Config | None] = asyncio.Queue()

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._read())
        yield
        task.cancel()
        await asyncio.wait({task})
        assert self._seen.empty()

    async def _read(self) -> None:
        async for config in configurations(self._file, lambda: self._seen.put_nowait(None)):
            self._seen.put_nowait(config)

    async def next(self) -> list[str] | None:
        """The names of the resources that are to be applied next; None if a text is refused."""
        config = await asyncio.wait_for(self._seen.get(), 5)
        return None if config is None else [resource.name for resource in config.resources]


def look(file: Path) -> None:
    """Have the directory looked at, which it is in any case every ten seconds."""
    (file.parent / "neighbour").write_text("")


async def test_a_text_that_is_being_written_is_not_applied(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(DOOR)
    reader = Reader(file)
    async with reader.at_work():
        assert await reader.next() == ["example.com/door"]
        caplog.clear()
        with file.open("w") as being_written:  # which truncates it
            look(file)
            assert await reader.next() is None
            for part in (
                "# Who may use what\n",
                "resources:\n",
                "  - name: example.com/gate\n    selectors: [{serial:",
            ):
                being_written.write(part)
                being_written.flush()
                look(file)
                assert await reader.next() is None
            being_written.write(" DOOR}]\n")
        assert await reader.next() == ["example.com/gate"]
    refusals = [str(vars(record)["fields"]["reason"]) for record in caplog.records]
    assert {record.levelno for record in caplog.records} == {logging.ERROR}
    assert refusals[0] == refusals[1] == f"{file}: {EMPTY}"
    assert refusals[2] == f"{file}: line 2, column 11: resources: expected a list, found nothing"
    assert refusals[3].startswith(f"{file}: line 5, column 1: not valid YAML")


async def test_the_same_text_again_counts_after_one_that_was_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("")
    reader = Reader(file)
    async with reader.at_work():
        assert await reader.next() is None
        for _ in range(2):
            file.write_text(DOOR)
            assert await reader.next() == ["example.com/door"]
            file.write_text("")
            assert await reader.next() is None


async def test_the_text_that_is_applied_is_the_one_that_was_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one may be there a moment later, and yet another moment later the first one again."""
    file = tmp_path / "config.yaml"
    file.write_text(DOOR)
    later = ["", DOOR]
    really_read = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        text = really_read(path)
        if path == file and later:
            file.write_text(later.pop(0))
        return text

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    reader = Reader(file)
    async with reader.at_work():
        assert await reader.next() == ["example.com/door"]
        assert await reader.next() is None
        assert await reader.next() == ["example.com/door"]


async def test_an_empty_file_gives_no_device_away(caplog: pytest.LogCaptureFixture) -> None:
    async with Node() as node:
        node.plug("ttyUSB0", "DOOR")
        file = node.root / "etc/config.yaml"
        file.parent.mkdir()
        file.write_text(DOOR)
        async with node.agent(load(file), config_file=str(file)):
            await node.kubelet.wait_healthy("example.com/door", {DOOR_ID})
            with file.open("w") as being_written:
                look(file)
                async with asyncio.timeout(10):
                    while not any("refused" in record.getMessage() for record in caplog.records):
                        await asyncio.to_thread(os.sched_yield)
                being_written.write(GATE)
            await node.kubelet.wait_healthy("example.com/gate", {DOOR_ID})
            registered = [entry.resource for entry in node.kubelet.log.registrations]
            assert registered == ["example.com/door", "example.com/gate"]
