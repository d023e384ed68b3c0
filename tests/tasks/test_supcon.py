"""Supervised contrast as the loss of auxiliary heads."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipelocal import Pipeline, load, load_with_heads, tasks
from pipelocal.config import TrainConfig
from pipelocal.config.checks import validate
from pipelocal.config.resolve import blueprint_of
from pipelocal.errors import UserError
from pipelocal.heads.contrast import ContrastHead
from pipelocal.tasks import SupCon
from pipelocal.tasks.supcon import supervised_contrast
from tests.launching import run_ranks
from tests.test_transparency import assert_same_bits, train_alone

LABELS = torch.tensor([0, 1, 0, 2, 1, 0])
"""The only row of class 2 has no other of its class."""


def by_loops(z: Tensor, labels: list[int], temperature: float) -> Tensor:
    """The second formula of the paper, L_out, with the sum over i as a mean over all rows."""
    total, rows = z.new_zeros(()), range(len(z))
    for i in rows:
        positives = [p for p in rows if p != i and labels[p] == labels[i]]
        below = sum(((z[i] @ z[a]) / temperature).exp() for a in rows if a != i)
        for p in positives:
            total = total - (((z[i] @ z[p]) / temperature).exp() / below).log() / len(positives)
    return total / len(z)


def rows(count: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 5, dtype=torch.float64, generator=generator)


def test_it_is_the_papers_formula() -> None:
    """Value and gradient; a row alone in its class adds nothing, and counts in the mean."""
    made = []
    forms: list[Callable[[Tensor], Tensor]] = [
        lambda z: supervised_contrast(z, LABELS, temperature=0.07),
        lambda z: by_loops(z, LABELS.tolist(), 0.07),
    ]
    for loss in forms:
        leaf = rows().requires_grad_()
        value = loss(nn.functional.normalize(leaf, dim=-1))
        made.append((value, *torch.autograd.grad(value, leaf)))
    for one, two in zip(*made, strict=True):
        assert torch.allclose(one, two, rtol=1e-10, atol=1e-13)


def test_equal_projections_of_one_class() -> None:
    z = torch.ones(4, 2, dtype=torch.float64) / math.sqrt(2)
    loss = supervised_contrast(z, torch.zeros(4, dtype=torch.int64), temperature=0.5)
    assert torch.allclose(loss, torch.tensor(math.log(3), dtype=torch.float64))


@pytest.mark.parametrize("labels", [[0], [0, 1, 2]])
def test_without_any_pair_it_is_zero(labels: list[int]) -> None:
    leaf = rows(len(labels)).requires_grad_()
    loss = supervised_contrast(leaf, torch.tensor(labels), temperature=0.1)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss == 0
    assert leaf.grad is not None
    assert not leaf.grad.any()


def test_rows_that_do_not_count_are_not_there() -> None:
    z, counts = nn.functional.normalize(rows(), dim=-1), torch.tensor([1, 1, 1, 0, 1, 1]).bool()
    some = supervised_contrast(z, LABELS, temperature=0.1, counts=counts)
    assert torch.allclose(some, supervised_contrast(z[counts], LABELS[counts], temperature=0.1))


def test_loss_of_a_head_and_what_each_part_trains() -> None:
    """The contrast trains projection and body, the cross entropy the probe alone."""
    task = SupCon(classes=3, dimensions=4, temperature=0.2)
    body = nn.Linear(5, 6).double()
    projection, probe = nn.Linear(6, 4).double(), nn.Linear(6, 3).double()
    head = ContrastHead(projection, probe)
    loss = task.loss(head(body(rows())), LABELS).mean
    found = torch.autograd.grad(loss, [*body.parameters(), *head.parameters()])
    feature = body(rows())
    z = nn.functional.normalize(projection(feature), dim=-1)
    contrast = by_loops(z, LABELS.tolist(), 0.2)
    apart = nn.functional.cross_entropy(probe(feature.detach()), LABELS)
    expected = (
        *torch.autograd.grad(contrast, [*body.parameters(), *projection.parameters()]),
        *torch.autograd.grad(apart, list(probe.parameters())),
    )
    for one, two in zip(found, expected, strict=True):
        assert torch.allclose(one, two, rtol=1e-10, atol=1e-13)
    assert torch.equal(head.eval()(feature), probe(feature))
    assert torch.equal(task.loss(head(feature), LABELS).mean, apart), "of a stage that is frozen"


@pytest.mark.slow
def test_over_ranks_it_equals_one_process(tmp_path: Path) -> None:
    """With reconciliation, and with heads that answer early by their probes."""
    arguments = ["--head-loss", "supcon", "--max-steps", "4", "--objective", "sgr"]
    alone = train_alone(arguments, tmp_path / "alone")
    out = tmp_path / "ranks"
    run_ranks(tmp_path / "log", ["train", *arguments, "--out", str(out)], 2)
    assert_same_bits(alone, out)
    summary = json.loads((out / "summary.json").read_text())
    assert [stage["head"] for stage in summary["stages"]] == ["conv", "conv", "conv", None]
    x = torch.randn(3, 1, 8, 8)
    assert [made.shape for made in load_with_heads(str(out)).all_logits(x)] == [(3, 10)] * 4
    assert load(str(out), stage=2)(x).shape == (3, 10)


def test_from_python() -> None:
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    pipe = Pipeline(net, stages=2, head="mlp", head_task=tasks.SupCon(temperature=0.1))
    assert pipe.step(rows().float(), LABELS)["loss"] > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"head": "twin"}, "wants a projection"),
        ({"model": "gpt", "data": "text", "task": "next-token"}, "is for --task classification"),
        ({"head_smoothing": 0.1}, "label_smoothing is of the cross entropy"),
        ({"bp_free": True, "objective": "greedy"}, "--head-loss"),
    ],
)
def test_where_it_cannot_be(options: dict[str, Any], words: str) -> None:
    config = TrainConfig(**{"head_loss": "supcon", **options})

    def prepare() -> None:
        validate(config)
        blueprint_of(config).build_parts(1, device=torch.device("cpu"))

    with pytest.raises(UserError, match=words):
        prepare()


def test_mixed_labels_are_refused() -> None:
    config = TrainConfig(head_loss="supcon", mixup=0.2)
    with pytest.raises(UserError, match="--mixup"):
        blueprint_of(config)
