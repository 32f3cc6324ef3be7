"""The directory source's looks: what a listing says while entries come and go."""

from __future__ import annotations

import json
import logging
import os
from typing import TYPE_CHECKING

import pytest

from usbplugin.discovery import DirectorySource, entry

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def plug(directory: Path, name: str, serial: str, node: str = "/dev/null") -> None:
    (directory / f".{name}.json").write_text(
        json.dumps({"vendor_id": "0403", "product_id": "6001", "serial": serial})
    )
    (directory / name).symlink_to(node)


def pull(directory: Path, name: str) -> None:
    (directory / name).unlink()
    (directory / f".{name}.json").unlink()


def replug(directory: Path, name: str) -> None:
    pull(directory, name)
    plug(directory, name, "OTHER", "/dev/zero")


def touch(directory: Path, name: str) -> None:
    os.utime(directory / name, follow_symlinks=False)


@pytest.mark.parametrize(
    ("meanwhile", "found"),
    [(pull, []), (replug, [("/dev/zero", "OTHER")]), (touch, [("/dev/null", "FIRST")])],
)
def test_an_entry_is_never_read_as_a_mix_of_two(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    meanwhile: Callable[[Path, str], None],
    found: list[tuple[str, str]],
) -> None:
    plug(tmp_path, "ttyUSB0", "FIRST")
    read = entry._descriptors
    once = iter((True,))

    def racing(path: Path) -> object:
        if next(once, False):
            meanwhile(tmp_path, path.name)
        return read(path)

    monkeypatch.setattr(entry, "_descriptors", racing)
    ports = DirectorySource(tmp_path).scan()
    assert [(port.node, port.usb and port.usb.serial) for port in ports] == found
    assert not caplog.records


def test_an_unprintable_path_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (odd_devices := tmp_path / os.fsdecode(b"d\xfe")).mkdir()
    (odd_devices / "ttyUSB0").symlink_to("/dev/null")
    assert DirectorySource(odd_devices).scan() == ()
    (record,) = caplog.records
    assert "not printable" in record.message


def test_an_entry_that_is_not_a_character_device_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "ttyUSB0").write_text("a file")
    (tmp_path / "ttyUSB1").symlink_to("nowhere")
    source = DirectorySource(tmp_path)
    assert source.scan() == source.scan() == ()
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
