from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tests.support import usb_port
from usbplugin.custody import LinkDirectory
from usbplugin.inventory import Device, Health

if TYPE_CHECKING:
    import pytest

PORT = usb_port()
READY = Device("usb-a", "usbplugin/serial", Health.READY, "", (PORT,), 0.0)
AWAY = msgspec.structs.replace(READY, health=Health.UNPLUGGED, reason="gone")


def test_a_ready_device_has_a_link_to_its_node(tmp_path: Path) -> None:
    links = LinkDirectory(tmp_path / "run")
    links.update(READY)
    path = links.host_path(READY.id, PORT.slot)
    assert path == str(tmp_path / "run/usb-a/if00")
    assert os.readlink(path) == "/dev/ttyUSB0"


def test_the_link_follows_the_device_to_another_number(tmp_path: Path) -> None:
    links = LinkDirectory(tmp_path)
    links.update(READY)
    links.update(msgspec.structs.replace(READY, ports=(usb_port("ttyUSB9"),)))
    assert os.readlink(tmp_path / "usb-a/if00") == "/dev/ttyUSB9"
    assert os.listdir(tmp_path / "usb-a") == ["if00"]


def test_a_device_that_is_away_has_no_link(tmp_path: Path) -> None:
    links = LinkDirectory(tmp_path)
    links.update(READY)
    links.update(AWAY)
    assert not os.path.lexists(tmp_path / "usb-a/if00")


def test_what_an_earlier_run_left_of_absent_devices_is_removed(tmp_path: Path) -> None:
    earlier = LinkDirectory(tmp_path)
    earlier.update(READY)
    earlier.update(msgspec.structs.replace(READY, id="usb-b"))
    (tmp_path / "notes").write_text("somebody else's")
    LinkDirectory(tmp_path).keep_only({"usb-a"})
    assert sorted(os.listdir(tmp_path)) == ["notes", "usb-a"]


def test_nothing_that_is_not_ours_is_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    theirs = ["systemd/notify", "usb-b/notes", "usb-b/lost/found", "dir-x"]
    for name in theirs:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("somebody else's")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "device.json").write_text("somebody else's")
    (run / "usb-link").symlink_to(elsewhere)
    (run / "systemd/link").symlink_to("/dev/null")
    for name in ("if00", ".new-if00"):
        (run / "usb-b" / name).symlink_to("/dev/ttyUSB0")
    (run / "usb-b/device.json").write_text("{}")
    links = LinkDirectory(run)
    links.keep_only(())
    for device_id in ("systemd", "usb-link", "usb-b"):
        links.forget(device_id)
    assert all((run / name).read_text() == "somebody else's" for name in theirs)
    assert sorted(os.listdir(run / "usb-b")) == ["lost", "notes"]
    assert (run / "systemd/link").is_symlink()
    assert os.listdir(elsewhere) == ["device.json"]
    assert not caplog.records


def test_all_that_is_ours_goes_with_its_folder(tmp_path: Path) -> None:
    links = LinkDirectory(tmp_path)
    for device_id in ("usb-a", "dir-ttyUSB0-12"):
        links.update(msgspec.structs.replace(READY, id=device_id))
        (tmp_path / device_id / "device.json").write_text("{}")
        (tmp_path / device_id / ".new-if00").symlink_to("/dev/ttyUSB0")
    links.keep_only(())
    assert os.listdir(tmp_path) == []


def test_a_directory_that_is_not_writable_is_told_of_and_complained_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a directory")
    links = LinkDirectory(tmp_path / "file")
    problem = f"its link {tmp_path}/file/usb-a/if00 cannot be written: Not a directory"
    assert links.update(READY) == problem
    assert links.update(msgspec.structs.replace(READY, id="usb-b")) != ""
    assert len(caplog.records) == 1
    (tmp_path / "file").unlink()
    assert links.update(READY) == ""


def test_something_else_in_the_links_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "usb-a").mkdir()
    (tmp_path / "usb-a/if00").write_text("a file")
    links = LinkDirectory(tmp_path)
    links.update(READY)
    assert os.readlink(tmp_path / "usb-a/if00") == "/dev/ttyUSB0"


def test_a_link_that_cannot_be_set_right_is_told_of(tmp_path: Path) -> None:
    links = LinkDirectory(tmp_path)
    assert links.update(READY) == ""
    (tmp_path / "usb-a/if00").unlink()
    (tmp_path / "usb-a/if00").mkdir()  # nothing can be put in its place
    assert links.update(READY) == (
        f"its link {tmp_path}/usb-a/if00 cannot be written: Is a directory"
    )
    (tmp_path / "usb-a/if00").rmdir()
    assert links.update(READY) == ""
    assert os.readlink(links.host_path(READY.id, PORT.slot)) == "/dev/ttyUSB0"


def test_a_link_that_was_changed_is_set_right(tmp_path: Path) -> None:
    links = LinkDirectory(tmp_path)
    links.update(READY)
    (tmp_path / "usb-a/if00").unlink()
    (tmp_path / "usb-a/if00").symlink_to("/dev/ttyUSB7")
    links.update(READY)
    assert os.readlink(links.host_path(READY.id, PORT.slot)) == "/dev/ttyUSB0"


def test_each_port_of_a_modem_has_a_link_of_its_own(tmp_path: Path) -> None:
    ports = tuple(usb_port(f"ttyUSB{number}", interface=number) for number in range(3))
    modem = msgspec.structs.replace(READY, ports=ports)
    links = LinkDirectory(tmp_path)
    links.update(modem)
    assert {path.name: os.readlink(path) for path in (tmp_path / "usb-a").iterdir()} == {
        "if00": "/dev/ttyUSB0",
        "if01": "/dev/ttyUSB1",
        "if02": "/dev/ttyUSB2",
    }
    links.update(msgspec.structs.replace(modem, health=Health.UNPLUGGED))
    assert os.listdir(tmp_path / "usb-a") == []


def test_a_link_can_be_changed_though_an_earlier_change_was_cut_short(tmp_path: Path) -> None:
    links = LinkDirectory(tmp_path)
    links.update(READY)
    (tmp_path / "usb-a/.new-12345678-if00").symlink_to("/dev/ttyUSB5")
    links.update(msgspec.structs.replace(READY, ports=(usb_port("ttyUSB9"),)))
    assert os.readlink(tmp_path / "usb-a/if00") == "/dev/ttyUSB9"
    links.forget("usb-a")
    assert not list(tmp_path.iterdir())


def test_a_directory_that_fails_once_more_is_complained_of_once_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    links = LinkDirectory(tmp_path / "run")
    for _ in range(2):
        (tmp_path / "run").write_text("not a directory")
        links.update(READY)
        links.update(READY)
        (tmp_path / "run").unlink()
        links.update(READY)
        (tmp_path / "run/usb-a/if00").unlink()
        (tmp_path / "run/usb-a").rmdir()
        (tmp_path / "run").rmdir()
    first, second = caplog.records
    assert first.message == second.message
    assert first.levelname == "ERROR"
    assert str(tmp_path / "run") == str(first.fields["directory"])  # type: ignore[attr-defined]
    assert "--link-dir" in first.fields["hint"]  # type: ignore[attr-defined]


def test_a_directory_that_cannot_be_listed_is_complained_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    LinkDirectory(tmp_path / "none").keep_only(())
    assert not caplog.records, "it is made with the first link"
    (tmp_path / "run").write_text("not a directory")
    LinkDirectory(tmp_path / "run").keep_only(())
    (record,) = caplog.records
    assert "cannot keep links" in record.message


def test_a_disturbance_is_seen_once_whoever_caused_it(tmp_path: Path) -> None:
    links = LinkDirectory(tmp_path / "run")
    links.update(READY)
    assert [links.is_disturbed() for _ in range(2)] == [True, False]
    (tmp_path / "run/usb-a/if00").unlink()
    (tmp_path / "run/usb-a").rmdir()
    os.utime(tmp_path / "run", ns=(0, 0))  # as any other time than before: clocks may be coarse
    assert [links.is_disturbed() for _ in range(2)] == [True, False]
    (tmp_path / "run").rmdir()
    assert [links.is_disturbed() for _ in range(2)] == [True, True], "until links are back"


def test_a_directory_deleted_before_it_was_ever_looked_at_is_a_disturbance(tmp_path: Path) -> None:
    links = LinkDirectory(tmp_path / "run")
    assert not links.is_disturbed()
    links.update(READY)
    shutil.rmtree(tmp_path / "run")
    assert links.is_disturbed()


def test_to_forget_what_was_never_there_is_no_trouble(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    LinkDirectory(tmp_path).forget("usb-a")
    assert not caplog.records


def test_what_cannot_be_removed_is_complained_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "usb-a/device.json").mkdir(parents=True)
    LinkDirectory(tmp_path).forget("usb-a")
    assert len(caplog.records) == 1


def test_a_link_that_was_good_all_along_ends_no_complaint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    links = LinkDirectory(tmp_path)
    links.update(READY)
    (tmp_path / "usb-b").write_text("not a directory")
    for _ in range(3):
        links.update(msgspec.structs.replace(READY, id="usb-b"))
        links.update(READY)
    assert len(caplog.records) == 1


def test_a_directory_that_is_marked_can_still_be_made_read_only(tmp_path: Path) -> None:
    links = LinkDirectory(tmp_path)
    links.mark()
    try:
        (mark,) = tmp_path.iterdir()
        (held,) = [
            int(link.name)
            for link in Path("/proc/self/fd").iterdir()
            if link.is_symlink() and os.readlink(link) == str(mark)
        ]
        # mount(2): EBUSY as long as a file is open for writing.
        assert fcntl.fcntl(held, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        assert LinkDirectory(tmp_path).is_shared, "and the mark is seen all the same"
    finally:
        links.unmark()
