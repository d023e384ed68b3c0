"""A finished run as a module: the uncut model, the heads' ensemble, early answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pipelocal
from pipelocal.data import load_dataset
from pipelocal.data.batches import BatchStream
from pipelocal.models import Chain
from pipelocal.results.early_exit import HeadedNetwork
from tests.models.several_tensors import Encoder
from tests.test_transparency import train_alone


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = ["--model", "resnet8", "--head", "linear", "--stages", "4", "--epochs", "2"]
    return train_alone(options, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def test_set() -> tuple[Tensor, Tensor]:
    batches = list(
        BatchStream(load_dataset("digits", root=None, seed=0), batch_size=64, seed=0).test()
    )
    return torch.cat([b.x for b in batches]), torch.cat([b.target for b in batches])


def accuracy(label: Tensor, target: Tensor) -> float:
    return float((label == target).double().mean())


@torch.no_grad()
def test_the_uncut_model_is_as_accurate_as_the_run_said(
    run: Path, test_set: tuple[Tensor, Tensor]
) -> None:
    summary = json.loads((run / "summary.json").read_text())
    x, target = test_set
    model = pipelocal.load(str(run))
    assert accuracy(model(x).argmax(-1), target) == pytest.approx(summary["eval_accuracy"])
    headed = pipelocal.load_with_heads(str(run))
    torch.testing.assert_close(headed(x), model(x))
    assert model.state_dict().keys() == pipelocal.plain_state_dict(str(run)).keys()


@torch.no_grad()
def test_heads_and_ensemble(run: Path, test_set: tuple[Tensor, Tensor]) -> None:
    summary = json.loads((run / "summary.json").read_text())
    x, target = test_set
    network = pipelocal.load_with_heads(str(run))
    heads = [accuracy(logits.argmax(-1), target) for logits in network.all_logits(x)]
    assert heads == pytest.approx([stage["eval_accuracy"] for stage in summary["stages"]])
    ensemble = accuracy(network.ensemble(x).argmax(-1), target)
    assert ensemble == pytest.approx(summary["ensemble_accuracy"])


def test_a_confident_head_answers_early(run: Path, test_set: tuple[Tensor, Tensor]) -> None:
    x, target = test_set
    network = pipelocal.load_with_heads(str(run))
    last = network.predict(x, until=1.1)
    assert set(last.stage.tolist()) == {4}
    first = network.predict(x, until=0.0)
    assert set(first.stage.tolist()) == {1}
    some = network.predict(x, until=0.9)
    assert len(set(some.stage.tolist())) > 1
    early = some.stage < 4
    assert bool((some.confidence[early] >= 0.9).all())
    assert accuracy(some.label, target) > accuracy(first.label, target)
    # Each sample by itself says the same as among others.
    for i in range(0, len(x), 37):
        alone = network.predict(x[i : i + 1], until=0.9)
        assert torch.equal(alone.label, some.label[i : i + 1])
        assert torch.equal(alone.stage, some.stage[i : i + 1])


def test_samples_with_an_answer_are_not_computed_further(
    run: Path, test_set: tuple[Tensor, Tensor]
) -> None:
    network = pipelocal.load_with_heads(str(run))
    rows: list[int] = []
    for body in network.bodies:
        body.register_forward_hook(lambda _body, _args, out: rows.append(len(out)))
    some = network.predict(test_set[0], until=0.9)
    left = [int((some.stage >= number).sum()) for number in (1, 2, 3, 4)]
    assert rows == [count for count in left if count]
    assert rows[-1] < rows[0]


@pytest.mark.slow
def test_a_model_whose_names_are_its_own(tmp_path: Path) -> None:
    options = [
        "--model",
        "vit_small",
        "--data",
        "synthetic",
        "--train-samples",
        "64",
        "--stages",
        "2",
    ]
    run = train_alone([*options, "--epochs", "1"], tmp_path / "run")
    model = pipelocal.load(str(run))
    assert model.state_dict().keys() == pipelocal.plain_state_dict(str(run)).keys()


def test_a_network_of_several_inputs_answers_row_by_row() -> None:
    """The mask is cut as the tokens are, where rows stop at an earlier head."""
    torch.manual_seed(0)
    ids, mask = torch.randint(20, (6, 9)), torch.ones(6, 9, dtype=torch.int64)
    mask[2:, 4:] = 0
    model = Encoder().eval()
    chain, _ = Chain.from_module(
        model, units=Encoder.UNITS, inputs={"ids": ids, "attention_mask": mask}
    ).tried()
    heads = [nn.Sequential(nn.Flatten(), nn.Linear(72, 5)), chain.build_classifier(seed=0)]
    bodies: list[nn.Module] = [chain.build(0, 2, seed=0), chain.build(2, 4, seed=0)]
    network = HeadedNetwork(bodies, heads).eval()
    logits = model(ids, mask)["logits"]
    assert torch.equal(network(ids, mask), logits)
    first, last = network.all_logits(ids, mask)
    sure = first.detach().softmax(-1).max(-1).values
    until = sure.median().item() + 1e-6
    answer = network.predict(ids, mask, until=until)
    early = sure >= until
    assert 0 < int(early.sum()) < 6
    assert torch.equal(answer.label, torch.where(early, first.argmax(-1), last.argmax(-1)))
    assert network.ensemble(ids, mask).shape == (6, 5)
