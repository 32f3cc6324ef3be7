"""Whatever uevents and udevd's database name: a port or none, and a container that may have it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.discovery.test_sysfs import FakeSysfs
from tests.fuzz.support import SERIAL, Keeper, Trusting, directory, log_lines
from tests.fuzz.test_descriptors import grant
from usbplugin.custody import Offer
from usbplugin.discovery import DeviceNumber, Readiness, sightings
from usbplugin.discovery.libudev import DatabaseEntry, is_serial_link
from usbplugin.discovery.sightings import Sightings
from usbplugin.errors import DiscoveryError
from usbplugin.foundation.reads import Reads
from usbplugin.foundation.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usbplugin.discovery.glance import Glance

NULL = DeviceNumber(1, 3)
PORT_NAME = "ttyACM0"
AS_LONG_AS_IT_TAKES = 60.0

# A string of the kernel's has no NUL in it.
names = st.binary(max_size=40).map(
    lambda raw: os.fsdecode(raw.replace(b"\0", b""))
) | st.sampled_from(["", ".", "..", "../tty0", "ttyACM0/..", "tty!ACM0", "x" * 300, "\udcff"])
links = st.builds(
    "/dev/serial/by-id/{}".format, st.text(max_size=40) | st.sampled_from(["..", "../../sda", ""])
).filter(is_serial_link)
entries = st.builds(
    DatabaseEntry,
    initialized=st.booleans(),
    initialized_usec=st.integers(0, 2**64),
    links=st.lists(links, max_size=3, unique=True).map(tuple),
)


class FakeUdev:
    def __init__(self, entry: DatabaseEntry) -> None:
        self.entry = entry

    def database_entry(self, sysfs_path: str) -> DatabaseEntry:
        del sysfs_path
        return self.entry


@given(name=names)
@example(name="ttyACM0")
def test_any_name_in_a_uevent(name: str) -> None:
    with directory() as root, log_lines(), pytest.MonkeyPatch.context() as patch:
        sysfs = FakeSysfs(root / "sys")
        sysfs.devices.mkdir(parents=True, exist_ok=True)
        patch.setattr(sightings, "CLASS", str(sysfs.devices))
        looker = Sightings(
            FakeUdev(DatabaseEntry(initialized=True, initialized_usec=1, links=())),  # type: ignore[arg-type]
            patience=1,
            reads=Reads(Workers(), lambda: None),
        )
        try:
            (look,) = looker.look([name], AS_LONG_AS_IT_TAKES)
        except DiscoveryError:
            return
        assert look.port is None


@given(entry=entries, heard=st.lists(st.text(max_size=20), max_size=3))
@example(
    entry=DatabaseEntry(initialized=True, initialized_usec=0, links=('/dev/serial/by-id/"',)),
    heard=[],
)
@example(
    entry=DatabaseEntry(
        initialized=True,
        initialized_usec=1,
        links=("/dev/serial/by-id/a,b", "/dev/serial/by-id/$(a)", "/dev/serial/by-id/../../sda"),
    ),
    heard=["c1:3"],
)
def test_any_entry_of_the_database(entry: DatabaseEntry, heard: Sequence[str]) -> None:
    with directory() as root, log_lines(), pytest.MonkeyPatch.context() as patch:
        sysfs = FakeSysfs(root / "sys")
        tty = sysfs.cdc_acm(sysfs.device(serial=b"S1"), PORT_NAME)
        patch.setattr(sightings, "CLASS", str(tty.parent))
        reads: Reads[Glance] = Reads(Workers(), lambda: None)
        looker = Sightings(FakeUdev(entry), 0, reads)  # type: ignore[arg-type]
        looker.heard(set(heard))
        (look,) = looker.look([tty.name], AS_LONG_AS_IT_TAKES)
        port = look.port
        assert port is not None
        # The node of a made-up tty is not there; one that every machine has stands in for it.
        whole = port.__class__(
            name=port.name,
            node="/dev/null",
            number=NULL,
            usb=port.usb,
            sysfs_path=port.sysfs_path,
            driver=port.driver,
            links=port.links,
            readiness=Readiness.READY,
        )
        grant(Keeper(root / "node", Offer(SERIAL, by_id_links=True), Trusting()), whole)
