"""What an API server hears of our devices, and what becomes of it in each kind of trouble."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.apiserver import (
    NODE,
    SLICES,
    Answer,
    Asked,
    FakeApiServer,
    HangUpError,
    status,
    wait_until,
)
from tests.support import usb_port
from usbplugin.dra.apiserver import ApiServer
from usbplugin.dra.cluster import Cluster
from usbplugin.dra.contracts import Outcome, PublishedDevice, Terms
from usbplugin.dra.poolfile import PoolFile
from usbplugin.dra.publisher import SlicePublisher
from usbplugin.errors import ApiServerError
from usbplugin.inventory import Device, Health

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

UNPLUGGED = [("unplugged", "NoSchedule")]
EVICTED = [*UNPLUGGED, ("unplugged", "NoExecute")]


def device(number: int = 0, health: Health = Health.READY, **changes: object) -> PublishedDevice:
    name = f"tty-{number:04d}"
    port = usb_port(f"ttyUSB{number}", serial=f"S{number}")
    found = Device(name, "usbplugin/serial", health, "", (port,), 0)
    one = PublishedDevice(name, found, since=time.time(), evict_after=0.0)
    return msgspec.structs.replace(one, **changes)


def devices(count: int, *others: PublishedDevice) -> list[PublishedDevice]:
    named = {other.name: other for other in others}
    return [named.get(one.name, one) for one in map(READY.__getitem__, range(count))]


READY = [device(number) for number in range(1000)]


class Books:
    """A DraObserver that writes down what it hears."""

    def __init__(self) -> None:
        self.published: list[tuple[int, float]] = []
        self.unpublished: list[float | None] = []
        self.recreated: list[str] = []
        self.dropped: list[str] = []
        self.tainted: list[tuple[str, str, tuple[str, ...]]] = []

    def dra_registered(self, *, is_registered: bool) -> None:
        pass

    def dra_prepared(self, outcome: Outcome, seconds: float) -> None:
        pass

    def dra_claims(self, number: int) -> None:
        pass

    def dra_published(self, slices: int, seconds: float) -> None:
        self.published.append((slices, seconds))

    def dra_unpublished(self, since: float | None) -> None:
        self.unpublished.append(since)

    def dra_recreated(self, slice_name: str) -> None:
        self.recreated.append(slice_name)

    def dra_dropped(self, field: str) -> None:
        self.dropped.append(field)

    def dra_refused(self, claim: str, reason: str) -> None:
        pass

    def dra_tainted(self, device: str, resource: str, taints: tuple[str, ...]) -> None:
        self.tainted.append((device, resource, taints))


class Life:
    """A publisher that runs, and can be ended and begun again."""

    def __init__(self, fake: FakeApiServer, directory: Path) -> None:
        self.fake = fake
        self.file = directory / "state" / "dra" / "pool.json"
        self.books = Books()
        self._server: ApiServer | None = None
        self._task: asyncio.Task[None] | None = None
        self.begin()

    def begin(self) -> None:
        self._server = ApiServer(self.fake.access)
        self.publisher = SlicePublisher(
            Cluster(self._server), NODE, PoolFile(self.file), self.books
        )
        self._task = asyncio.create_task(self.publisher.run())

    async def end(self) -> None:
        assert self._task is not None
        assert self._server is not None
        self._task.cancel()
        await asyncio.wait({self._task})
        await self._server.close()

    async def publish(self, wanted: Iterable[PublishedDevice]) -> None:
        """Publish, and wait until that is so."""
        self.publisher.publish(list(wanted))
        await self.done()

    async def done(self) -> None:
        await wait_until(lambda: self.publisher.publication.unpublished_since is None)
        await wait_until(lambda: not self.publisher._is_outdated)
        await self.publisher._turn.acquire()
        self.publisher._turn.release()


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeApiServer]:
    server = FakeApiServer(tmp_path)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def life(fake: FakeApiServer, tmp_path: Path) -> AsyncIterator[Life]:
    one = Life(fake, tmp_path)
    yield one
    await one.end()


def applied(fake: FakeApiServer) -> list[Asked]:
    return [
        asked for asked in fake.asked if asked.method == "PATCH" and not asked.query.get("dryRun")
    ]


# What is published.


async def test_nothing_is_said_before_anything_is_known(life: Life, fake: FakeApiServer) -> None:
    life.publisher.registered()
    await asyncio.sleep(0.05)
    assert not fake.asked
    assert "until every source" in life.publisher.publication.problem
    assert life.books.unpublished[0] is not None


async def test_devices_are_published_and_owned_by_the_node(life: Life, fake: FakeApiServer) -> None:
    await life.publish(devices(2))
    assert fake.devices.keys() == {"tty-0000", "tty-0001"}
    owner = applied(fake)[0].body["metadata"]["ownerReferences"][0]
    assert (owner["kind"], owner["uid"]) == ("Node", "uid-of-the-node")
    publication = life.publisher.publication
    assert (publication.slices, publication.problem) == (1, "")
    assert life.books.unpublished[-1] is None


async def test_a_node_without_devices_says_so(life: Life, fake: FakeApiServer) -> None:
    await life.publish([])
    assert [one["spec"]["devices"] for one in fake.slices.values()] == [[]]


async def test_a_thousand_devices_within_two_seconds(life: Life, fake: FakeApiServer) -> None:
    began = time.process_time()  # the server's share included, and nobody else's
    await life.publish(READY)
    assert time.process_time() - began < 2.0
    assert (len(fake.devices), len(fake.slices)) == (1000, 63)


async def test_one_unplug_is_one_write_and_evicts(life: Life, fake: FakeApiServer) -> None:
    await life.publish(READY)
    await wait_until(lambda: not life.publisher._plan._to_confirm & set(range(63)))
    await life.done()
    fake.asked.clear()
    await life.publish(devices(1000, device(500, Health.UNPLUGGED)))
    assert fake.taints("tty-0500") == EVICTED
    changed = [asked for asked in applied(fake) if asked.body["spec"]["devices"]]
    assert [asked.name for asked in changed if "taints" in str(asked.body)] == [
        f"{NODE}-usbplugin-31"
    ]
    assert len([at for at, _ in fake.writes]) == 63 + 1


async def test_what_evicts_is_written_before_all_else(life: Life, fake: FakeApiServer) -> None:
    await life.publish(devices(64))
    await life.publish(devices(64, device(40, Health.UNPLUGGED)))  # taints are known to be kept
    await life.done()
    fake.writes.clear()
    broken = [device(number, Health.BROKEN) for number in range(32)]
    await life.publish(devices(64, *broken, device(50, Health.UNPLUGGED)))
    assert fake.writes[0][1].endswith("-3")


async def test_eviction_waits_for_its_time(life: Life, fake: FakeApiServer) -> None:
    await life.publish(devices(1, device(0, Health.UNPLUGGED, evict_after=0.4)))
    assert fake.taints("tty-0000") == UNPLUGGED
    await fake.until(lambda: fake.taints("tty-0000") == EVICTED)


async def test_a_replug_in_time_evicts_nobody(life: Life, fake: FakeApiServer) -> None:
    await life.publish(devices(1, device(0, Health.UNPLUGGED, evict_after=0.3)))
    await life.publish(devices(1))
    await asyncio.sleep(0.4)
    assert fake.taints("tty-0000") == []
    assert life.books.tainted == [
        ("tty-0000", "usbplugin/serial", ("unplugged:NoSchedule",)),
        ("tty-0000", "usbplugin/serial", ()),
    ]


async def test_a_flood_of_changes_is_a_trickle_of_writes(life: Life, fake: FakeApiServer) -> None:
    began = time.monotonic()
    await life.publish(devices(1))
    for number in range(300):
        health = (Health.BROKEN, Health.READY)[number % 2]
        life.publisher.publish(devices(1, device(0, health, since=float(number))))
        await asyncio.sleep(0.003)
    await life.done()
    assert len(fake.writes) <= 12 + 2 * (time.monotonic() - began)
    assert fake.taints("tty-0000") == []  # and the newest state has won


async def test_no_api_server_is_told_of_a_ghost_that_does_not_evict(
    life: Life, fake: FakeApiServer
) -> None:
    ghost = device(7, Health.UNPLUGGED, terms=Terms.GHOST, evict_after=5.0)
    await life.publish([ghost])
    assert fake.evicting == {"tty-0007"}


# Restarts, and what was left.


async def test_a_restart_writes_nothing(life: Life, fake: FakeApiServer) -> None:
    await life.publish(devices(40))
    await life.end()
    fake.writes.clear()
    life.begin()
    await life.publish(reversed(devices(40)))
    assert fake.writes == []


async def test_a_restart_without_its_file_replaces_all_of_what_was(
    life: Life, fake: FakeApiServer
) -> None:
    await life.publish(devices(40))
    await life.end()
    life.file.unlink()
    life.begin()
    await life.publish(devices(3))
    await fake.until(lambda: len(fake.slices) == 1)
    assert fake.devices.keys() == {one.name for one in devices(3)}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"generation": 5, "places": {"tty-0000": -3}}', b'{"places": {"x": 100000}}'],
)
async def test_a_spoilt_file_is_as_good_as_none(
    life: Life, fake: FakeApiServer, content: bytes
) -> None:
    life.file.parent.mkdir(parents=True)
    life.file.write_bytes(content)
    await life.publish(devices(3))
    assert len(fake.devices) == 3


async def test_a_file_that_cannot_be_written_keeps_nothing_from_being_published(
    life: Life, fake: FakeApiServer
) -> None:
    life.file.parent.parent.write_text("no directory")
    await life.publish(devices(3))
    await life.publish(devices(4))
    assert len(fake.devices) == 4


async def test_two_instances_side_by_side_agree(
    life: Life, fake: FakeApiServer, tmp_path: Path
) -> None:
    other = Life(fake, tmp_path)
    await life.publish(devices(40))
    await other.publish(devices(40))
    fewer = devices(40)[20:]
    await life.publish(fewer)
    await other.publish(fewer)
    assert fake.devices.keys() == {one.name for one in fewer}
    fake.writes.clear()
    for one in (life, other):
        one.publisher.registered()
        await wait_until(lambda one=one: not one.publisher._plan._to_confirm & {0, 1, 2})  # type: ignore[misc]
        await one.done()
    assert fake.writes == []
    await other.end()


async def test_fewer_slices_leave_none_behind(life: Life, fake: FakeApiServer) -> None:
    await life.publish(devices(40))
    await life.publish(devices(10))
    assert len(fake.slices) == 1
    assert len(fake.devices) == 10


async def test_a_front_that_is_no_more_withdraws_its_slices(
    life: Life, fake: FakeApiServer
) -> None:
    await life.publish(devices(40))
    await life.publisher.withdraw()
    assert fake.slices == {}
    life.publisher.registered()
    await asyncio.sleep(0.05)
    assert fake.slices == {}
    await life.publish(devices(2))
    assert len(fake.devices) == 2


# The failure table.


async def test_api_server_away_at_start(life: Life, fake: FakeApiServer) -> None:
    await fake.stop()
    life.publisher.publish(devices(2))
    await wait_until(lambda: "cannot be reached" in life.publisher.publication.problem)
    await fake.start()
    await life.done()
    assert len(fake.devices) == 2
    assert life.publisher.publication.problem == ""


async def test_cables_moved_while_the_api_server_was_away(
    life: Life, fake: FakeApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    await life.publish(devices(3))
    await fake.stop()
    with caplog.at_level(logging.INFO, "usbplugin"):
        life.publisher.publish(devices(3, device(0, Health.UNPLUGGED)))
        await asyncio.sleep(1.5)
        life.publisher.publish([device(1, Health.UNPLUGGED), device(2), device(3)])
        await asyncio.sleep(0.5)
        fake.wipe()
        back = time.monotonic()
        await fake.start()
        await life.done()
    assert time.monotonic() - back < 5.0
    assert fake.devices.keys() == {"tty-0001", "tty-0002", "tty-0003"}
    assert fake.evicting == {"tty-0001"}
    complaints = [r for r in caplog.records if "cannot publish" in r.message]
    assert 1 <= len(complaints) <= 2  # it hung up, then it could not be reached


async def test_a_hanging_api_server_is_left_after_its_time(
    life: Life, fake: FakeApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ApiServer.request, "__defaults__", (None, "application/json", 0.2))
    fake.delay = lambda asked: 3600 if len(fake.asked) < 3 else 0
    await life.publish(devices(1))
    assert len(fake.devices) == 1


@pytest.mark.parametrize("code", [409, 429, 500, 502, 503, 504])
async def test_what_passes_is_tried_again_soon(life: Life, fake: FakeApiServer, code: int) -> None:
    fake.interfere = lambda asked: status(code, "not now") if len(fake.asked) < 3 else None
    began = time.monotonic()
    await life.publish(devices(1))
    assert 0.3 < time.monotonic() - began < 3.0
    assert fake.count("PATCH") <= 3


async def test_a_server_that_asks_for_peace_is_given_it(life: Life, fake: FakeApiServer) -> None:
    answer = Answer(429, {}, (("Retry-After", "2"),))
    fake.interfere = lambda asked: answer if len(fake.asked) == 1 else None
    life.publisher.publish(devices(1))
    await fake.until(lambda: len(fake.asked) == 1)
    life.publisher.publish(devices(2))  # news are no reason
    await life.done()
    assert fake.asked[1].at - fake.asked[0].at >= 2.0


@pytest.mark.parametrize(
    ("code", "hint"), [(401, "token"), (403, "ClusterRole"), (404, "1.34"), (422, "Policy")]
)
async def test_who_is_refused_says_what_to_mend_and_does_not_hammer(
    life: Life, fake: FakeApiServer, code: int, hint: str
) -> None:
    fake.interfere = lambda asked: status(code, "no") if asked.method == "PATCH" else None
    life.publisher.publish(devices(1))
    await wait_until(lambda: hint in life.publisher.publication.problem)
    fake.asked.clear()
    await asyncio.sleep(0.5)
    assert len(fake.asked) == 0
    fake.interfere = lambda asked: None
    await life.done()


async def test_another_nodes_name_is_refused_by_the_policy_in_either_of_its_words(
    life: Life, fake: FakeApiServer
) -> None:
    fake.tokens = dict.fromkeys(fake.tokens, "node-2")
    for fake.is_reason_given in (True, False):
        life.publisher.registered()
        life.publisher.publish(devices(1))
        await wait_until(
            lambda: (
                "ValidatingAdmissionPolicy" in life.publisher.publication.problem
                and str(403 if fake.is_reason_given else 422) in life.publisher.publication.problem
            )
        )
    assert fake.slices == {}


async def test_a_device_that_the_api_server_does_not_take_keeps_no_other_one_back(
    life: Life, fake: FakeApiServer
) -> None:
    bad = device(1, name="Not A Label")
    await life.publish([device(0), bad, device(2)])
    assert fake.devices.keys() == {"tty-0000", "tty-0002"}
    assert "Not A Label" in life.publisher.publication.problem
    fake.asked.clear()
    await life.publish([device(0, Health.BROKEN), bad, device(2)])
    assert all("Not A Label" not in str(asked.body) for asked in fake.asked)
    await life.publish(devices(3))
    assert len(fake.devices) == 3
    assert life.publisher.publication.problem == ""


async def test_a_refused_device_is_not_asked_for_again_and_again_while_writes_are_scarce(
    life: Life, fake: FakeApiServer
) -> None:
    await life.publish(devices(1))
    while life.publisher._bucket.ready_at(0.0) <= 0.0:
        life.publisher._bucket.take(0.0)
    fake.asked.clear()
    await life.publish([device(0), device(1, name="Not A Label")])
    assert fake.count("PATCH") <= 4


async def test_the_kubelets_wipe_is_undone(life: Life, fake: FakeApiServer) -> None:
    await life.publish(devices(40))
    fake.wipe()
    life.publisher.registered()
    await fake.until(lambda: len(fake.devices) == 40)
    fake.wipe()  # it comes up to some seconds after the registration
    await fake.until(lambda: len(fake.devices) == 40)
    await life.done()
    assert set(life.books.recreated) == {f"{NODE}-usbplugin-{n}" for n in range(3)}


async def test_one_deleted_slice_found_by_chance_has_the_others_looked_at(
    life: Life, fake: FakeApiServer
) -> None:
    await life.publish(devices(40))
    await asyncio.sleep(0.01)
    fake.wipe()
    await life.publish(devices(40, device(0, Health.BROKEN)))
    await fake.until(lambda: len(fake.devices) == 40)
    assert fake.count("PATCH") < 40


async def test_a_slice_that_somebody_edited_is_put_right(life: Life, fake: FakeApiServer) -> None:
    await life.publish(devices(1, device(0, Health.UNPLUGGED)))
    (name,) = fake.slices
    fake.slices[name]["spec"]["devices"] = []
    life.publisher.registered()
    await fake.until(lambda: fake.evicting == {"tty-0000"})


async def test_a_node_that_was_made_anew_owns_the_slices(life: Life, fake: FakeApiServer) -> None:
    await life.publish(devices(1))
    fake.nodes[NODE] = "uid-of-its-successor"
    life.publisher.registered()
    await fake.until(lambda: "uid-of-its-successor" in str(applied(fake)[-1].body["metadata"]))


async def test_where_taints_are_not_kept_nobody_is_offered_what_is_absent(
    life: Life, fake: FakeApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    fake.gates = set()
    await life.publish(devices(3, device(1, Health.UNPLUGGED), device(2, Health.BROKEN)))
    assert fake.devices.keys() == {"tty-0000"}
    assert all("tty-0001" not in str(asked.body) for asked in applied(fake))
    assert life.books.dropped == ["taints"]
    assert life.publisher.publication.dropped_fields == ("taints",)
    assert "feature gate is off" in caplog.text
    await life.publish(devices(3))
    assert len(fake.devices) == 3


async def test_once_taints_are_kept_they_are_used(life: Life, fake: FakeApiServer) -> None:
    fake.gates = set()
    await life.publish(devices(2, device(1, Health.UNPLUGGED)))
    fake.gates = {"DRADeviceTaints"}
    life.publisher.registered()
    await fake.until(lambda: fake.evicting == {"tty-0001"})
    await life.done()
    assert life.publisher.publication.dropped_fields == ()


async def test_where_devices_cannot_be_shared_that_is_said(life: Life, fake: FakeApiServer) -> None:
    fake.gates = {"DRADeviceTaints"}
    await life.publish([device(0, shares=3)])
    assert life.books.dropped == ["allowMultipleAllocations"]


async def test_a_server_that_cuts_each_answer_off_is_survived(
    life: Life, fake: FakeApiServer
) -> None:
    def cut(asked: Asked) -> None:
        if len(fake.asked) < 4:
            raise HangUpError

    fake.interfere = cut
    await life.publish(devices(1))
    assert len(fake.devices) == 1


async def test_a_missing_slice_hides_no_other_one_from_withdrawal(
    life: Life, fake: FakeApiServer
) -> None:
    await life.publish(devices(40))
    del fake.slices[f"{NODE}-usbplugin-0"]
    await life.publisher.withdraw()
    assert fake.slices == {}


async def test_a_failed_withdrawal_is_told(life: Life, fake: FakeApiServer) -> None:
    await life.publish(devices(1))
    fake.interfere = lambda asked: status(403, "no") if asked.method == "DELETE" else None
    with pytest.raises(ApiServerError, match="403"):
        await life.publisher.withdraw()
    assert fake.count("DELETE", SLICES) >= 1
