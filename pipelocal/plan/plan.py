"""``pipelocal plan``: what a cut would cost, before anything is trained."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from math import prod
from typing import Any

from pipelocal.config import PlanConfig, TrainConfig
from pipelocal.config.checks import validate
from pipelocal.config.resolve import IMAGINED, blueprint_of, cut_of, recipe_of
from pipelocal.data import DataInfo, data_info
from pipelocal.errors import NotTwiceDifferentiable, UserError
from pipelocal.objective import SGR, ContSup, Greedy, InfoPro
from pipelocal.partition import to_text
from pipelocal.partition.analysed import Roofline
from pipelocal.partition.cost_model import CostModel
from pipelocal.partition.from_run import is_run
from pipelocal.partition.measured import Stopwatch
from pipelocal.partition.partitioners import PARTITIONERS
from pipelocal.partition.profile import Meter, Seen
from pipelocal.plan.alternatives import Alternative, alternatives
from pipelocal.plan.budgets import Budget, neighbours
from pipelocal.plan.plot import plot_sweeps
from pipelocal.plan.replicas import (
    Replication,
    given_replicas,
    planned_replicas,
    replicate,
)
from pipelocal.plan.simulate.forecast import Scenario, forecast
from pipelocal.plan.simulate.job import LinkSpeed, Outcome
from pipelocal.plan.simulate.sweep import sweeps
from pipelocal.ranks.host import set_up_host
from pipelocal.ranks.world import World
from pipelocal.run.blueprint import Blueprint
from pipelocal.run.combinations import check_stages
from pipelocal.run.contracts import Contracts
from pipelocal.run.costs import cost_model, partitioned
from pipelocal.stage.recipe import Recipe
from pipelocal.system.quantities import parse_flops, parse_rate, parse_speeds, parse_time
from pipelocal.telemetry.pyplot import check_plot

IMAGENET = DataInfo(name="imagenet", sample_shape=(3, 224, 224), classes=1000)
"""The input that torchvision's models were designed for."""

TIMED = (Greedy, SGR, ContSup, InfoPro)
"""Objectives whose work is measured; of others that of greedy is."""

MOST_NUMBERS = 10**9
"""Most numbers in one sample: four gigabytes."""

MEANT_FOR: dict[str, DataInfo] = {
    **dict.fromkeys(("resnet18", "resnet50", "resnet101", "resnet152"), IMAGENET),
    **dict.fromkeys(("vgg11_bn", "vgg16_bn", "vit_b_16", "convnext_tiny", "swin_t"), IMAGENET),
    **dict.fromkeys(("gpt", "gpt-math", "lstm", "gru"), data_info("text")),
    **dict.fromkeys(("resnet8", "resnet20", "resnet32", "resnet110"), data_info("cifar10")),
    "vit_small": data_info("cifar10"),
    "mlp": data_info("digits"),
}


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """The prediction for one stage and one training batch."""

    stage: int
    units: str
    parameters: int
    parameter_bytes: int
    seconds: float
    """Seconds per training batch, at the speed of the stage's device (``--device-speeds``)."""
    replicas: int
    every_seconds: float
    """Seconds between finished batches of the stage: :attr:`seconds` over the replicas."""
    head: str | None
    """Its auxiliary head, as ``--head`` takes it; None on the last stage, which has the model's own."""
    head_fraction: float
    """Share of the seconds that the auxiliary head takes; 0 on the last stage."""
    memory_bytes: int
    sent_bytes: int
    """Bytes sent to the next stage; 0 on the last."""
    backward_bytes: float
    """Bytes sent back to the stage before, if the objective sends something back: a mean over the batches."""


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """Simulated pipelines over ranks, by a discrete-event model."""

    ranks: int
    equal_parts: bool
    """Whether the model has fewer units than ranks, and was taken to be cut into equal parts."""
    bandwidth: str
    latency: str
    micro_batches: int
    outcomes: list[Outcome]
    plot: str | None
    """File with a plot of the utilisation for other ranks, links and batches."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The result of :func:`plan`."""

    model: str
    batch_size: int
    device: str
    cut: str
    stages: list[StagePlan]
    bottleneck: int
    """Number of the slowest stage, counting replicas, which sets the pace of the pipeline."""
    samples_per_second: float
    replication: Replication
    alternatives: list[Alternative]
    budgets: tuple[Budget, ...] = ()
    """With ``--head auto``: the next smaller and the next larger budget that give other heads."""
    crossing: tuple[str, ...] = ()
    """Says what crosses each cut that several tensors cross, and what was done to the model to cut it."""
    note: str | None = None
    """Says what was planned differently from the request, and why."""
    simulation: Simulation | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain types."""
        return asdict(self)


def plan(config: PlanConfig) -> Plan:
    """Measure every unit and predict what the stages of a cut cost.

    Raises:
        UserError: the model cannot be built or cut that way.
    """
    train_config = config.train_config()
    validate(train_config)
    if recipe_of(train_config).uncut:
        raise UserError(
            f"--objective {config.objective} has no stages to plan: choose greedy or sgr"
        )
    link = LinkSpeed(
        bytes_per_s=parse_rate("--bandwidth", config.bandwidth),
        latency_s=parse_time("--latency", config.latency),
    )
    if config.plot is not None:
        check_plot("--plot", config.plot)
    set_up_host(config.threads)
    blueprint = blueprint_of(train_config, info=planned_input(config))
    check_stages(blueprint.recipe, blueprint.stages)
    given_replicas(config, blueprint.stages)  # refuses invalid replicas before anything is measured
    note = _not_timed(blueprint.recipe, config.objective) or _cut_by(config)
    seen: Seen = {}
    try:
        model = _costs(blueprint, train_config, config, seen)
    except NotTwiceDifferentiable as error:
        note = f"planned for --objective greedy: {error}"
        train_config = replace(train_config, objective="greedy")
        blueprint = replace(blueprint, recipe=recipe_of(train_config))
        model = _costs(blueprint, train_config, config, seen)
    speeds = [1.0] * blueprint.stages
    if config.device_speeds is not None:
        speeds = parse_speeds("--device-speeds", config.device_speeds, blueprint.stages)
    replicated = replace(train_config, replicas=config.replicas)
    uncut = blueprint
    blueprint = partitioned(uncut, cut_of(train_config), replicated, lambda: model)

    def at(budget: float) -> Plan:
        other = replace(train_config, head_budget=budget)
        there = replace(uncut, recipe=recipe_of(other))
        costs = _costs(there, other, config, seen)
        there = partitioned(there, cut_of(other), replicated, lambda: costs)
        return predict(there, _as_cut(there, costs, other, config, seen), config, speeds)

    budgets = []
    for larger, budget in neighbours(blueprint):
        found = at(budget)
        budgets.append(
            Budget(
                budget=budget,
                larger=larger,
                cut=found.cut,
                heads=[stage.head for stage in found.stages if stage.head is not None],
                seconds=found.stages[found.bottleneck - 1].every_seconds,
            )
        )
    simulates = config.ranks is not None or config.plot is not None
    as_cut = _as_cut(blueprint, model, train_config, config, seen)
    if simulates and as_cut is not model:
        note = f"simulated without what --objective {config.objective} puts into units"
    planned = replace(predict(blueprint, as_cut, config, speeds), note=note, budgets=tuple(budgets))
    if not simulates:
        return planned
    rows = max(1, config.batch_size // config.micro_batches)
    micro = _costs(blueprint, replace(train_config, batch_size=rows), config, {})
    scenario = Scenario(
        model=model,
        micro=micro,
        ranks=config.ranks or blueprint.stages,
        link=link,
        micro_batches=config.micro_batches,
    )
    return replace(planned, simulation=_simulation(scenario, blueprint, config, speeds))


def _simulation(
    scenario: Scenario, blueprint: Blueprint, config: PlanConfig, speeds: list[float]
) -> Simulation:
    if scenario.ranks == blueprint.stages:  # the plan's own devices, and a cut that was asked for
        cuts = tuple(blueprint.cuts) if config.cut is not None else None
        scenario = replace(scenario, cuts=cuts, speeds=tuple(speeds))
    if config.plot is not None:
        title = f"{config.model}, {config.bandwidth} and {config.latency} between neighbours"
        plot_sweeps(sweeps(scenario), config.plot, title)
    return Simulation(
        ranks=scenario.ranks,
        equal_parts=scenario.equal_parts,
        bandwidth=config.bandwidth,
        latency=config.latency,
        micro_batches=config.micro_batches,
        outcomes=forecast(scenario),
        plot=config.plot,
    )


def _costs(blueprint: Blueprint, train: TrainConfig, config: PlanConfig, seen: Seen) -> CostModel:
    return cost_model(blueprint, train, _meter(config), batch_size=train.batch_size, seen=seen)


def _not_timed(recipe: Recipe, name: str) -> str | None:
    """Say that the objective's own work is not in the times; None if it is."""
    if type(recipe.objective) in TIMED:
        return None
    return f"units and heads are timed as for --objective greedy; what {name} does besides is not counted"


def _cut_by(config: PlanConfig) -> str | None:
    """Say that a run chose the cut, and not the times that are shown; None if it did not."""
    chosen = config.cut is None and config.balance not in PARTITIONERS
    if not (chosen and is_run(config.balance)):
        return None
    return f"cut by what stages took in {config.balance}; the times are of units measured here"


def _as_cut(
    blueprint: Blueprint, model: CostModel, train: TrainConfig, config: PlanConfig, seen: Seen
) -> CostModel:
    """Return the costs of the network that is trained; those given, unless the objective adds to it."""
    if blueprint.network is blueprint.chain:
        return model
    size = train.batch_size
    return cost_model(blueprint, train, _meter(config), batch_size=size, seen=seen, as_cut=True)


def _meter(config: PlanConfig) -> Meter:
    if config.device != "meta":
        device = World.alone().device(config.device)
        return Stopwatch(device=device, repeats=config.repeats)
    return Roofline(
        flops=parse_flops("--device-flops", config.device_flops),
        memory_bytes_per_s=parse_rate("--device-bandwidth", config.device_bandwidth),
    )


def planned_input(config: PlanConfig) -> DataInfo:
    """Return the model's input: as the options say, or what the model was designed for.

    Raises:
        UserError: neither ``--data`` nor ``--input-shape`` is given for a user's model.
    """
    if config.data is not None:
        return data_info(config.data)
    info = MEANT_FOR.get(config.model)
    if info is None and (config.input_shape is None or config.classes is None):
        raise UserError(
            f"--model {config.model}: say what it takes, with --data, or with --input-shape (such as "
            f"3,32,32) and --classes"
        )
    info = info or IMAGENET
    shape = info.sample_shape
    if config.input_shape is not None:
        try:
            shape = tuple(int(word) for word in config.input_shape.split(","))
        except ValueError:
            shape = ()
        if not shape or min(shape) < 1 or prod(shape) > MOST_NUMBERS:
            raise UserError(
                f"--input-shape {config.input_shape}: give positive numbers such as 3,32,32, which "
                f"multiplied are at most {MOST_NUMBERS}"
            )
    return DataInfo(
        name=IMAGINED,
        sample_shape=shape,
        classes=config.classes or info.classes,
        target_shape=shape if info.tokens else (),
        sample_dtype=info.sample_dtype,
    )


def predict(
    blueprint: Blueprint, model: CostModel, config: PlanConfig, speeds: list[float]
) -> Plan:
    """Predict the figures of a cut from measured costs.

    Raises:
        UserError: the replicas do not fit this cut or these nodes.
    """
    models = model.of_stages(blueprint.stages)
    seconds = model.seconds_of(blueprint.cuts)
    alone = [time / speed for time, speed in zip(seconds, speeds, strict=True)]
    replicas = planned_replicas(config, alone)
    contracts = Contracts(config.train_config(), blueprint, batch_size=config.batch_size)
    stages = []
    for k, cut in enumerate(blueprint.cuts):
        own = models[k].profile
        parts = [*own.units[cut.start : cut.stop], own.heads[cut.stop - 1]]
        last = k + 1 == blueprint.stages
        relayed = sum(kind.bytes_per_row for kind in blueprint.relayed(k + 1)) * config.batch_size
        stages.append(
            StagePlan(
                stage=k + 1,
                units=blueprint.units(k + 1),
                parameters=sum(part.parameters for part in parts),
                parameter_bytes=sum(part.parameter_bytes for part in parts),
                seconds=alone[k],
                replicas=replicas[k],
                every_seconds=alone[k] / replicas[k],
                head=blueprint.head_name(k + 1),
                head_fraction=0.0 if last else min(1.0, parts[-1].train_s / seconds[k]),
                memory_bytes=models[k].memory_bytes(cut.start, cut.stop),
                sent_bytes=0 if last else model.edge_bytes(cut.stop) + relayed,
                backward_bytes=contracts.bytes_back(k + 1),
            )
        )
    slowest = max(stages, key=lambda stage: stage.every_seconds)
    return Plan(
        model=config.model,
        batch_size=config.batch_size,
        device=model.profile.device,
        cut=to_text(blueprint.chain, blueprint.cuts),
        crossing=(
            *blueprint.describe_crossing(),
            *([] if contracts.way_back is None else [contracts.describe_back()]),
        ),
        stages=stages,
        bottleneck=slowest.stage,
        samples_per_second=config.batch_size / slowest.every_seconds,
        replication=replicate(
            config,
            replicas,
            edge_bytes=[a.sent_bytes + b.backward_bytes for a, b in pairwise(stages)],
            parameter_bytes=[stage.parameter_bytes for stage in stages],
        ),
        alternatives=alternatives(blueprint, model, config.micro_batches, speeds),
    )
