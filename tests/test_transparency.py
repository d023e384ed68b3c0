"""K ranks equal one process, bit for bit: parameters, heads, optimizer state and every figure."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelocal import cli
from tests.launching import run_ranks, torchrun

MODELS = Path(__file__).parent / "models_for_tests.py"


def run_state(run: Path) -> dict[str, Any]:
    """All tensors that a run saved, by file and name, and the figures that do not depend on time."""
    state: dict[str, Any] = {}

    def flatten(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                flatten(f"{prefix}/{key}", item)
        elif isinstance(value, list):
            flatten(prefix, dict(enumerate(value)))
        else:
            state[prefix] = value

    for path in sorted((run / "stages").glob("stage-*.pt")):
        flatten(path.name, torch.load(path, weights_only=True))
    summary = json.loads((run / "summary.json").read_text())
    for stage in summary["stages"]:
        for key in ("loss", "accuracy", "eval_accuracy", "reconciliation"):
            state[f"summary/{stage['stage']}/{key}"] = stage[key]
    state["summary/ensemble"] = summary["ensemble_accuracy"]
    return state


def assert_same_bits(run: Path, other: Path) -> None:
    ours, theirs = run_state(run), run_state(other)
    assert ours.keys() == theirs.keys()
    different = [
        name
        for name, value in ours.items()
        if not (
            torch.equal(value, theirs[name])
            if isinstance(value, torch.Tensor)
            else value == theirs[name]
        )
    ]
    assert not different


def train_alone(arguments: list[str], out: Path) -> Path:
    assert cli.run(["train", *arguments, "--out", str(out), "--plain"]) == 0
    return out


@pytest.mark.parametrize("objective", [pytest.param("greedy", marks=pytest.mark.slow), "sgr"])
def test_resnet_over_ranks_equals_one_process(tmp_path: Path, objective: str) -> None:
    """1442 training samples in batches of 64 also give an uneven last batch."""
    arguments = ["--objective", objective, "--stages", "4", "--max-steps", "30"]
    alone = train_alone(arguments, tmp_path / "alone")
    for size in (2, 3, 4):
        out = tmp_path / f"ranks-{size}"
        run_ranks(tmp_path / f"log-{size}", ["train", *arguments, "--out", str(out)], size)
        assert_same_bits(alone, out)


@pytest.mark.parametrize(
    "model", ["dropout", "identity", "inplace", pytest.param("jitter", marks=pytest.mark.slow)]
)
def test_awkward_models_over_ranks_equal_one_process(tmp_path: Path, model: str) -> None:
    """Randomness, units that pass their input on, in-place activations, and irregular timing."""
    arguments = ["--model", f"{MODELS}:{model}", "--stages", "4", "--objective", "sgr"]
    arguments += ["--max-steps", "40", "--batch-size", "50", "--window", "1", "--lr", "0.02"]
    alone = train_alone(arguments, tmp_path / "alone")
    for size in (2, 4):
        out = tmp_path / f"ranks-{size}"
        run_ranks(tmp_path / f"log-{size}", ["train", *arguments, "--out", str(out)], size)
        assert_same_bits(alone, out)


def test_another_seed_gives_other_bits(tmp_path: Path) -> None:
    """The comparison above can fail."""
    arguments = ["--max-steps", "2", "--model", "mlp"]
    one = train_alone([*arguments, "--seed", "1"], tmp_path / "one")
    two = train_alone([*arguments, "--seed", "2"], tmp_path / "two")
    with pytest.raises(AssertionError):
        assert_same_bits(one, two)


@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_torchrun_exports_the_same_file(tmp_path: Path, size: int) -> None:
    """The same through the real launcher, as far as the exported model."""
    arguments = ["--stages", "4", "--max-steps", "25"]
    alone, over = train_alone(arguments, tmp_path / "alone"), tmp_path / "ranks"
    result = torchrun(size, ["train", *arguments, "--out", str(over)])
    assert result.returncode == 0, result.stderr
    exported = []
    for run in (alone, over):
        assert cli.run(["export", str(run), "--to", str(run / "model.pt")]) == 0
        exported.append((run / "model.pt").read_bytes())
    assert exported[0] == exported[1]


@pytest.mark.parametrize(
    "optimizer",
    [pytest.param([], marks=pytest.mark.slow), ["--optimizer", "adamw", "--lr", "0.01"]],
)
def test_fused_optimizers_over_ranks_equal_one_process(
    tmp_path: Path, optimizer: list[str]
) -> None:
    arguments = ["--fused", "--max-steps", "20", *optimizer]
    alone = train_alone(arguments, tmp_path / "alone")
    for size in (2, 4):
        out = tmp_path / f"ranks-{size}"
        run_ranks(tmp_path / f"log-{size}", ["train", *arguments, "--out", str(out)], size)
        assert_same_bits(alone, out)
