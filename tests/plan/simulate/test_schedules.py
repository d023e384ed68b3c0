"""Simulated schedules against closed forms."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelocal.plan.simulate.job import Job, LinkSpeed, StageSeconds
from pipelocal.plan.simulate.schedules import SCHEDULES, simulate

FREE = LinkSpeed(bytes_per_s=1e30)


def a_stage(
    *, forward: float = 1.0, inputs: float = 1.0, weights: float = 1.0, first: float = 0.0
) -> StageSeconds:
    return StageSeconds(
        forward=forward,
        head=0.0,
        input_gradient=inputs,
        first_input_gradient=first,
        weight_gradient=weights,
        reconcile=0.0,
        update=0.0,
    )


def a_job(stages: list[StageSeconds], *, micro_batches: int = 1, link: LinkSpeed = FREE) -> Job:
    return Job(
        stages=stages,
        x_bytes=[1] * len(stages),
        link=link,
        micro_batches=micro_batches,
        delta_bytes=[0.0] * len(stages),
        window=2,
    )


@pytest.mark.parametrize("schedule", ["GPipe", "1F1B"])
@pytest.mark.parametrize(("ranks", "micro_batches"), [(1, 1), (2, 2), (4, 8), (4, 3), (8, 8)])
def test_gpipe_and_1f1b_take_m_plus_k_minus_1_turns(
    schedule: str, ranks: int, micro_batches: int
) -> None:
    """arXiv 1811.06965, section 2.3; arXiv 2104.04473, section 2.2.1."""
    job = a_job([a_stage()] * ranks, micro_batches=micro_batches)
    outcome = simulate(schedule, job)
    turns = micro_batches + ranks - 1
    assert outcome.seconds_per_batch == pytest.approx(turns * 3.0 / micro_batches)
    assert outcome.utilisation == pytest.approx(micro_batches / turns)


@pytest.mark.parametrize(("ranks", "micro_batches"), [(2, 2), (4, 4), (4, 8), (8, 16)])
def test_zb_h1_has_the_bubble_of_its_paper(ranks: int, micro_batches: int) -> None:
    """(K - 1) (T_F + T_B - T_W), arXiv 2401.10241, table 1."""
    job = a_job([a_stage()] * ranks, micro_batches=micro_batches)
    seconds = simulate("ZB-H1", job).seconds_per_batch
    assert seconds == pytest.approx(3.0 + (ranks - 1) / micro_batches)


def test_1f1b_keeps_one_micro_batch_for_each_rank_and_gpipe_all() -> None:
    job = a_job([a_stage()] * 4, micro_batches=16)
    kept = {name: simulate(name, job).activations for name in SCHEDULES}
    assert kept == {"pipelocal": 1.0, "GPipe": 1.0, "1F1B": 0.25, "ZB-H1": 0.25}


def test_the_first_rank_is_spared_the_gradient_at_its_input() -> None:
    stage = a_stage(first=1.0)
    for schedule in SCHEDULES:
        assert simulate(schedule, a_job([stage])).seconds_per_batch == pytest.approx(2.0)
    # Without reconciliation a pipelocal stage is spared it everywhere.
    assert simulate("pipelocal", a_job([stage] * 3)).seconds_per_batch == pytest.approx(2.0)
    assert simulate("1F1B", a_job([stage] * 3)).seconds_per_batch == pytest.approx(9.0 - 1.0)


@given(
    st.lists(st.floats(0.1, 5.0), min_size=1, max_size=6),
    st.floats(0.01, 3.0),
    st.floats(0.0, 2.0),
    st.integers(1, 4),
)
def test_pipelocal_is_as_fast_as_its_slowest_stage_or_link(
    forwards: list[float], transfer_s: float, latency_s: float, window: int
) -> None:
    """One transfer and its latency at most lie between two batches, whatever the window."""
    stages = [a_stage(forward=forward, inputs=0.0, weights=0.0) for forward in forwards]
    link = LinkSpeed(bytes_per_s=1 / transfer_s, latency_s=latency_s)
    outcome = simulate("pipelocal", replace(a_job(stages, link=link), window=window))
    slowest = max(forwards) if len(forwards) == 1 else max(*forwards, transfer_s)
    assert outcome.seconds_per_batch >= slowest * (1 - 1e-9)
    if latency_s == 0.0 and window > 1:
        # A stage holds its input until it has ended, hence two turns at most.
        assert outcome.seconds_per_batch <= slowest * 2 + transfer_s
    fill = sum(forwards[:-1]) + (len(forwards) - 1) * (transfer_s + latency_s)
    assert outcome.fill_s == pytest.approx(fill)


def test_a_slow_link_sets_the_rate_and_delta_doubles_it() -> None:
    stages = [a_stage()] * 3
    job = a_job(stages, link=LinkSpeed(bytes_per_s=1 / 5))
    assert simulate("pipelocal", job).seconds_per_batch == pytest.approx(5.0)
    with_delta = replace(job, delta_bytes=[1.0] * 3)
    assert simulate("pipelocal", with_delta).seconds_per_batch == pytest.approx(10.0)


def test_latency_costs_pipelocal_nothing_in_the_long_run_and_1f1b_every_batch() -> None:
    stages = [a_stage()] * 4
    near = a_job(stages, micro_batches=8)
    far = replace(near, link=LinkSpeed(bytes_per_s=1e30, latency_s=0.5))
    assert simulate("pipelocal", far).seconds_per_batch == pytest.approx(3.0)
    lost = simulate("1F1B", far).seconds_per_batch - simulate("1F1B", near).seconds_per_batch
    assert lost >= 2 * 3 * 0.5


@given(
    st.lists(st.tuples(*[st.floats(0.1, 2.0)] * 3), min_size=1, max_size=5),
    st.integers(1, 8),
    st.floats(0.001, 1.0),
)
def test_no_schedule_beats_its_busiest_rank(
    seconds: list[tuple[float, float, float]], micro_batches: int, transfer_s: float
) -> None:
    stages = [a_stage(forward=f, inputs=i, weights=w) for f, i, w in seconds]
    job = a_job(stages, micro_batches=micro_batches, link=LinkSpeed(bytes_per_s=1 / transfer_s))
    busiest = max(f + i + w for f, i, w in seconds)
    for schedule in SCHEDULES:
        outcome = simulate(schedule, job)
        assert outcome.seconds_per_batch >= busiest * (1 - 1e-9)
        assert 0.0 < outcome.utilisation <= 1.0 + 1e-9


def test_a_larger_batch_takes_in_proportion() -> None:
    job = a_job([a_stage()] * 2, micro_batches=4, link=LinkSpeed(bytes_per_s=2.0))
    for schedule in SCHEDULES:
        small, large = simulate(schedule, job), simulate(schedule, job.with_batch(3.0))
        assert large.seconds_per_batch == pytest.approx(3 * small.seconds_per_batch)
