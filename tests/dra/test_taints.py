from __future__ import annotations

import msgspec
import pytest

from tests.support import usb_port
from usbplugin.dra.contracts import PublishedDevice, Terms
from usbplugin.dra.taints import KEYS, eviction_at, taints_of
from usbplugin.inventory import Device, Health

UNPLUG = 1_000_000_000.25
BEFORE, AFTER = "2001-09-09T01:46:40Z", "2001-09-09T01:46:41Z"
SECONDS_LATER = UNPLUG + 5


def published(health: Health, **changes: object) -> PublishedDevice:
    device = Device("usb-1", "usbplugin/gps", health, "", (usb_port(),), 0)
    return msgspec.structs.replace(PublishedDevice("usb-1", device, since=UNPLUG), **changes)


def effects(one: PublishedDevice, now: float) -> list[tuple[str, str]]:
    return [(taint.key, taint.effect.value) for taint in taints_of(one, now)]


def test_a_ready_device_has_none() -> None:
    assert taints_of(published(Health.READY), UNPLUG) == ()


@pytest.mark.parametrize("health", [Health.UNPLUGGED, Health.INCOMPLETE])
def test_who_is_away_gets_no_new_pods_at_once_and_loses_the_old_ones_later(health: Health) -> None:
    key = f"usbplugin/{health.value}"
    one = published(health)
    assert eviction_at(one) == SECONDS_LATER
    assert effects(one, UNPLUG) == [(key, "NoSchedule")]
    assert effects(one, SECONDS_LATER) == [(key, "NoSchedule"), (key, "NoExecute")]


def test_nobody_is_evicted_where_that_is_not_wanted() -> None:
    one = published(Health.UNPLUGGED, evict_after=None)
    assert eviction_at(one) is None
    assert effects(one, UNPLUG + 1e6) == [("usbplugin/unplugged", "NoSchedule")]


def test_a_pod_has_the_whole_of_the_grace_it_asked_for() -> None:
    _, evicts = taints_of(published(Health.UNPLUGGED), SECONDS_LATER)
    assert evicts.time_added == AFTER


def test_eviction_at_once_is_not_put_off_to_the_next_second() -> None:
    _, evicts = taints_of(published(Health.UNPLUGGED, evict_after=0.0), UNPLUG)
    assert evicts.time_added == BEFORE


def test_the_same_unplug_is_always_the_same_moment() -> None:
    one = published(Health.UNPLUGGED)
    assert taints_of(one, SECONDS_LATER) == taints_of(one, SECONDS_LATER + 1000)


def test_a_ghost_evicts_at_once() -> None:
    ghost = published(Health.UNPLUGGED, terms=Terms.GHOST)
    assert ("usbplugin/unplugged", "NoExecute") in effects(ghost, UNPLUG)


@pytest.mark.parametrize(
    "health", [Health.BROKEN, Health.FLAPPING, Health.CONTESTED, Health.RETIRED]
)
def test_what_is_only_unfit_keeps_its_pods(health: Health) -> None:
    assert effects(published(health), UNPLUG + 1e6) == [(f"usbplugin/{health.value}", "NoSchedule")]


def test_a_container_with_old_numbers_is_evicted_at_once() -> None:
    one = published(Health.DISPLACED)
    moved = msgspec.structs.replace(one, device=msgspec.structs.replace(one.device, has_moved=True))
    assert effects(moved, UNPLUG) == [
        ("usbplugin/displaced", "NoSchedule"),
        ("usbplugin/displaced", "NoExecute"),
    ]


def test_two_that_changed_places_are_evicted_as_well() -> None:
    one = published(Health.CONTESTED)
    moved = msgspec.structs.replace(one, device=msgspec.structs.replace(one.device, has_moved=True))
    assert effects(moved, UNPLUG) == [
        ("usbplugin/contested", "NoSchedule"),
        ("usbplugin/displaced", "NoExecute"),
    ]


def test_a_container_of_which_nobody_knows_what_it_has_is_not() -> None:
    assert effects(published(Health.DISPLACED), UNPLUG + 1e6) == [
        ("usbplugin/displaced", "NoSchedule")
    ]


@pytest.mark.parametrize("terms", [Terms.HELD_ELSEWHERE, Terms.DRAINING])
def test_what_the_other_front_has_is_kept_from_new_claims(terms: Terms) -> None:
    assert effects(published(Health.READY, terms=terms), UNPLUG) == [
        (f"usbplugin/{terms.value}", "NoSchedule")
    ]


@pytest.mark.parametrize("terms", Terms)
@pytest.mark.parametrize("health", Health)
def test_every_state_of_every_device_has_taints_that_the_api_server_takes(
    health: Health, terms: Terms
) -> None:
    found = effects(published(health, terms=terms), UNPLUG + 1e6)
    assert len(set(found)) == len(found) <= 4  # DeviceTaintsMaxLength, in releases up to 1.34
    assert {key for key, _ in found} <= set(KEYS)
    assert bool(found) is not (health.is_usable and terms in (Terms.OFFERED, Terms.GHOST))
