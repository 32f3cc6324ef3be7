from __future__ import annotations

from collections import Counter

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from usbplugin.dra.device import Entry
from usbplugin.dra.slices import MOST_SLICES, SLICE_SIZE, Pool, dropped_fields, slices_of
from usbplugin.dra.taints import Effect, Taint

NAMES = [f"tty-{number:04d}" for number in range(3 * SLICE_SIZE)]


def entries(*names: str) -> dict[str, Entry]:
    return {name: Entry(name, {}) for name in names}


def names_in(pool: Pool, number: int) -> list[str]:
    return sorted(name for name, place in pool.places.items() if place == number)


def test_a_node_without_devices_has_an_empty_slice() -> None:
    pool = Pool().arrange([])
    assert (pool.count, pool.generation) == (1, 1)
    assert slices_of(pool, {}, "node-1", "uid-1")[0].spec.devices == ()


def test_a_thousand_devices_are_in_sixty_three_slices() -> None:
    assert Pool().arrange(f"tty-{number}" for number in range(1000)).count == 63


def test_more_than_a_pool_may_have_are_left_out() -> None:
    pool = Pool().arrange(f"tty-{n}" for n in range(MOST_SLICES * SLICE_SIZE + 5))
    assert (pool.count, len(pool.places)) == (MOST_SLICES, MOST_SLICES * SLICE_SIZE)


def test_the_same_devices_are_the_same_pool_also_after_a_restart() -> None:
    pool = Pool().arrange(NAMES)
    read_again = msgspec.json.decode(msgspec.json.encode(pool), type=Pool)
    assert read_again.arrange(reversed(NAMES)) is read_again


def test_one_device_more_changes_one_slice_and_no_other() -> None:
    pool = Pool().arrange(NAMES[:-1])
    more = pool.arrange(NAMES)
    assert more.generation == pool.generation
    assert {n: place for n, place in more.places.items() if n in pool.places} == pool.places


def test_where_several_slices_change_all_are_of_a_new_generation() -> None:
    pool = Pool().arrange(NAMES)
    assert pool.arrange([*NAMES, "new"]).generation == pool.generation + 1
    assert pool.arrange([*NAMES[1:-1]]).generation == pool.generation + 1


def test_nothing_moves_to_fill_a_gap() -> None:
    pool = Pool().arrange(NAMES)
    thinner = pool.arrange(NAMES[SLICE_SIZE:])
    assert thinner.count == 3
    assert names_in(thinner, 0) == []
    assert thinner.arrange([*NAMES[SLICE_SIZE:], "new"]).places["new"] == 0


def test_what_is_not_known_to_be_older_is_overtaken() -> None:
    assert Pool().arrange(NAMES, 1_700_000_000).generation == 1_700_000_000
    assert Pool(1_800_000_000).arrange(NAMES, 1_700_000_000).generation == 1_800_000_001


def test_a_slice_as_the_api_server_is_told_of_it() -> None:
    pool = Pool().arrange(["b", "a", "absent"])
    (sent,) = slices_of(pool, entries("a", "b"), "node-1", "uid-1")
    assert msgspec.json.decode(msgspec.json.encode(sent)) == {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceSlice",
        "metadata": {
            "name": "node-1-usbplugin-0",
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "Node", "name": "node-1", "uid": "uid-1"}
            ],
        },
        "spec": {
            "driver": "usbplugin",
            "nodeName": "node-1",
            "pool": {"name": "node-1", "generation": 1, "resourceSliceCount": 1},
            "devices": [{"name": "a", "attributes": {}}, {"name": "b", "attributes": {}}],
        },
    }


def test_what_an_api_server_did_not_keep() -> None:
    taints = (Taint("usbplugin/unplugged", Effect.NO_SCHEDULE, "2026-01-01T00:00:00Z"),)
    sent = [Entry("a", {}, taints=taints), Entry("b", {}, allow_multiple_allocations=True)]
    kept: dict[str, dict[str, object]] = {"a": {"taints": [{}]}, "b": {}}
    assert dropped_fields(sent, kept) == {"allowMultipleAllocations"}
    assert dropped_fields(sent, {}) == {"taints", "allowMultipleAllocations"}


@given(st.lists(st.sets(st.sampled_from(NAMES)), min_size=1, max_size=8))
def test_whatever_comes_and_goes_a_pool_is_one_that_consumers_understand(
    history: list[set[str]],
) -> None:
    pool = Pool()
    for names in history:
        later = pool.arrange(names)
        assert later.places.keys() == names
        assert max(Counter(later.places.values()).values(), default=0) <= SLICE_SIZE
        assert later.generation >= pool.generation
        changed = {n for n in range(MOST_SLICES) if names_in(later, n) != names_in(pool, n)}
        # Consumers take a slice as it is: what moves between slices must be seen at once.
        assert later.generation > pool.generation or (
            len(changed) <= 1 and later.count == pool.count
        )
        pool = later
