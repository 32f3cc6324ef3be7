"""When slices are applied again, how often is written, and how long is waited after a failure."""

from __future__ import annotations

import pytest

from usbplugin.dra.cluster import RefusedError
from usbplugin.dra.schedule import Backoff, Bucket, Looks
from usbplugin.errors import ApiServerError

MINUTE = 60.0


def looks_until(end: float, looks: Looks) -> list[float]:
    found = []
    while looks.next <= end:
        now = looks.next
        assert looks.take(now)
        assert not looks.take(now)
        found.append(now)
    return found


def test_the_kubelets_wipe_is_found_soon_and_a_late_one_within_a_minute() -> None:
    assert looks_until(20 * MINUTE, Looks(0.0)) == [
        *(0.0, 1.0, 2.0, 5.0, 10.0, 20.0),
        *(MINUTE * n for n in range(1, 7)),
        *(11 * MINUTE, 16 * MINUTE),
    ]


def test_a_registration_begins_it_anew() -> None:
    looks = Looks(0.0)
    looks_until(30 * MINUTE, looks)
    looks.restart(1900.0)
    assert looks_until(1905.0, looks) == [1900.0, 1901.0, 1902.0, 1905.0]


def test_looks_that_were_missed_are_made_once() -> None:
    looks = Looks(0.0)
    assert looks.take(7.0)
    assert looks.next == 10.0
    assert looks.take(5000.0)
    assert looks.next > 5000.0


def test_ten_bursts_at_once_and_two_a_second_in_the_long_run() -> None:
    bucket, now, written = Bucket(0.0), 0.0, 0
    while now < 60.0:
        now = bucket.ready_at(now)
        bucket.take(now)
        written += 1
    assert 128 <= written <= 132
    assert bucket.ready_at(1000.0) == 1000.0


@pytest.mark.parametrize(
    ("error", "longest"),
    [
        (ApiServerError(None, "away"), 2.0),
        (RefusedError(503, "down"), 2.0),
        (RefusedError(409, "conflict"), 2.0),
        (RefusedError(401, "token"), 60.0),
        (RefusedError(403, "role"), 60.0),
        (RefusedError(404, "old"), 60.0),
        (RefusedError(422, "policy"), 60.0),
    ],
)
def test_each_failure_is_waited_for_as_long_as_it_may_last(
    error: ApiServerError, longest: float
) -> None:
    backoff = Backoff()
    delays = [backoff.delay(error) for _ in range(30)]
    assert 0.1 < delays[0] <= 1.0
    assert 0.7 * longest <= delays[-1] <= longest
    backoff.reset()
    assert backoff.delay(error) <= 1.0


def test_who_asks_for_peace_is_given_it_within_reason() -> None:
    assert Backoff().delay(RefusedError(429, "busy", retry_after=30.0)) == 30.0
    assert Backoff().delay(RefusedError(429, "busy", retry_after=1e9)) == 300.0
