"""When a look at a directory is due."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from usbplugin.watch import follow


@pytest.mark.parametrize("directory", [Path(), Path("/")])
async def test_a_directory_without_a_parent_in_its_path(directory: Path) -> None:
    looks = aiter(follow(directory, asyncio.Event()))
    await asyncio.wait_for(anext(looks), 10)
    await looks.aclose()  # type: ignore[attr-defined]  # a generator has it


async def test_a_change_is_told(tmp_path: Path) -> None:
    looks = aiter(follow(tmp_path, asyncio.Event()))
    await anext(looks)
    (tmp_path / "new").touch()
    await asyncio.wait_for(anext(looks), 5)
    await looks.aclose()  # type: ignore[attr-defined]
