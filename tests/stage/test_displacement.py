"""``--transport-penalty``: gradients are those of the loss and the penalty as one formula."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from pipelocal import Pipeline
from pipelocal.config import TrainConfig
from pipelocal.config.checks import validate
from pipelocal.config.resolve import blueprint_of
from pipelocal.errors import UserError
from pipelocal.objective import Greedy, Objective
from pipelocal.objective.distances import squared
from pipelocal.seeding import seeded
from pipelocal.stage.displacement import Displacement, weight_at
from pipelocal.stage.options import ComputeOptions
from pipelocal.stage.stage import Stage
from tests.launching import run_ranks
from tests.objective.stages import gradients, sgr, train_step_to_gradients
from tests.test_transparency import assert_same_bits, train_alone

WEIGHT = 0.7
LABELS = torch.tensor([0, 2, 1, 1, 0])


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x))


def a_stage(objective: Objective, *, compute: ComputeOptions | None = None) -> Stage:
    """A stage in float64 of whose four units three keep the shape."""
    with seeded(0, "displacement"):
        body = nn.Sequential(Residual(6), nn.Linear(6, 4), Residual(4), nn.BatchNorm1d(4)).double()
        head = nn.Linear(4, 3).double()
    return Stage(
        number=2,
        body=body,
        head=head,
        objective=objective,
        optimizer=torch.optim.SGD([*body.parameters(), *head.parameters()], lr=0.1),
        compute=compute or ComputeOptions(),
        displacement=Displacement([body[0], body[2], body[3]], WEIGHT),
    )


def written_out(stage: Stage, x: Tensor, labels: Tensor = LABELS) -> Tensor:
    """Loss and penalty from the weights, as one formula."""
    body: Any = stage.body
    head: Any = stage.head
    first, second, third, norm = body
    moved = torch.tanh(x @ first.linear.weight.T + first.linear.bias)
    into = (x + moved) @ second.weight.T + second.bias
    moved_too = torch.tanh(into @ third.linear.weight.T + third.linear.bias)
    before = into + moved_too
    mean = before.mean(0)
    deviation = (((before - mean) ** 2).mean(0) + norm.eps) ** 0.5
    out = (before - mean) / deviation * norm.weight + norm.bias
    logits = out @ head.weight.T + head.bias
    loss = -torch.log_softmax(logits, 1)[range(len(x)), labels].mean()
    terms = [moved, moved_too, out - before]
    total: Tensor = loss + WEIGHT * sum((term**2).sum() / term.numel() for term in terms)
    return total


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    """An input, and an output gradient of the stage before."""
    with seeded(seed, "batch"):
        return torch.randn(5, 6).double(), torch.randn(5, 6).double() / 5


@pytest.mark.parametrize(
    ("form", "units"),
    [  # with --checkpoint-activations, exact is refused: it differentiates twice
        *product(("greedy", "first-order"), (None, 1, 2)),
        ("exact", None),
    ],
)
def test_gradients_are_those_of_the_joint_formula(
    form: Literal["greedy", "exact", "first-order"], units: int | None
) -> None:
    """With reconciliation, eta is the gradient of both terms."""
    x, delta = batch()
    objective = Greedy() if form == "greedy" else sgr(squared, 0.3, form=form)
    stage = a_stage(objective, compute=ComputeOptions(checkpoint_activations=units))
    plain = form == "greedy"
    found = train_step_to_gradients(stage, x, LABELS, None if plain else delta)
    sent = stage.output_gradient(LABELS) if plain else None

    leaf = x.clone().requires_grad_()
    loss = written_out(stage, leaf)
    if not plain:
        (eta,) = torch.autograd.grad(loss, leaf, create_graph=True)
        loss = loss + 0.3 * squared(eta * 5, delta * 5)
    parameters = [*stage.body.parameters(), *stage.head.parameters()]
    expected = torch.autograd.grad(loss, parameters)
    tolerance = 1e-4 if form == "first-order" else 1e-9
    for (name, value), wanted in zip(found.items(), expected, strict=True):
        assert torch.allclose(value, wanted, rtol=tolerance, atol=1e-3 * tolerance), name
    if sent is not None:
        assert sent.shape == (5, 4)


def test_batches_of_an_update_are_averaged() -> None:
    stage = a_stage(Greedy())
    stage._update._every = 2
    (one, _), (two, _) = batch(0), batch(1)
    stage.step(one, LABELS)
    stage.forward(two)
    stage.output_gradient(LABELS)
    stage.reconcile(None)
    found = {name: value / 2 for name, value in gradients(stage).items()}
    loss = (written_out(stage, one) + written_out(stage, two)) / 2
    expected = torch.autograd.grad(loss, [*stage.body.parameters(), *stage.head.parameters()])
    for (name, value), wanted in zip(found.items(), expected, strict=True):
        assert torch.allclose(value, wanted, rtol=1e-9, atol=1e-12), name


def test_the_sum_is_reported() -> None:
    stage = a_stage(Greedy())
    x, _ = batch()
    stage.forward(x)
    stage.output_gradient(LABELS)
    reported = stage.metrics(LABELS)
    total = written_out(stage, x)
    moved = reported.figures["transport"]
    assert torch.allclose(reported.loss + WEIGHT * moved, total, rtol=1e-12)
    assert stage.figure_names == ("transport",)


def test_half_as_much_in_the_second_half() -> None:
    assert [weight_at(1.0, k, 4) for k in (1, 2, 3, 4)] == [1.0, 1.0, 0.5, 0.5]
    assert [weight_at(1.0, k, 3) for k in (1, 2, 3)] == [1.0, 0.5, 0.5]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objective": "bp"}, "is for stages"),
        ({"bp_free": True, "objective": "greedy"}, "--bp-free"),
        ({"compile": "eager"}, "--compile"),
        (
            {"compile": "eager", "objective": "deep-supervision", "transport_penalty": 0.0},
            "looks into",
        ),
        ({"transport_penalty": -1.0}, "at least 0"),
    ],
)
def test_where_it_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        validate(TrainConfig(**{"transport_penalty": 1.0, **options}))


def test_a_model_whose_units_all_change_the_shape() -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 2))
    pipe = Pipeline(net, stages=2, transport_penalty=1.0, input_shape=(4,))
    with pytest.raises(UserError, match="keep the shape of their input, and the model has none"):
        pipe.step(torch.zeros(3, 4), torch.tensor([0, 1, 0]))


def test_which_units_keep_their_shape() -> None:
    blueprint = blueprint_of(TrainConfig(model="resnet8"))
    kept = [
        unit.name
        for place, unit in enumerate(blueprint.chain.units)
        if blueprint.keeps_shape(place)
    ]
    assert kept == ["block1"]


def test_over_ranks_it_equals_one_process(tmp_path: Path) -> None:
    """The same bits where activations are recomputed, parameters updated early, and on several ranks."""
    arguments = ["--model", "resnet8", "--stages", "3", "--max-steps", "3"]
    arguments += ["--objective", "infopro", "--transport-penalty", "1", "--batch-size", "16"]
    alone = train_alone(arguments, tmp_path / "alone")
    out = tmp_path / "ranks"
    further = ["--checkpoint-activations", "1", "--step-early", "--out", str(out)]
    run_ranks(tmp_path / "log", ["train", *arguments, *further], 3)
    assert_same_bits(alone, out)
