"""The udev source where no uevents arrive, so that it watches /dev instead."""

from __future__ import annotations

import queue
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from usbplugin.discovery import AllPorts, udev
from usbplugin.foundation.watch import DirectoryWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from usbplugin.discovery import Fact


@pytest.fixture(autouse=True)
def dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(udev, "uevents_cannot_arrive", lambda: True)
    monkeypatch.setattr(udev, "_DEV", tmp_path)
    return tmp_path


@contextmanager
def running(post: Callable[[Fact], None]) -> Iterator[None]:
    source = udev.UdevSource(("/dev/none*",))
    thread = threading.Thread(target=source.run, args=(post,))
    thread.start()
    try:
        yield
    finally:
        source.stop()
        thread.join(5)


def test_a_node_made_during_the_first_look_is_looked_for(dev: Path) -> None:
    reasons: queue.Queue[str] = queue.Queue()

    def post(fact: Fact) -> None:
        assert isinstance(fact, AllPorts)
        if fact.reason == "start":
            (dev / "ttyUSB0").touch()
        reasons.put(fact.reason)

    with running(post):
        assert [reasons.get(timeout=5) for _ in range(2)] == ["start", "change"]


def test_a_repaired_watch_causes_a_rescan(monkeypatch: pytest.MonkeyPatch) -> None:
    class DiesInSilence(DirectoryWatch):
        """Found dead the third time it is refreshed, with no earlier sign of it."""

        refreshed = 0

        def refresh(self) -> bool:
            self.refreshed += 1
            if self.refreshed == 3:
                self.stop()
            return super().refresh()

    monkeypatch.setattr(udev, "DirectoryWatch", DiesInSilence)
    monkeypatch.setattr(udev, "_WATCH_CHECK_INTERVAL", 0.01)
    reasons: queue.Queue[str] = queue.Queue()

    def post(fact: Fact) -> None:
        assert isinstance(fact, AllPorts)
        reasons.put(fact.reason)

    with running(post):
        assert [reasons.get(timeout=5) for _ in range(2)] == ["start", "change"]
