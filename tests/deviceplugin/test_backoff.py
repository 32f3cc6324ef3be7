"""How loudly failures to register are logged."""

from __future__ import annotations

import logging

from usbplugin.deviceplugin.backoff import Loudness


def test_a_restart_of_the_kubelet_is_no_warning() -> None:
    loudness = Loudness()
    levels = [loudness.next_level(100 + 0.5 * number) for number in range(10)]
    assert levels == [logging.INFO, *[logging.DEBUG] * 9]


def test_what_lasts_is_a_warning_once_in_five_minutes() -> None:
    loudness = Loudness()
    levels = [loudness.next_level(float(second)) for second in range(0, 610, 5)]
    warned = [5 * index for index, level in enumerate(levels) if level == logging.WARNING]
    assert warned == [10, 310]


def test_a_failure_long_after_the_last_one_is_a_new_one() -> None:
    loudness = Loudness()
    assert loudness.next_level(0.0) == logging.INFO
    assert loudness.next_level(20.0) == logging.WARNING
    assert loudness.next_level(100.0) == logging.INFO
    assert loudness.next_level(111.0) == logging.WARNING
