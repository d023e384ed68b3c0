"""Rates and shares on a clock that the test sets."""

import pytest

from pipelocal.pipeline.throughput import Throughput


class _Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_rates_and_shares() -> None:
    clock = _Clock()
    meter = Throughput(clock)
    for busy in (0.5, 1.5):
        clock.now += 2.0
        meter.add_busy(busy)
        meter.trained(8)
    # The first batch pays for what is done once, and counts for neither.
    assert meter.trained_rows == 8
    assert meter.training_s == 2.0
    assert meter.samples_per_second == 4.0
    assert meter.busy_fraction == 0.5
    assert meter.read_window() == (4.0, 0.5)


def test_window_is_since_its_last_reading() -> None:
    clock = _Clock()
    meter = Throughput(clock)
    clock.now += 10.0
    meter.add_busy(10.0)
    meter.trained(100)
    meter.read_window()
    clock.now += 4.0
    meter.add_busy(1.0)
    meter.trained(2)
    assert meter.read_window() == (0.5, 0.25)
    assert meter.samples_per_second == pytest.approx(2 / 4)


def test_evaluation_is_no_training_time() -> None:
    clock = _Clock()
    meter = Throughput(clock)
    clock.now += 1.0
    meter.add_busy(1.0)
    meter.trained(10)
    clock.now += 50.0
    meter.add_busy(50.0)
    meter.evaluated()
    clock.now += 1.0
    meter.add_busy(0.5)
    meter.trained(10)
    assert meter.training_s == 1.0
    assert meter.samples_per_second == 10.0
    assert meter.read_window() == (10.0, 0.5)
    assert meter.busy_fraction == pytest.approx(51.5 / 52)


def test_the_time_stops_at_the_end() -> None:
    clock = _Clock()
    meter = Throughput(clock)
    clock.now += 4.0
    meter.add_busy(1.0)
    meter.ended()
    clock.now += 100.0
    assert meter.seconds == 4.0
    assert meter.busy_fraction == 0.25


def test_before_anything_happened() -> None:
    meter = Throughput(_Clock())
    assert meter.samples_per_second == 0.0
    assert meter.busy_fraction == 0.0
    assert meter.read_window() == (0.0, 0.0)


def test_busy_share_is_at_most_one() -> None:
    clock = _Clock()
    meter = Throughput(clock)
    clock.now += 1.0
    meter.add_busy(1.5)  # two clocks never agree to the last digit
    assert meter.busy_fraction == 1.0
    assert meter.read_window()[1] == 1.0
