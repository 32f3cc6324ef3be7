from __future__ import annotations

import errno
import json
import os
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.support import usb_port
from usbplugin.custody import StateStore
from usbplugin.discovery import DeviceNumber
from usbplugin.inventory import DeviceState, Grant, GrantedPort

if TYPE_CHECKING:
    from pathlib import Path

A, B = "usb-0403:6001-A-if00", "usb-0403:6001-B-if00"
STATE = DeviceState(
    A,
    "usbplugin/serial",
    (usb_port(),),
    (
        Grant(
            "usbplugin/serial",
            A,
            {"if00": GrantedPort(DeviceNumber(188, 0), f"/run/usbplugin/{A}/if00")},
            boot="2f1c8a50",
        ),
    ),
    absent_since=12.5,
    has_twin=True,
    boot="2f1c8a50",
)
OTHER = DeviceState(B, "usbplugin/serial", ())


def test_what_is_saved_is_loaded_by_the_next_process(tmp_path: Path) -> None:
    store = store_in(tmp_path / "lib/usbplugin")
    assert store.load() == []
    assert [store.save(state) for state in (STATE, OTHER, STATE)] == ["", "", ""]
    assert store_in(tmp_path / "lib/usbplugin").load() == [STATE, OTHER]


def store_in(directory: Path) -> StateStore:
    return StateStore(directory, directory / "links")


def test_a_newer_state_replaces_the_older_one_whole(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store.save(STATE)
    shorter = DeviceState(A, "usbplugin/serial", ())
    (tmp_path / f".{A}.12345678").write_text("x" * 10_000)  # of a writer that was killed
    store.save(shorter)
    assert store.load() == [shorter]
    assert [path.name for path in tmp_path.glob("usb*")] == [f"{A}.json"]


def test_others_may_read_a_state_and_not_write_it_whatever_the_umask(tmp_path: Path) -> None:
    store, file = store_in(tmp_path), tmp_path / f"{A}.json"
    umask = os.umask(0)
    try:
        for _ in range(2):  # with its folder, and into it
            store.save(STATE)
            assert file.stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(umask)


def test_a_state_is_kept_until_somebody_deletes_it(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    assert not store.is_kept(A)
    store.save(STATE)
    assert store.is_kept(A)
    (tmp_path / f"{A}.json").unlink()
    assert not store.is_kept(A)


def encoded(**changes: object) -> bytes:
    return json.dumps(msgspec.to_builtins(STATE) | changes).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        encoded(id=B),
        encoded(resource="usbplugin/\0"),
        encoded(handed_over={"if00": {"number": None, "path": "/dev/\0"}}),
        encoded(handed_over={"if\n": {"number": None, "path": "/dev/x"}}),
        encoded(ports=[msgspec.to_builtins(usb_port(links=("/dev/\n",)))]),
    ],
)
def test_a_state_that_is_not_as_it_was_written_is_left_out_and_the_others_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    store = store_in(tmp_path)
    store.save(STATE)
    store.save(OTHER)
    (tmp_path / f"{A}.json").write_bytes(content)
    assert store.load() == [OTHER]
    (record,) = caplog.records
    assert (record.levelname, record.message) == ("WARNING", "state ignored")
    assert record.fields["file"] == tmp_path / f"{A}.json"  # type: ignore[attr-defined]


def test_a_file_that_is_no_device_of_ours_is_no_state(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "0.json").write_bytes(encoded(id="0"))
    assert store_in(tmp_path).load() == []
    assert len(caplog.records) == 1


def test_a_disk_that_fails_is_complained_of_once_and_once_more_when_it_fails_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_in(tmp_path)
    store.save(STATE)
    for _ in range(2):
        obstacle = tmp_path / f"{A}.json"
        obstacle.unlink()
        obstacle.mkdir()
        problem = f"its state cannot be written to {tmp_path}: Is a directory"
        assert [store.save(STATE) for _ in range(2)] == [problem, problem]
        obstacle.rmdir()
        assert store.save(STATE) == ""
    messages = {record.message for record in caplog.records}
    assert messages == {
        "cannot save state; devices of which nothing can be remembered are not offered"
    }
    assert len(caplog.records) == 2


def test_a_disk_that_never_worked_is_complained_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run").write_text("not a directory")
    assert store_in(tmp_path / "run").save(STATE) != ""
    assert len(caplog.records) == 1


def test_the_state_that_version_0_1_wrote_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "links/usb-0403:6001-GPS-A7-if00"
    folder.mkdir(parents=True)
    (folder / "device.json").write_text(
        """{"id":"usb-0403:6001-GPS-A7-if00","resource":"usbplugin/serial","ports":[{"name":"ttyUSB0",
        "node":"/dev/ttyUSB0","number":[188,0],"usb":{"vendor_id":"0403","product_id":"6001",
        "serial":"GPS-A7"}}],"handed_over":{"if00":{"number":[188,0],
        "path":"/run/usbplugin/usb-0403:6001-GPS-A7-if00/if00"}},"absent_since":null}"""
    )
    (state,) = store_in(tmp_path).load()
    (grant,) = state.grants
    assert grant.ports["if00"].number == DeviceNumber(188, 0)
    assert grant.ports["if00"].path == f"/run/usbplugin/{state.id}/if00"
    assert not state.has_twin
    assert (grant.resource, grant.listed_id, grant.boot) == (state.resource, state.id, "")
    later = msgspec.structs.replace(state, grants=())
    store_in(tmp_path).save(later)
    assert store_in(tmp_path).load() == [later]
    store_in(tmp_path).forget(state.id)
    assert store_in(tmp_path).load() == []


def test_of_two_files_the_newer_one_counts_for_versions_may_have_changed_back_and_forth(
    tmp_path: Path,
) -> None:
    older = tmp_path / "links" / A / "device.json"
    older.parent.mkdir(parents=True)
    older.write_bytes(msgspec.json.encode(DeviceState(A, "usbplugin/older", ())))
    os.utime(older, (1000, 1000))
    store_in(tmp_path).save(STATE)
    assert store_in(tmp_path).load() == [STATE]
    os.utime(tmp_path / f"{A}.json", (500, 500))
    (state,) = store_in(tmp_path).load()
    assert state.resource == "usbplugin/older"


def test_what_killed_writers_left_is_removed_in_time(tmp_path: Path) -> None:
    store_in(tmp_path).save(STATE)
    old, new, theirs = (tmp_path / f".{name}" for name in (f"{A}.0123abcd", f"{B}.1", "theirs"))
    for path in (old, new, theirs):
        path.write_text("half a sta")
    os.utime(old, (0, 0))
    os.utime(theirs, (0, 0))
    assert store_in(tmp_path).load() == [STATE]
    assert (old.exists(), new.exists(), theirs.exists()) == (False, True, True)


def test_a_directory_that_cannot_be_read_is_told_of_and_counts_as_empty(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_in(tmp_path).save(STATE)

    def fails(*_: object) -> object:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "scandir", fails)
    assert store_in(tmp_path).load() == []
    assert "cannot read states; what was granted is known from the kubelet alone" in caplog.messages
