"""How much time is left."""

from dataclasses import replace

import pytest

from pipelocal.telemetry.progress import Progress
from tests.telemetry.shown import progress


def test_time_left_follows_the_mean_rate() -> None:
    assert progress(60, elapsed_s=12.0).eta_s == pytest.approx(36.0)


def test_time_left_of_a_resumed_run_counts_only_its_own_steps() -> None:
    resumed = replace(progress(120, elapsed_s=12.0), first_step=100)
    assert resumed.eta_s == pytest.approx(12.0 / 20 * 120)


@pytest.mark.parametrize("before_a_rate", [progress(0), progress(120, elapsed_s=0.0)])
def test_time_left_is_unknown_before_there_is_a_rate(before_a_rate: Progress) -> None:
    assert before_a_rate.eta_s is None


@pytest.mark.parametrize("step", [240, 250])
def test_no_time_is_left_at_the_end(step: int) -> None:
    assert progress(step).eta_s == 0.0
