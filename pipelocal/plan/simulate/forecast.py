"""Forecasts pipelines of a model: from the costs of its units to simulated schedules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from pipelocal.partition.cost_model import CostModel
from pipelocal.partition.cut import Cut
from pipelocal.partition.optimal import minimise_largest
from pipelocal.plan.simulate.job import Job, LinkSpeed, Outcome, StageSeconds
from pipelocal.plan.simulate.schedules import SCHEDULES, simulate


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """How a model is trained over ranks.

    Args:
        model: the costs of its units for a global batch.
        micro: their costs for a micro-batch, which is less efficient.
        ranks: number of ranks, with one stage each. If there are more ranks than units, the model is
            assumed to be cut into equal parts, as a larger model of the same kind could be.
        link: the link between neighbours.
        micro_batches: number of micro-batches of GPipe, 1F1B and ZB-H1.
        cuts: where to cut, for all schedules; None for the best cut of each.
        speeds: relative speed of each rank; None if they are equal.
    """

    model: CostModel
    micro: CostModel
    ranks: int
    link: LinkSpeed
    micro_batches: int
    cuts: tuple[Cut, ...] | None = None
    speeds: tuple[float, ...] | None = None

    @property
    def equal_parts(self) -> bool:
        """Whether there are fewer units than ranks."""
        return self.ranks > len(self.model.profile.units)


def forecast(scenario: Scenario) -> list[Outcome]:
    """Simulate every schedule of :data:`SCHEDULES`."""
    own, others = job(scenario, back_propagation=False), job(scenario, back_propagation=True)
    return [simulate(name, own if name == "pipelocal" else others) for name in SCHEDULES]


def job(scenario: Scenario, *, back_propagation: bool) -> Job:
    """Compute the work of each rank.

    Args:
        scenario: how the model is trained.
        back_propagation: whether gradients pass through all stages, without auxiliary heads and
            reconciliation.
    """
    model = scenario.micro if back_propagation else scenario.model
    speeds = scenario.speeds or (1.0,) * scenario.ranks
    # Only pipelocal packs what it sends.
    full = [unit.output_bytes for unit in model.profile.units]
    outputs = full if back_propagation else model.x_bytes
    if scenario.equal_parts:
        stage = _equal_part(model, scenario.ranks, back_propagation)
        stages, x_bytes = [stage] * scenario.ranks, [round(fmean(outputs))] * scenario.ranks
        delta_bytes = [fmean(model.delta_bytes) * model.reconcile_share] * scenario.ranks
    else:
        cuts = scenario.cuts or best_cuts(model, speeds, back_propagation=back_propagation)
        models = model.of_stages(len(cuts))
        stages = [_stage(own, cut, back_propagation) for own, cut in zip(models, cuts, strict=True)]
        x_bytes = [outputs[cut.stop - 1] for cut in cuts]
        delta_bytes = [model.mean_delta_bytes(cut.stop) for cut in cuts]
    own = Job(
        stages=[_slower(stage, speed) for stage, speed in zip(stages, speeds, strict=True)],
        x_bytes=x_bytes,
        link=scenario.link,
        micro_batches=scenario.micro_batches,
        delta_bytes=delta_bytes,
        window=model.window,
    )
    return own.with_batch(scenario.model.profile.batch_size / model.profile.batch_size)


def best_cuts(
    model: CostModel, speeds: Sequence[float], *, back_propagation: bool = False
) -> tuple[Cut, ...]:
    """Find the cut whose slowest stage is fastest."""

    models = model.of_stages(len(speeds))

    def cost(start: int, stop: int, stage: int) -> float:
        if not back_propagation:
            return models[stage - 1].seconds(start, stop) / speeds[stage - 1]
        seconds = _stage(model, Cut(start=start, stop=stop), back_propagation)
        spared = seconds.first_input_gradient if start == 0 else 0.0
        return (seconds.total - spared) / speeds[stage - 1]

    first = 1 if back_propagation else model.fewest_at_first(len(speeds))
    cuts = minimise_largest(len(model.profile.units), len(speeds), cost, first=first)
    assert cuts is not None, "every number of stages up to the units works"
    return tuple(cuts)


def _stage(model: CostModel, cut: Cut, back_propagation: bool) -> StageSeconds:
    profile = model.profile
    units, head = profile.units[cut.start : cut.stop], profile.heads[cut.stop - 1]
    parts = [*units, head]
    if back_propagation and cut.stop < len(profile.units):
        parts = units
    return StageSeconds(
        forward=sum(unit.forward_s for unit in units),
        head=sum(part.forward_s + part.backward_s for part in parts[len(units) :]),
        input_gradient=sum(unit.input_gradient_s for unit in units),
        first_input_gradient=units[0].input_gradient_s,
        weight_gradient=sum(unit.backward_s - unit.input_gradient_s for unit in units),
        reconcile=0.0 if back_propagation else model.reconcile_seconds(cut.start, cut.stop),
        update=sum(part.update_s for part in parts),
    )


def _equal_part(model: CostModel, ranks: int, back_propagation: bool) -> StageSeconds:
    """Return one of equal parts of the model; for pipelocal each has an average head."""
    units, heads = model.profile.units, model.profile.heads
    whole = _stage(model, Cut(start=0, stop=len(units)), back_propagation=True)
    part = replace(
        _slower(whole, ranks), first_input_gradient=whole.input_gradient / ranks, head=0.0
    )
    if back_propagation:  # the classifier is spread over the ranks like the rest
        classifier = heads[-1]
        return replace(
            part,
            forward=part.forward + classifier.forward_s / ranks,
            weight_gradient=part.weight_gradient + classifier.backward_s / ranks,
        )
    return replace(
        part,
        head=fmean(head.forward_s + head.backward_s for head in heads),
        reconcile=model.reconcile_share
        * (
            (sum(map(model.further_seconds, units)) + whole.input_gradient) / ranks
            + fmean(map(model.further_seconds, heads))
        ),
        update=sum(unit.update_s for unit in units) / ranks
        + fmean(head.update_s for head in heads),
    )


def _slower(stage: StageSeconds, speed: float) -> StageSeconds:
    return replace(stage, **{name: value / speed for name, value in vars(stage).items()})
