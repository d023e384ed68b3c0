"""Axes: all values fit, ticks are round and told apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelocal.report.axis import Axis, shown
from pipelocal.report.chart import MOST_POINTS, thinned

VALUES = st.lists(st.floats(-1e9, 1e9).map(lambda value: round(value, 6)), min_size=1)


@given(values=VALUES, log=st.booleans())
def test_every_value_and_tick_is_on_the_axis(values: list[float], *, log: bool) -> None:
    axis = Axis.of(values, 10, 110, ticks=5, log=log)
    for value in (*values, *axis.ticks):
        assert 9.999 <= axis.at(value) <= 110.001
    assert len({axis.label(tick) for tick in axis.ticks}) == len(axis.ticks) <= 12


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ((0.0, 138.0), ["0", "50", "100"]),
        ((0.99998, 1.0), ["0.99998", "0.999985", "0.99999", "0.999995", "1.000000"]),
        ((0.1, 0.1), ["0.09", "0.095", "0.1", "0.105", "0.11"]),
        ((0.0, 46_000.0), ["0", "10k", "20k", "30k", "40k"]),
    ],
)
def test_labels(values: tuple[float, ...], labels: list[str]) -> None:
    axis = Axis.of(values, 0, 100, ticks=5)
    found = [axis.label(tick) for tick in axis.ticks]
    assert [float(text.removesuffix("k")) for text in found] == pytest.approx(
        [float(text.removesuffix("k")) for text in labels]
    )


def test_losses_have_a_logarithmic_axis() -> None:
    axis = Axis.of([0.002, 2.3], 200, 0, ticks=5, log=True)
    assert [shown(tick) for tick in axis.ticks] == ["0.01", "0.1", "1"]
    assert axis.at(2.3) == 0
    assert not Axis.of([0.0, 2.3], 200, 0, ticks=5, log=True).log


def test_long_curves_are_thinned_to_means() -> None:
    points = [(float(step), float(step % 2)) for step in range(10_000)]
    found = thinned(points)
    assert len(found) <= MOST_POINTS
    assert found[-1][0] == 9999
    assert all(value == pytest.approx(0.5, abs=0.02) for _, value in found)
