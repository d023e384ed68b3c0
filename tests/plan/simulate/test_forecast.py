"""From what units cost to simulated pipelines."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipelocal.partition.cost_model import CostModel
from pipelocal.partition.cut import Cut
from pipelocal.partition.profile import Cost, Profile
from pipelocal.plan.simulate.forecast import Scenario, best_cuts, forecast, job
from pipelocal.plan.simulate.job import LinkSpeed
from pipelocal.plan.simulate.sweep import sweeps


def a_cost(seconds: float) -> Cost:
    """Forward, input gradient and the rest of the backward pass take so long each."""
    return Cost(
        forward_s=seconds,
        backward_s=2 * seconds,
        input_gradient_s=seconds,
        reconcile_s=4 * seconds,
        update_s=0.0,
        saved_bytes=1,
        reconcile_bytes=1,
        parameters=1,
        parameter_bytes=1,
        buffer_bytes=0,
        optimizer_bytes=0,
        output_bytes=100,
    )


def a_model(
    units: list[float], *, head: float = 0.0, classifier: float = 0.0, reconcile: bool = False
) -> CostModel:
    heads = [a_cost(head)] * (len(units) - 1) + [a_cost(classifier)]
    profile = Profile(
        batch_size=8,
        device="cpu",
        units=[a_cost(seconds) for seconds in units],
        heads=heads,
        input_bytes=1,
    )
    return CostModel(
        profile=profile,
        x_bytes=[100] * len(units),
        delta_bytes=[100] * len(units),
        reconcile_share=float(reconcile),
        passes=0.0,
        window=2,
    )


def a_scenario(model: CostModel, ranks: int) -> Scenario:
    return Scenario(
        model=model, micro=model, ranks=ranks, link=LinkSpeed(bytes_per_s=1e30), micro_batches=4
    )


@pytest.mark.parametrize("reconcile", [False, True])
def test_pipelocal_runs_at_the_rate_that_the_plan_predicts(reconcile: bool) -> None:
    """The simulation and the cost model are two ways to the same figure."""
    model = a_model([1.0, 2.0, 1.0, 3.0, 1.0], head=0.2, classifier=0.3, reconcile=reconcile)
    cuts = best_cuts(model, [1.0] * 3)
    predicted = max(model.seconds(cut.start, cut.stop) for cut in cuts)
    (own, *_) = forecast(a_scenario(model, 3))
    assert own.seconds_per_batch == pytest.approx(predicted)


def test_back_propagation_has_neither_auxiliary_heads_nor_reconciliation() -> None:
    costly = a_model([1.0] * 4, head=5.0, classifier=1.0, reconcile=True)
    plain = a_model([1.0] * 4, head=0.0, classifier=1.0)
    assert forecast(a_scenario(costly, 2))[1:] == forecast(a_scenario(plain, 2))[1:]


def test_each_schedule_gets_its_own_best_cut_unless_one_is_given() -> None:
    """Heads make the first stages heavier for pipelocal alone."""
    model = a_model([1.0] * 6, head=2.0)
    scenario = a_scenario(model, 2)
    own, others = (job(scenario, back_propagation=back) for back in (False, True))
    assert [stage.forward for stage in own.stages] == [2.0, 4.0]
    assert [stage.forward for stage in others.stages] == [3.0, 3.0]
    given = replace(scenario, cuts=(Cut(start=0, stop=1), Cut(start=1, stop=6)))
    for back in (False, True):
        assert [s.forward for s in job(given, back_propagation=back).stages] == [1.0, 5.0]


def test_a_slow_device_takes_longer() -> None:
    cuts = (Cut(start=0, stop=1), Cut(start=1, stop=2))
    scenario = replace(a_scenario(a_model([1.0, 1.0]), 2), cuts=cuts, speeds=(1.0, 0.5))
    assert [s.forward for s in job(scenario, back_propagation=False).stages] == [1.0, 2.0]


def test_more_ranks_than_units_share_the_work_equally() -> None:
    model = a_model([1.0, 3.0], head=0.5, classifier=1.0)
    scenario = a_scenario(model, 8)
    assert scenario.equal_parts
    own, others = (job(scenario, back_propagation=back) for back in (False, True))
    assert {stage.forward for stage in own.stages} == {0.5}
    total = sum(s.forward + s.head + s.input_gradient + s.weight_gradient for s in others.stages)
    assert total == pytest.approx(3 * (1.0 + 3.0 + 1.0))


def test_sweeps_hold_every_schedule_and_the_scenario_itself() -> None:
    model = a_model([1.0] * 12, head=0.1)
    scenario = replace(
        a_scenario(model, 12), link=LinkSpeed(bytes_per_s=100.0, latency_s=0.1), speeds=(1.0,) * 12
    )
    ranks, bandwidth, batch = sweeps(scenario)
    assert ranks.values == [2, 4, 8, 12]
    here = forecast(scenario)
    assert ranks.outcomes[-1] == here
    middle = bandwidth.values.index(scenario.link.bytes_per_s)
    assert bandwidth.outcomes[middle] == here
    now = batch.values.index(8.0)
    assert [o.utilisation for o in batch.outcomes[now]] == pytest.approx(
        [o.utilisation for o in here]
    )
    shares = [outcomes[2].utilisation for outcomes in batch.outcomes]
    assert shares == sorted(shares), "more micro-batches fill a 1F1B pipeline better"


def test_micro_batches_that_lose_efficiency_cost_the_others_and_not_pipelocal() -> None:
    """Of 8 rows in micro-batches of 2: four times what such a one costs."""
    model = a_model([1.0] * 4, classifier=1.0)
    small = a_model([0.5] * 4, classifier=0.5)
    micro = replace(small, profile=replace(small.profile, batch_size=2))
    scenario = a_scenario(model, 2)
    costly = replace(scenario, micro=micro)
    own, *others = zip(forecast(scenario), forecast(costly), strict=True)
    assert own[0] == own[1]
    for plain, lossy in others:
        assert lossy.seconds_per_batch == pytest.approx(2 * plain.seconds_per_batch)
