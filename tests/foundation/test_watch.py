"""When a look at a directory is due."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from usbplugin.foundation.watch import follow


@pytest.mark.parametrize("directory", [Path(), Path("/")])
async def test_a_directory_without_a_parent_in_its_path(directory: Path) -> None:
    looks = aiter(follow(directory, asyncio.Event()))
    await asyncio.wait_for(anext(looks), 10)
    await looks.aclose()  # type: ignore[attr-defined]  # a generator has it


async def test_a_change_is_reported(tmp_path: Path) -> None:
    looks = aiter(follow(tmp_path, asyncio.Event()))
    await anext(looks)
    (tmp_path / "new").touch()
    await asyncio.wait_for(anext(looks), 5)
    await looks.aclose()  # type: ignore[attr-defined]


async def test_a_file_written_in_place_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("a")
    looks = aiter(follow(tmp_path, asyncio.Event(), contents=True))
    await anext(looks)
    file.write_text("b")
    await asyncio.wait_for(anext(looks), 5)
    await looks.aclose()  # type: ignore[attr-defined]


async def test_a_file_is_reported_once_it_is_complete(tmp_path: Path) -> None:
    changed = asyncio.Event()
    looks = aiter(follow(tmp_path, changed, contents=True))
    await anext(looks)
    with (tmp_path / "config.yaml").open("w") as file:
        (tmp_path / "other").mkdir()  # which is told of, and all that came before
        await asyncio.wait_for(anext(looks), 5)
        look = asyncio.ensure_future(anext(looks))
        await asyncio.sleep(0)
        assert not changed.is_set()
        file.write("whole")
    await asyncio.wait_for(look, 5)
    await looks.aclose()  # type: ignore[attr-defined]
