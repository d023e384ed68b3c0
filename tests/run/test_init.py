"""Runs that start from pretrained weights: ``--init``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipelocal import cli
from pipelocal.checkpoint.run_folder import RunFolder
from pipelocal.results.evaluate import plain_state_dict
from tests.interrupted import EVERY, train_until
from tests.launching import launch, run_ranks
from tests.test_transparency import assert_same_bits, train_alone

SHORT = ["--model", "mlp", "--stages", "3", "--max-steps", "25", "--objective", "greedy"]
NOTHING_LEARNT = ["--max-steps", "1", "--lr", "1e-60"]
"""A step that changes no weight."""


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two stages."""
    out = tmp_path_factory.mktemp("earlier")
    return train_alone([*SHORT, "--stages", "2", "--seed", "7", "--max-steps", "3"], out / "run")


@pytest.fixture(scope="module")
def weights(earlier: Path) -> Path:
    """Its model in a file."""
    file = earlier.parent / "pretrained.pt"
    assert cli.run(["export", str(earlier), "--to", str(file)]) == 0
    return file


def stage_of(run: Path, number: int) -> dict[str, dict[str, Tensor]]:
    state: dict[str, dict[str, Tensor]] = torch.load(
        run / "stages" / f"stage-{number}.pt", weights_only=True
    )
    return state


@pytest.mark.parametrize("of", ["run", "file"])
def test_a_run_starts_from_them(tmp_path: Path, earlier: Path, weights: Path, of: str) -> None:
    """Also from those of a run that was cut elsewhere."""
    init = earlier if of == "run" else weights
    run = train_alone([*SHORT, *NOTHING_LEARNT, "--init", str(init)], tmp_path / "run")
    before, now = plain_state_dict(str(earlier)), plain_state_dict(str(run))
    assert before.keys() == now.keys()
    trained = {name for name in before if "running_" not in name and "num_batches" not in name}
    assert all(torch.equal(before[name], now[name]) for name in trained)


def test_heads_that_copy_units_start_from_them_too(tmp_path: Path, weights: Path) -> None:
    options = [*SHORT, *NOTHING_LEARNT, "--head", "downstream", "--init", str(weights)]
    run = train_alone(options, tmp_path / "run")
    head, classifier = stage_of(run, 1)["head"], stage_of(run, 3)["head"]
    own = {name.partition(".")[2]: value for name, value in head.items() if "classifier" in name}
    assert own.keys() == classifier.keys() != set()
    assert all(torch.equal(value, classifier[name]) for name, value in own.items())


def test_one_line_says_what_was_taken(
    tmp_path: Path, weights: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(weights, weights_only=True)
    last = list(state)[-2:]
    wrapped = {f"module.{name}": value for name, value in state.items()}
    wrapped |= {f"module.{name}": wrapped[f"module.{name}"][:4].clone() for name in last}
    torch.save({"state_dict": wrapped, "epoch": 3}, tmp_path / "old.pt")
    options = [*SHORT, *NOTHING_LEARNT, "--init", str(tmp_path / "old.pt")]
    train_alone(options, tmp_path / "run")
    (said,) = [line for line in capfd.readouterr().err.splitlines() if "starting from" in line]
    assert said.startswith(
        f"pipelocal: starting from {tmp_path}/old.pt (its entry 'state_dict'): {len(state) - 2} tensors, "
        f"without 'module.' before their names; of the classifier left new: {last[0]} ([4, "
    )


def test_going_on_needs_the_file_no_more_and_has_the_same_bits(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init = tmp_path / "weights.pt"
    init.write_bytes(weights.read_bytes())
    options = [*SHORT, *EVERY, "--init", str(init), "--objective", "sgr", "--freeze-stage", "1:0"]
    whole = train_alone(options, tmp_path / "whole")
    train_until(15, options, tmp_path / "parts", monkeypatch)
    init.unlink()
    run_ranks(tmp_path / "log", ["train", *options, "--out", str(tmp_path / "parts")], 3)
    assert_same_bits(whole, tmp_path / "parts")
    assert "starting from" not in (tmp_path / "log" / "rank-0.log").read_text()
    described = [RunFolder(tmp_path / name).description().model.init for name in ("whole", "parts")]
    assert described[0] == described[1] is not None
    # And a new run from its weights names them, and not the file that they began with.
    out = [
        "--resume",
        str(tmp_path / "parts"),
        "--max-steps",
        "26",
        "--out",
        str(tmp_path / "more"),
    ]
    assert cli.run(["train", *out, "--plain"]) == 0


def test_a_stage_that_never_trained_stays_so_or_is_begun_anew(
    tmp_path: Path, earlier: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its head knows nothing, and must not be taken for one that does; the run's weights can be taken."""
    options = [*SHORT, "--init", str(earlier), "--freeze-stage", "1:0", "--max-steps", "3"]
    run = train_alone(options, tmp_path / "run")
    more = ["--resume", str(run), "--max-steps", "6"]
    finer = [*more, "--stages", "6", "--freeze-stage", "1:0"]
    assert cli.run(["train", *finer, "--out", str(tmp_path / "none"), "--plain"]) == 2
    said = capfd.readouterr().err
    assert "the units of stage 2 (layer2) are of a stage that never trained" in said
    assert "keep it so by --freeze-stage 2:0, or give --init" in said
    train_alone([*finer, "--freeze-stage", "1:0,2:0"], tmp_path / "kept")
    train_alone([*SHORT, "--init", str(run), "--max-steps", "3"], tmp_path / "unfrozen")
    one, other = (stage_of(tmp_path / name, 1)["body"] for name in ("kept", "unfrozen"))
    assert torch.equal(one["layer1.1.weight"], plain_state_dict(str(earlier))["layer1.1.weight"])
    assert not torch.equal(one["layer1.1.weight"], other["layer1.1.weight"])


def test_going_on_with_other_weights_is_refused(
    tmp_path: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    init, out = tmp_path / "weights.pt", tmp_path / "run"
    init.write_bytes(weights.read_bytes())
    train_until(15, [*SHORT, *EVERY, "--init", str(init)], out, monkeypatch)
    again = ["train", *SHORT, *EVERY, "--out", str(out), "--plain"]
    assert cli.run(again) == 2
    assert "with other options: --init (weights.pt there, None here)" in capfd.readouterr().err
    state = torch.load(init, weights_only=True)
    torch.save({name: value * 2 for name, value in state.items()}, init)
    assert cli.run([*again, "--init", str(init)]) == 2
    assert "have changed: the model (the weights of --init)" in capfd.readouterr().err


def test_ranks_with_other_weights_do_not_train_together(tmp_path: Path, weights: Path) -> None:
    """Their files have one name, and lie elsewhere."""
    state = torch.load(weights, weights_only=True)
    commands = []
    for rank in range(2):
        folder = tmp_path / str(rank)
        folder.mkdir()
        torch.save({name: value * (1 + rank) for name, value in state.items()}, folder / "w.pt")
        options = ["--init", str(folder / "w.pt"), "--out", str(tmp_path / "run")]
        commands.append(["train", *SHORT, *options])
    ranks = launch(tmp_path / "log", commands, 2)
    assert ranks.wait() == [1, 2]  # the first one is stopped by the second
    assert "other weights to start from than on rank 0: --init (" in ranks.output()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--init", "nowhere.pt"], "--init nowhere.pt: there is no such file: give a .safetensors"),
        (["--init", ""], "--init '' is blank"),
        (["--init", "a.pt", "--resume", "RUN"], "both say what to begin with: give one"),
    ],
)
def test_options_that_are_none(
    tmp_path: Path,
    earlier: Path,
    capfd: pytest.CaptureFixture[str],
    options: list[str],
    said: str,
) -> None:
    options = [str(earlier) if word == "RUN" else word for word in options]
    assert cli.run(["train", *SHORT, *options, "--out", str(tmp_path / "run"), "--plain"]) == 2
    assert said in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
