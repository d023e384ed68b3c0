"""A user's unit may be impure: whatever is run beside its one forward pass a batch must not tell."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pipelocal
from pipelocal.config import TrainConfig
from pipelocal.config.training import train
from pipelocal.errors import UserError
from pipelocal.objective import Greedy
from pipelocal.ranks.world import World
from pipelocal.seeding import seeded
from pipelocal.stage.options import ComputeOptions
from pipelocal.stage.recompute import RecomputedBody
from pipelocal.stage.stage import Stage
from tests.bugs import impure_models
from tests.launching import run_ranks
from tests.objective.stages import make_stage
from tests.test_transparency import assert_same_bits

MODELS = impure_models.__name__


def trained(out: Path, model: str, **options: Any) -> Path:
    """The folder of a short run in one process."""
    short = {"stages": 3, "max_steps": 6, "lr": 0.05, "evaluate_every": 100}
    given: dict[str, Any] = {"objective": "sgr"} | short | options
    config = TrainConfig(model=f"{MODELS}:{model}", **given, out=str(out), plain=True)
    train(config, World.alone(), stream=io.StringIO())
    return out


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "bp"},
        {"objective": "greedy", "checkpoint_activations": 1},
        {"reconcile_fraction": 1.0, "checkpoint_activations": 2, "stages": 2},
        {"reconcile": "exact"},
        {"head": "downstream", "measure_bp_gap": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("model", ["doubles_in_place", "looks_at_values_in_place"])
def test_a_unit_that_begins_in_place_changed_its_own_input(
    tmp_path: Path, model: str, options: dict[str, Any]
) -> None:
    """Only what has an attribute ``inplace`` was switched off. What is computed twice, such as a group of
    ``--checkpoint-activations`` or the pass that counted its bytes, began with an input that was changed.
    """
    expected = trained(tmp_path / "copies", "doubles", **options)
    assert_same_bits(expected, trained(tmp_path / "in-place", model, **options))


class _SometimesInPlace(nn.Module):
    """Not in place on two rows, on which units are tried."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2) if len(x) > 2 else x * 2


@pytest.mark.parametrize("units", [None, 1])
def test_what_no_trial_shows_is_refused_at_the_batch(units: int | None) -> None:
    body = nn.Sequential(_SometimesInPlace(), nn.Linear(4, 4))
    head = nn.Linear(4, 3)
    stage = Stage(
        number=1,
        body=body,
        head=head,
        objective=Greedy(),
        optimizer=torch.optim.SGD(body.parameters(), lr=0.1),
        compute=ComputeOptions(checkpoint_activations=units),
    )
    with pytest.raises(UserError, match=r"units '0'.*the input was changed in place"):
        stage.forward(torch.ones(5, 4))


@pytest.mark.parametrize("model", ["draws_python", "draws_numpy"])
@pytest.mark.parametrize("options", [{}, {"objective": "greedy"}], ids=str)
def test_python_s_and_numpy_s_generators_were_not_seeded(
    tmp_path: Path, model: str, options: dict[str, Any]
) -> None:
    """Only torch's were: other bits each time, and recomputation was of something else."""
    one = trained(tmp_path / "one", model, **options)
    assert_same_bits(one, trained(tmp_path / "two", model, **options))
    again = trained(tmp_path / "again", model, checkpoint_activations=1, **options)
    assert_same_bits(one, again)


def test_ranks_draw_what_one_process_draws(tmp_path: Path) -> None:
    one = trained(tmp_path / "one", "draws_python", objective="greedy")
    arguments = ["train", "--model", f"{MODELS}:draws_python", "--objective", "greedy"]
    arguments += ["--stages", "3", "--max-steps", "6", "--lr", "0.05", "--evaluate-every", "100"]
    run_ranks(tmp_path / "log", [*arguments, "--out", str(tmp_path / "ranks")], 2)
    assert_same_bits(one, tmp_path / "ranks")


def test_first_weights_that_numpy_draws_are_the_same_on_every_rank(tmp_path: Path) -> None:
    one = trained(tmp_path / "one", "begins_by_numpy")
    assert_same_bits(one, trained(tmp_path / "two", "begins_by_numpy"))


@pytest.mark.parametrize("model", ["warms", "spectral", "cumulative", "caches"])
def test_what_is_computed_again_began_with_other_buffers(tmp_path: Path, model: str) -> None:
    """Those that the first pass had left; so what depends on a buffer became something else."""
    one = trained(tmp_path / "one", model)
    assert_same_bits(one, trained(tmp_path / "two", model, checkpoint_activations=1))
    fraction = {"reconcile_fraction": 1.0, "reconcile_every": 1}
    one = trained(tmp_path / "three", model, **fraction)
    assert_same_bits(one, trained(tmp_path / "four", model, checkpoint_activations=1, **fraction))
    pipelocal.load(str(one))


def test_a_replay_makes_what_the_batch_made() -> None:
    """A count in a buffer decides what the unit makes."""
    body = nn.Sequential(*list(impure_models.warms(None, 10))[:3])
    x = torch.randn(4, 64)
    head = nn.Linear(16, 10)
    stage = Stage(
        number=1,
        body=body,
        head=head,
        objective=Greedy(),
        optimizer=torch.optim.SGD(body.parameters(), lr=0.1),
    )
    before = stage.replay_body(x)
    out = stage.forward(x.requires_grad_(), reconciled=True)
    assert torch.equal(out, before)
    assert torch.equal(out, stage.replay_body(x))
    recomputed = RecomputedBody(body, 1)
    assert not torch.equal(recomputed(x), out), "the count has moved"


@pytest.mark.parametrize(
    ("model", "options", "match"),
    [
        ("counts", {}, r"stage 3: .*'u2' counts .* 'calls', and --objective sgr runs it more than"),
        (
            "counts",
            {"objective": "greedy", "checkpoint_activations": 1},
            "--checkpoint-activations",
        ),
        (
            "counts",
            {"objective": "greedy", "snapshot_every": 2},
            "'calls', which a snapshot does not",
        ),
        ("remembers", {}, r"stage 3: unit 'u2' makes something else .*register_buffer"),
        (
            "remembers",
            {"objective": "greedy", "measure_bp_gap": 1},
            "--measure-bp-gap runs it more",
        ),
    ],
)
def test_what_keeps_something_beside_its_buffers_trained_on_it_unseen(
    tmp_path: Path, model: str, options: dict[str, Any], match: str
) -> None:
    """Further passes moved it, and no snapshot held it."""
    with pytest.raises(UserError, match=match):
        trained(tmp_path / "run", model, head="linear", **options)
    assert not (tmp_path / "run").exists()


def test_lazy_modules_were_refused_with_a_wrong_reason(tmp_path: Path) -> None:
    """The trial on the meta device found an input of 64 against a weight of 0."""
    with pytest.raises(UserError, match=r"unit 'u1' has a lazy module.*call the model once"):
        trained(tmp_path / "lazy", "lazy")
    trained(tmp_path / "ready", "lazy_made_ready")


def test_what_a_unit_drew_in_an_evaluation_depended_on_the_rank() -> None:
    """Generators were seeded for training alone; in one process all stages drew from one stream."""

    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    stage = make_stage(
        nn.Sequential(nn.Linear(4, 4), Noisy()), nn.Sequential(nn.Linear(4, 2), Noisy())
    )
    found = []
    for seed in (1, 2):
        with seeded(seed, "what another stage has drawn"):
            found.append(stage.evaluate(torch.ones(3, 4)))
    assert all(map(torch.equal, *found))
    output, _ = found[0]
    assert not torch.equal(output[0], output[1]), "rows draw for themselves"
