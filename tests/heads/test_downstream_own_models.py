"""The head shaped like what follows, with a user's own models; and a user's head that is told the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelocal import HEADS
from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of
from pipelocal.data import DataInfo
from pipelocal.heads.build import build_head
from pipelocal.heads.downstream import Downstream
from pipelocal.models import Shape
from pipelocal.objective.probe import check_double_backward
from pipelocal.partition.analysed import Roofline
from pipelocal.run.costs import cost_model
from pipelocal.system.tensor_kind import TensorKind
from tests.heads.test_downstream import CPU, gradients_of
from tests.models import of_several_tensors

VECTORS = DataInfo(name="vectors", sample_shape=(6,), classes=3)


class Functional(nn.Module):
    """Works on its input in place, which no attribute says."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.relu_(x))  # type: ignore[no-any-return]


def ready_made(shape: Shape, classes: int) -> nn.Sequential:
    """A user's model, whose units are copies of these modules."""
    asks = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 6))
    return nn.Sequential(nn.Linear(6, 6), asks, nn.Linear(6, classes))


def in_place(shape: Shape, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 6), Functional(), nn.Flatten(), nn.Linear(6, classes))


def behind_a_view(shape: Shape, classes: int) -> nn.Sequential:
    """The unit behind the cut passes its input on; the classifier changes it."""
    classifier = nn.Sequential(Functional(), nn.Linear(6, classes))
    return nn.Sequential(nn.Linear(6, 6), nn.Flatten(), nn.Linear(6, 6), classifier)


@pytest.mark.parametrize("objective", ["greedy", "sgr"])
@pytest.mark.parametrize("model", [ready_made, in_place, behind_a_view])
def test_units_that_work_in_place_spare_the_stage_s_output(
    model: Callable[..., nn.Sequential], objective: str
) -> None:
    config = TrainConfig(
        model=f"{__name__}:{model.__name__}", head="downstream", cut="1", objective=objective
    )
    blueprint = blueprint_of(config, info=VECTORS)
    stage = blueprint.build_stage(1, device=CPU, total_steps=1)
    x, target = torch.randn(4, 6), torch.randint(3, (4,))
    assert all(gradient is not None for gradient in gradients_of(stage, x, target))
    check_double_backward(stage.body, stage.head, (6,), stage=1)


def test_it_shares_no_parameter_with_a_ready_made_model() -> None:
    config = TrainConfig(model=f"{__name__}:ready_made", head="downstream", stages=2)
    blueprint = blueprint_of(config, info=VECTORS)
    one, two = (blueprint.build_stage(number, device=CPU, total_steps=1) for number in (1, 2))
    with torch.no_grad():
        for parameter in one.head.parameters():
            parameter.fill_(7.0)
    again = blueprint.build_stage(1, device=CPU, total_steps=1)
    for module in (two.body, two.head, again.head):
        assert not any((parameter == 7).any() for parameter in module.parameters())


@pytest.mark.parametrize("model", ["ready_made", "in_place"])
def test_a_ready_made_model_is_costed_on_meta(model: str) -> None:
    """Its units are copies of modules on the CPU; one of the other works on its input in place."""
    config = TrainConfig(
        model=f"{__name__}:{model}", head="downstream", stages=1, objective="greedy"
    )
    blueprint = blueprint_of(config, info=VECTORS)
    roofline = Roofline(flops=1e12, memory_bytes_per_s=1e12)
    heads = cost_model(blueprint, config, roofline, batch_size=config.batch_size).profile.heads
    classifier = 4 * (6 * 3 + 3)
    assert heads[0].parameter_bytes == 4 * 42 + classifier
    assert heads[-1].parameter_bytes == classifier


def test_a_user_s_head_of_two_arguments_is_not_told_what_follows() -> None:
    HEADS.register("two")(lambda shape, classes: nn.Linear(shape[0], classes))
    try:
        assert isinstance(build_head(HEADS.get("two"), (6,), classes=3, target_shape=()), nn.Linear)
    finally:
        del HEADS._entries["two"]


def test_a_user_s_head_may_ask_for_what_follows() -> None:
    class Third(nn.Linear):
        def __init__(self, shape: Shape, classes: int, *, downstream: Downstream) -> None:
            super().__init__(shape[0], classes)
            self.told = downstream

    HEADS.register("third")(Third)
    try:
        config = TrainConfig(model=f"{__name__}:in_place", head="third", cut="1")
        blueprint = blueprint_of(config, info=VECTORS)
        head = blueprint.build_stage(1, device=CPU, total_steps=1).head
    finally:
        del HEADS._entries["third"]
    assert isinstance(head, Third)
    assert head.told == Downstream(
        units=blueprint.chain.units[1:],
        shapes=((6,), (6,)),
        classifier=blueprint.chain.classifier,
        crossing=blueprint.chain.crossing,
        start=1,
        stages=2,
        seed=0,
        multiply_adds=blueprint.chain.multiply_adds,
    )


def test_a_head_takes_the_mask_that_the_units_take() -> None:
    """One layer and the classifier, with what crosses the cut beside the main tensor."""
    config = TrainConfig(
        model=f"{of_several_tensors.__file__}:encoder", head="downstream", cut="layers.1"
    )
    tokens = TensorKind(name="attention_mask", shape=(9,), dtype=torch.int64)
    info = DataInfo(
        name="own", sample_shape=(9,), classes=5, sample_dtype=torch.int64, beside=(tokens,)
    )
    head = blueprint_of(config, info=info).build_stage(1, device=CPU, total_steps=1).head
    assert [name for name, _ in head.named_children()] == ["layers/1", "out"]
    mask = (torch.arange(9) < torch.tensor([[9], [4]])).long()
    features = torch.randn(2, 9, 8)
    assert head.takes_beside
    one, other = head.eval()((features, mask)), head((features.clone(), mask.clone()))
    assert one.shape == (2, 5)
    assert torch.equal(one, other)


def test_a_head_without_parameters_trains_the_body_alone() -> None:
    """A user's own: weights that are buffers are kept with the stage, and stay as they are."""

    class Fixed(nn.Module):
        def __init__(self, shape: Shape, classes: int) -> None:
            super().__init__()
            self.register_buffer("weight", torch.randn(classes, *shape))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.get_buffer("weight"))

    blueprint = blueprint_of(TrainConfig(model=f"{__name__}:in_place", cut="1"), info=VECTORS)
    blueprint = replace(blueprint, recipe=replace(blueprint.recipe, head=Fixed))
    stage = blueprint.build_stage(1, device=CPU, total_steps=1)
    before = {name: value.clone() for name, value in stage.head.state_dict().items()}
    weight = next(stage.body.parameters()).clone()
    stage.step(torch.randn(4, 6), torch.randint(3, (4,)))
    assert list(before) == ["weight"]
    assert torch.equal(stage.head.state_dict()["weight"], before["weight"])
    assert not torch.equal(next(stage.body.parameters()), weight)
