"""Runs whose edges carry several tensors: skips of a U-Net over two and more cuts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pipelocal import Chain, Greedy, LocalPass, Pipeline, Relay, cli
from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of
from pipelocal.pipeline.bp_gap import BackPropagationGap
from tests.launching import run_ranks
from tests.test_transparency import assert_same_bits, train_alone

MODEL = f"{Path(__file__).parent / 'skipping_models.py'}:unet"
CUT = "second,middle,up_first"
OPTIONS = ["--model", MODEL, "--cut", CUT, "--batch-size", "30", "--lr", "0.02"]


def test_skips_over_ranks_equal_one_process(tmp_path: Path) -> None:
    """Also where they are recomputed, packed, and used by the first-order form, which moves the input."""
    arguments = [*OPTIONS, "--max-steps", "12", "--objective", "sgr", "--reconcile-every", "3"]
    arguments += ["--wire", "bf16", "--checkpoint-activations", "1"]
    alone = train_alone(arguments, tmp_path / "alone")
    out = tmp_path / "ranks"
    run_ranks(tmp_path / "log", ["train", *arguments, "--out", str(out)], 4)
    assert_same_bits(alone, out)


def test_an_objective_has_earlier_outputs_relayed(tmp_path: Path) -> None:
    """Every stage sees the same image, on any number of ranks, and its bytes are in the plan."""
    objective = f"{Path(__file__).parent / 'skipping_models.py'}:SeesEarlier"
    arguments = [*OPTIONS, "--max-steps", "4", "--objective", objective]
    alone = train_alone(arguments, tmp_path / "alone")
    out = tmp_path / "ranks"
    run_ranks(tmp_path / "log", ["train", *arguments, "--out", str(out)], 2)
    assert_same_bits(alone, out)
    summary = json.loads((out / "summary.json").read_text())
    figures = [stage["figures"]["train"] for stage in summary["stages"]]
    assert len({each["brightness"] for each in figures}) == 1
    assert [each["first"] == 0 for each in figures] == [True, False, False, True]
    assert figures[1]["first"] == figures[2]["first"]
    blueprint = blueprint_of(TrainConfig(model=MODEL, cut=CUT, objective=objective))
    names = [[kind.name for kind in blueprint.relayed(source)] for source in (1, 2, 3)]
    assert names == [["relay image"], ["relay image", "relay first"], ["relay image"]]


def test_plan_says_what_the_edges_carry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first and the second skip travel beside the main tensor, as do labels and ids."""
    sent: list[list[int]] = []
    for steps in (2, 5):
        out = train_alone([*OPTIONS, "--max-steps", str(steps)], tmp_path / str(steps))
        summary = json.loads((out / "summary.json").read_text())
        sent.append([stage["sent_bytes"] for stage in summary["stages"]])
    a_batch = [(more - less) // 3 for less, more in zip(*sent, strict=True)]
    capsys.readouterr()
    planned = ["plan", "--model", MODEL, "--cut", CUT, "--batch-size", "30", "--json"]
    assert cli.run([*planned, "--data", "digits", "--objective", "greedy"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert [stage["sent_bytes"] for stage in stages] == a_batch
    one, two, middle, up = 4 * 64, 6 * 16, 8 * 4, 6 * 16
    floats = [one, two + one, up + one]  # the decoder's second block has used the second skip
    assert a_batch == [30 * (4 * numbers + 16) for numbers in floats] + [0]
    assert middle < up


def test_the_gap_to_back_propagation_goes_through_skips() -> None:
    """One stage less knows of what the others do, and the last is trained as back-propagation would."""
    blueprint = blueprint_of(TrainConfig(model=MODEL, cut=CUT, head="linear"))
    stages = [
        blueprint.build_stage(number, device=torch.device("cpu"), total_steps=1)
        for number in range(1, blueprint.stages + 1)
    ]
    x, target = torch.randn(6, 1, 8, 8), torch.arange(6)
    gap = BackPropagationGap(stages)
    gap.begin(x, target)
    beside: tuple[torch.Tensor, ...] = ()
    found = []
    for stage in stages:
        x = stage.forward(x, beside)
        beside = stage.beside
        delta = stage.output_gradient(target)
        stage.reconcile(None)
        found.append(gap.compare(stage, delta))
        stage.update()
    assert all(each is not None for each in found)
    *earlier, last = [each.update_cosine for each in found if each is not None]
    assert last == pytest.approx(1, abs=1e-6)
    assert all(-1 <= cosine < 0.99 for cosine in earlier)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_models_in_half_precision(
    tmp_path: Path, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What crosses a cut has two bytes a number; heads and losses are in float32."""
    arguments = ["--model", MODEL.replace("unet", dtype), "--stages", "3", "--max-steps", "100"]
    arguments += ["--batch-size", "30", "--lr", "0.05", "--data", "digits"]
    out = train_alone([*arguments, "--objective", "greedy"], tmp_path / "alone")
    summary = json.loads((out / "summary.json").read_text())
    assert summary["eval_accuracy"] > 0.5
    trained, evaluated = 2 * 1442 + 2 * 30, 3 * 355  # rows; ids, targets and votes travel, too
    sent = trained * (2 * 32 + 16) + evaluated * (2 * 32 + 8 + 4 * 10)
    assert summary["stages"][0]["sent_bytes"] == sent
    if dtype == "bfloat16":
        ranks = tmp_path / "ranks"
        greedy = ["train", *arguments, "--objective", "greedy", "--out", str(ranks)]
        run_ranks(tmp_path / "log", greedy, 3)
        assert_same_bits(out, ranks)
    arguments += ["--objective", "sgr"]
    assert cli.run(["train", *arguments, "--out", str(tmp_path / "no"), "--plain"]) == 2
    assert f"works in torch.{dtype}, which is too coarse" in capsys.readouterr().err


class Masked(nn.Module):
    """Takes numbers and a mask, and has the mask at every unit."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Linear(6, 6) for _ in range(3))
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for layer in (self.one, self.two, self.three):
            x = layer(x * mask).tanh()
        logits: Tensor = self.out(x)
        return logits


def test_a_loop_of_ones_own_and_fit_take_several_inputs() -> None:
    """Both train to the same losses, with an objective that has the input relayed."""
    torch.manual_seed(0)
    x, target = torch.randn(24, 6), torch.arange(24) % 3
    mask = torch.rand(24, 6) > 0.2
    units = ["one", "two", "three", "out"]
    chain = Chain.from_module(Masked(), units=units, inputs={"x": x[:1], "mask": mask[:1]})
    seen: list[tuple[float, ...]] = []

    class Sees(Greedy):
        def relays(self, stages: int) -> list[Relay]:
            return [Relay(name="numbers", of=0, until=stages)]

        def loss(self, local: LocalPass, out: Tensor) -> Tensor:
            seen.append(tuple(local.relayed["numbers"].flatten().tolist()))
            return super().loss(local, out)

    loader = DataLoader(TensorDataset(x, mask, target), batch_size=8)
    losses = []
    for own in (True, False):
        pipe = Pipeline(chain, stages=3, objective=Sees(), seed=3)
        if own:
            steps = [pipe.step((x, mask), target) for x, mask, target in loader]
            losses.append([sum(s["stages"][k]["loss"] for s in steps) / 3 for k in range(3)])
        else:
            summary = pipe.fit(loader, epochs=1, progress=False)
            losses.append([stage["loss"] for stage in summary["stages"]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert len(set(seen)) == 3, "every stage saw the batches' own numbers"
