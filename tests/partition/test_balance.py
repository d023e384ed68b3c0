"""Measured costs, the stages that they make, and the cut that balances them."""

import time
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of
from pipelocal.data import DataInfo
from pipelocal.errors import UserError
from pipelocal.models import Chain, Unit
from pipelocal.partition import Cut
from pipelocal.partition.cost_model import CostModel, balanced
from pipelocal.partition.measured import Stopwatch
from pipelocal.partition.profile import Cost, Profile, profile_chain
from pipelocal.run.costs import cost_model
from pipelocal.stage.memory import resident_bytes
from pipelocal.system.tensor_kind import TensorKind
from tests.models.several_tensors import Encoder

CPU = torch.device("cpu")
NOTHING = Cost(
    forward_s=0,
    backward_s=0,
    input_gradient_s=0,
    reconcile_s=0,
    update_s=0,
    saved_bytes=0,
    reconcile_bytes=0,
    parameters=1,
    parameter_bytes=0,
    buffer_bytes=0,
    optimizer_bytes=0,
    output_bytes=0,
)


def model_of(units: list[Cost], heads: list[Cost] | None = None, *, reconcile: bool) -> CostModel:
    profile = Profile(
        batch_size=1,
        device="cpu",
        units=units,
        heads=heads or [NOTHING] * len(units),
        input_bytes=7,
    )
    return CostModel(
        profile=profile,
        x_bytes=[unit.output_bytes for unit in units],
        delta_bytes=[unit.output_bytes for unit in units],
        reconcile_share=float(reconcile),
        passes=0.0,
        window=2,
    )


def test_seconds_of_a_stage() -> None:
    unit = replace(
        NOTHING, forward_s=1, backward_s=2, input_gradient_s=0.5, reconcile_s=10, update_s=0.25
    )
    head = replace(NOTHING, forward_s=100, backward_s=200, reconcile_s=1000)
    greedy = model_of([unit] * 3, [head] * 3, reconcile=False)
    sgr = model_of([unit] * 3, [head] * 3, reconcile=True)
    # Its first unit hands no gradient back, unless the stage reconciles.
    assert greedy.seconds(1, 3) == 2 * 3.25 - 0.5 + 300
    assert sgr.seconds(1, 3) == 2 * 13.25 + 1300
    assert sgr.seconds(0, 2) == greedy.seconds(0, 2) == 2 * 3.25 - 0.5 + 300


def test_memory_of_a_stage() -> None:
    unit = replace(
        NOTHING,
        saved_bytes=1000,
        reconcile_bytes=500,
        parameters=1,
        parameter_bytes=10,
        buffer_bytes=1,
        optimizer_bytes=10,
        output_bytes=3,
    )
    sgr = model_of([unit] * 4, reconcile=True)
    each = 2 * 10 + 1 + 10 + 1000
    assert sgr.edge_bytes(2) == 6
    assert sgr.memory_bytes(0, 2) == 2 * each + 7 + 2 * 6
    assert sgr.memory_bytes(1, 3) == 2 * (each + 500) + 2 * 6 + 2 * 6
    assert sgr.memory_bytes(3, 4) == each + 500 + 2 * 6


def test_a_memory_limit_moves_the_cut_or_is_refused() -> None:
    slow_and_small = replace(NOTHING, forward_s=3, saved_bytes=1)
    quick_and_large = replace(NOTHING, forward_s=1, saved_bytes=100)
    model = model_of([slow_and_small, slow_and_small, *[quick_and_large] * 4], reconcile=False)
    free = balanced(model, 2, balance="time")
    assert free == [Cut(start=0, stop=2), Cut(start=2, stop=6)]
    assert balanced(model, 2, balance="time", memory_limit=350) == [
        Cut(start=0, stop=3),
        Cut(start=3, stop=6),
    ]
    with pytest.raises(
        UserError, match=r"limit 150 B: .* needs 209 B for its largest stage: raise the limit"
    ):
        balanced(model, 2, balance="time", memory_limit=150)


def test_what_is_trained_beside_a_head_counts_where_a_stage_has_it() -> None:
    """As InfoPro's decoders, which the last auxiliary stage has not by default, and the last stage never."""
    config = TrainConfig(model="resnet8", objective="infopro", head="linear", stages=4)
    info = DataInfo(name="images", sample_shape=(3, 16, 16), classes=5)
    blueprint = blueprint_of(config, info=info)
    model = cost_model(blueprint, config, Stopwatch(device=CPU, repeats=1), batch_size=2)
    decoder = 4 * sum((16 * 12 * 9 + 12, 2 * 12, 12 * 3 * 9 + 3))  # of the 16 channels of the stem
    first, second, third, last = model.of_stages(4)
    heads, fuller = model.profile.heads, first.profile.heads
    assert fuller[0].parameter_bytes == heads[0].parameter_bytes + decoder
    assert fuller[0].train_s > heads[0].train_s
    assert fuller[-1] == heads[-1]
    assert first.memory_bytes(0, 1) > model.memory_bytes(0, 1)
    assert second.profile.heads == fuller
    assert third is last is model
    cuts = balanced(model, 4, balance="memory")
    assert [cut.stop for cut in cuts] == [1, 2, 3, 4]


class Clock(Stopwatch):
    """Time passes only where a module says so."""

    now = 0.0

    def _now(self) -> float:
        return Clock.now


class Heavy(nn.Module):
    """Takes so many seconds of :class:`Clock`."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        Clock.now += self.seconds
        out: Tensor = self.linear(x)
        return out


def test_a_stopwatch_takes_the_time() -> None:
    class Sleep(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            time.sleep(0.02)
            return x * 2

    x = torch.zeros(1, requires_grad=True)
    watch = Stopwatch(device=CPU, repeats=1)
    forward, backward = watch.seconds_of_pass(Sleep(), x, None, reconcile=False)
    assert forward >= 0.02
    assert backward > 0


def test_one_heavy_unit_gets_a_stage_of_its_own() -> None:
    """Equal numbers of units would put three light ones beside it."""
    seconds = [0.001, 0.001, 0.02, 0.001, 0.001, 0.001]
    units = [Unit(name=f"u{i}", build=partial(Heavy, seconds)) for i, seconds in enumerate(seconds)]
    chain = Chain(
        units, classifier=Unit(name="c", build=lambda: nn.Linear(8, 3)), input_shape=(8,), classes=3
    )
    profile = profile_chain(
        chain.tried()[0],
        lambda _stop: nn.Linear(8, 3),
        Clock(device=CPU),
        batch_size=4,
        classes=3,
        target=TensorKind(name="target", shape=(), dtype=torch.int64),
        loss=F.cross_entropy,
        exact=False,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
    assert [cost.forward_s for cost in profile.units] == pytest.approx(seconds)
    costs = CostModel(
        profile=profile,
        x_bytes=[0] * 6,
        delta_bytes=[0] * 6,
        reconcile_share=0.0,
        passes=0.0,
        window=2,
    )
    cuts = balanced(costs, 3, balance="time")
    assert Cut(start=2, stop=3) in cuts


@pytest.mark.parametrize("objective", ["greedy", "sgr"])
def test_measured_bytes_are_a_real_stages(objective: str) -> None:
    """What the profile counts for a stage is what the stage itself has after a step."""
    config = TrainConfig(model="resnet20", objective=objective, batch_size=8)
    blueprint = blueprint_of(config)
    model = cost_model(blueprint, config, Stopwatch(device=CPU, repeats=1), batch_size=8)
    cut = blueprint.cuts[1]
    stage = blueprint.build_stage(2, device=CPU, total_steps=10)
    x = torch.randn(8, *blueprint.output_shape(1))
    delta = torch.randn_like(x) if objective == "sgr" else None
    stage.step(x, torch.randint(10, (8,)), delta)
    parts = [*model.profile.units[cut.start : cut.stop], model.profile.heads[cut.stop - 1]]
    predicted = sum(2 * p.parameter_bytes + p.buffer_bytes + p.optimizer_bytes for p in parts)
    assert predicted == resident_bytes(stage)
    # By default delta travels with every eighth batch; a label and an id of 8 bytes with each sample.
    x_bytes = 8 * 32 * 4 * 4 * 4
    assert model.edge_bytes(cut.stop) == (1.125 if objective == "sgr" else 1) * x_bytes + 8 * 16


def test_units_of_several_tensors_are_profiled() -> None:
    """A mask lies beside the main tensor in every unit, and is not what the unit makes."""
    ids = torch.zeros(2, 9, dtype=torch.int64)
    chain, _ = Chain.from_module(
        Encoder(), units=Encoder.UNITS, inputs={"ids": ids, "attention_mask": ids}
    ).tried()
    profile = profile_chain(
        chain,
        lambda _stop: nn.Sequential(nn.Flatten(), nn.Linear(72, 5)),
        Clock(device=CPU),
        batch_size=2,
        classes=5,
        target=TensorKind(name="target", shape=(), dtype=torch.int64),
        loss=F.cross_entropy,
        exact=False,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
    assert [cost.output_bytes for cost in profile.units] == [2 * 9 * 8 * 4] * 4
    assert profile.input_bytes == 2 * 2 * 9 * 8


@pytest.mark.parametrize("balance", ["time", "memory"])
def test_a_stem_is_not_left_alone(balance: str) -> None:
    """A light first unit shares its stage though that is dearer, unless there is no other way."""
    units = [replace(NOTHING, forward_s=n, saved_bytes=1000 * n) for n in (1, 4, 3, 1)]
    model = model_of(units, reconcile=False)
    light = replace(model, light_stem=True)

    def stops(model: CostModel, stages: int, memory_limit: int | None = None) -> list[int]:
        cuts = balanced(model, stages, balance=balance, memory_limit=memory_limit)
        return [cut.stop for cut in cuts]

    assert stops(model, 3) == [1, 2, 4]
    assert stops(light, 3) == [2, 3, 4]
    assert stops(light, 4) == [1, 2, 3, 4]
    assert stops(light, 3, memory_limit=4500) == [1, 2, 4]


def test_a_stem_is_known_by_its_multiply_adds() -> None:
    """A ResNet's first convolution is a tenth of a block; the first layer of an mlp is its heaviest."""
    info = DataInfo(name="images", sample_shape=(3, 16, 16), classes=10)
    for model, light in (("resnet8", True), ("mlp", False)):
        config = TrainConfig(model=model, objective="greedy")
        costs = cost_model(blueprint_of(config, info=info), config, Clock(device=CPU), batch_size=2)
        assert costs.light_stem == light
