"""Numbers that are none: NaN, infinity, lengths of zero, and options beyond every machine."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelocal import cli
from pipelocal.objective import DISTANCES
from pipelocal.objective.infopro import InfoPro, Reconstructing, reconstruction_error
from pipelocal.objective.local import Place
from pipelocal.seeding import seeded
from pipelocal.stage.finite import first_nonfinite
from pipelocal.system.strict_json import to_json
from tests.launching import launch

MODELS = """
import torch
from torch import nn


def _net(first, classes):
    second = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())
    return nn.Sequential(nn.Sequential(nn.Flatten(), *first), second, nn.Linear(8, classes))


def dead(_shape, classes):
    linear = nn.Linear(64, 8)
    nn.init.constant_(linear.bias, -1000.0)
    return _net([linear, nn.ReLU()], classes)


class Blanks(nn.Module):
    def forward(self, x):
        return x * (torch.arange(len(x)) % 2)[:, None]


def blank_rows(_shape, classes):
    return _net([nn.Linear(64, 8), Blanks()], classes)
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A file of models."""
    file = tmp_path / "models.py"
    file.write_text(MODELS)
    return file


@pytest.mark.parametrize(
    ("model", "distance", "fraction"),
    [("dead", "cosine", "0.5"), ("dead", "cosine", "1"), ("blank_rows", "relative", "0.5")],
)
def test_a_stage_whose_input_is_zero_diverged(
    models: Path, tmp_path: Path, model: str, distance: str, fraction: str
) -> None:
    """The displacement of first-order reconciliation was a share of the input's length: 0, and the
    weight over it infinite. The second batch's loss was NaN, with the default options.
    """
    out = tmp_path / "run"
    options = ["--stages", "2", "--max-steps", "4", "--batch-size", "32", "--lr", "0.01"]
    options += [
        "--objective",
        "sgr",
        "--reconcile-every",
        "1",
        "--reconcile-fraction",
        fraction,
        "--distance",
        distance,
    ]
    arguments = ["train", "--model", f"{models}:{model}", *options, "--out", str(out), "--plain"]
    assert cli.run(arguments) == 0


TRAIN = ["train", "--stages", "2", "--objective", "greedy", "--batch-size", "32", "--plain"]


def loads(text: str) -> Any:
    """What JSON says, by a parser that takes nothing else."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_run_whose_last_update_diverged_ended_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only training losses were looked at. It ended with 0 and "accuracy 0.0986", the share of label 0,
    which is the greatest of logits that are all NaN; and metrics.jsonl held NaN.
    """
    out = tmp_path / "run"
    options = ["--model", "resnet8", "--max-steps", "1", "--lr", "1e30", "--out", str(out)]
    assert cli.run([*TRAIN, *options]) == cli.FAILURE
    said = capsys.readouterr()
    assert "accuracy 0." not in said.out
    assert "in the evaluation after batch 1 the loss is NaN or infinite: lower --lr" in said.err
    assert not (out / "summary.json").exists()
    assert not (out / "stages" / "stage-2.pt").exists()
    for line in (out / "metrics.jsonl").read_text().splitlines():
        loads(line)


def test_every_rank_of_it_fails(tmp_path: Path) -> None:
    """With the account of the stage whose weights they were, not of one that was given NaN by it."""
    options = ["--model", "mlp", "--max-steps", "1", "--lr", "1e30", "--out", str(tmp_path / "run")]
    ranks = launch(tmp_path / "ranks", [*TRAIN, *options], 2)
    assert all(code != 0 for code in ranks.wait())
    for rank in (0, 1):
        assert "stage 1, test batch 1: " in ranks.output(rank)
        assert "the loss is NaN or infinite: lower --lr" in ranks.output(rank)
    assert not (tmp_path / "run" / "summary.json").exists()


ODD = """
import torch
from torch import nn


class Odd(nn.Module):
    '''Its parameter's gradient is NaN in the third batch; outputs and loss stay as they are.'''

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))
        self.register_buffer("mask", torch.full((3,), -torch.inf))
        self.register_buffer("met", torch.zeros(()))

    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            self.met += 1
            third = (self.met == 3).float()
            return x + 0 * torch.sqrt(self.w * third + 1 - third)
        return x


def odd(_shape, classes):
    first = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU())
    return nn.Sequential(first, nn.Sequential(nn.Linear(8, 8), Odd()), nn.Linear(8, classes))
"""


@pytest.mark.parametrize("steps", [2, 3])
def test_weights_that_are_nan_were_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: int
) -> None:
    """A loss need not show it: here nothing depends on the weight. A mask of -inf is no fault."""
    model, out = tmp_path / "odd.py", tmp_path / "run"
    model.write_text(ODD)
    options = ["--model", f"{model}:odd", "--max-steps", str(steps), "--snapshot-every", "1"]
    options += ["--head", "linear"]  # a copy of the unit in a head would be told first
    code = cli.run([*TRAIN, *options, "--lr", "0.01", "--out", str(out)])
    snapshots = sorted(path.parent.name for path in out.glob("snapshots/*/manifest.json"))
    if steps == 2:
        assert code == 0
        return
    assert snapshots == ["step-00000002"], "the newest that is good"
    assert code == cli.FAILURE
    said = capsys.readouterr().err
    assert "stage 2" in said
    assert "after 3 batches 1.1.w is NaN or infinite: lower --lr" in said
    assert not (out / "summary.json").exists()
    assert not (out / "stages" / "stage-2.pt").exists()


def test_evaluation_of_logits_that_are_nan_gave_an_accuracy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever they come from; it was the share of label 0."""
    model, out = tmp_path / "frail.py", tmp_path / "run"
    model.write_text(
        "import os\n"
        "from torch import nn\n"
        "class Frail(nn.Linear):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x) * float(os.environ.get('FACTOR', '1'))\n"
        "def frail(_shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), Frail(8, 8), nn.Linear(8, classes))\n"
    )
    options = ["--model", f"{model}:frail", "--cut", "2", "--max-steps", "2", "--lr", "0.01"]
    options += ["--head", "linear"]
    assert cli.run([*TRAIN, *options, "--out", str(out)]) == 0
    capsys.readouterr()
    monkeypatch.setenv("FACTOR", "nan")
    assert cli.run(["evaluate", str(out)]) == cli.FAILURE
    said = capsys.readouterr()
    assert said.out == ""
    assert "stage 2, test batch 1: in the evaluation the loss is NaN or infinite" in said.err


def test_a_distance_that_is_nan_passed_for_a_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line named the loss and the learning rate, and neither was at fault."""
    name = "nowhere"
    if name not in DISTANCES:
        DISTANCES.register(name)(lambda eta, delta: (eta - delta).sum() * torch.nan)
    options = ["--model", "mlp", "--stages", "2", "--max-steps", "2"]
    options += ["--objective", "sgr", "--distance", name]
    code = cli.run(["train", *options, "--plain", "--out", str(tmp_path / "run")])
    assert code == cli.FAILURE
    assert "the distance of the reconciliation is NaN or infinite" in capsys.readouterr().err


def test_what_is_looked_at_before_a_stage_is_saved() -> None:
    def state() -> dict[str, Any]:
        weights = {"a.w": torch.ones(2), "a.mask": torch.full((2,), -torch.inf)}
        weights |= {"a.running_var": torch.ones(2), "a.running_mean": torch.zeros(0)}
        head = {"w": torch.ones(3, dtype=torch.bfloat16), "fixed": torch.tensor([torch.nan])}
        optimizer = {"state": {0: {"momentum_buffer": torch.ones(2)}, 1: {"momentum_buffer": None}}}
        return {"body": weights, "head": head, "averaged": None, "optimizer": optimizer}

    trained = ["a.w", "head/w"]
    assert first_nonfinite(state(), trained) is None
    huge = state()
    huge["body"]["a.w"] *= 3e38
    assert first_nonfinite(huge, trained) is None  # whose square would be infinite
    for path, name in (
        (("body", "a.w"), "a.w"),
        (("head", "w"), "head/w"),
        (("body", "a.running_var"), "a.running_var"),
    ):
        for bad in (torch.nan, torch.inf, -torch.inf):
            one = state()
            one[path[0]][path[1]][1] = bad
            assert first_nonfinite(one, trained) == name
            averaged = state() | {"averaged": {"body": one["body"], "head": one["head"]}}
            assert first_nonfinite(averaged, trained) == f"the average of {name}"
    one = state()
    one["optimizer"]["state"][0]["momentum_buffer"][0] = torch.inf
    assert first_nonfinite(one, trained) == "momentum_buffer of a.w"


def test_figures_that_are_none_were_written_as_no_json() -> None:
    content = {"a": [1, 2.5, math.nan], "b": (math.inf, -math.inf, None), "c": {"d": math.nan}}
    assert loads(to_json(content)) == {"a": [1, 2.5, None], "b": [None] * 3, "c": {"d": None}}
    assert to_json([1.5, "x"]) == '[1.5, "x"]'


def test_all_json_of_a_run_is_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By a parser that refuses NaN, over every file, and what the commands print."""
    out = tmp_path / "run"
    options = ["--model", "mlp", "--max-steps", "3", "--measure-bp-gap", "1", "--log-every", "1"]
    options += ["--trace", "--snapshot-every", "2", "--objective", "sgr", "--reconcile-every", "2"]
    assert cli.run(["train", "--stages", "3", *options, "--plain", "--out", str(out)]) == 0
    files = [*out.rglob("*.json"), *out.rglob("*.jsonl")]
    names = {path.name for path in files}
    assert {"metrics.jsonl", "summary.json", "trace.json", "manifest.json"} <= names
    for path in files:
        text = path.read_text()
        for part in text.splitlines() if path.suffix == ".jsonl" else [text]:
            loads(part)
    for command in (
        ["evaluate", str(out), "--json"],
        [
            "plan",
            "--model",
            "mlp",
            "--device",
            "meta",
            "--batch-size",
            "32",
            "--ranks",
            "2",
            "--json",
        ],
        ["doctor", "--out", str(tmp_path), "--json"],
    ):
        capsys.readouterr()
        cli.run(command)
        loads(capsys.readouterr().out)


def test_the_squared_error_of_a_decoder_of_grey_images_diverged() -> None:
    """Its curvature was some forty, so that training with momentum diverged at a rate of 0.1 and above."""
    image, feature = (1, 8, 8), (4, 8, 8)
    grey = Place(
        number=1,
        stages=4,
        input_shape=image,
        output_shape=feature,
        sample_shape=image,
        total_steps=60,
    )
    with seeded(0, "decoder"):
        decoder = InfoPro().for_stage(grey)
        assert isinstance(decoder, Reconstructing)
        assert decoder.decoder is not None
        features, images = torch.randn(64, 4, 8, 8).relu(), torch.randn(64, 1, 8, 8)
    sgd = torch.optim.SGD(decoder.parameters(), lr=0.3, momentum=0.9)
    errors = []
    for _ in range(60):
        error = reconstruction_error(decoder.decoder(features), images)
        sgd.zero_grad()
        error.backward()  # type: ignore[no-untyped-call]
        sgd.step()
        errors.append(float(error.detach()))
    assert errors[-1] <= errors[0], errors
    assert max(errors) < 2 * errors[0], errors
