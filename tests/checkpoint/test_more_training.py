"""More training of a run that ended, with the same options or others."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipelocal import cli
from pipelocal.checkpoint.description import Description, ModelDescription
from pipelocal.checkpoint.run_folder import RunFolder
from pipelocal.config import TrainConfig
from pipelocal.config.resolve import spec_of, text_of
from pipelocal.config.saved import options_of
from pipelocal.run.choose_folder import choose_folder
from tests.interrupted import train_until
from tests.launching import launch
from tests.test_bugs import of_nothing
from tests.test_transparency import assert_same_bits, train_alone

OPTIONS = ["--model", "mlp", "--stages", "3", "--schedule", "constant", "--log-every", "8"]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs of 23 batches."""
    return train_alone([*OPTIONS, "--epochs", "2"], tmp_path_factory.mktemp("runs") / "ended")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three."""
    return train_alone([*OPTIONS, "--epochs", "3"], tmp_path_factory.mktemp("runs") / "straight")


def test_the_message_of_an_ended_run_says_how(
    tmp_path: Path, ended: Path, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what it says works, with the run's own options."""
    again = ["train", *OPTIONS, "--epochs", "3", "--plain", "--out", str(ended)]
    assert cli.run(again) == 2
    said = capsys.readouterr().err
    how = said[said.index("--resume") : said.index(" with a new --out")]
    assert how == f"--resume {ended} --epochs 3"
    longer = tmp_path / "longer"
    assert cli.run(["train", *shlex.split(how), "--out", str(longer)]) == 0
    assert_same_bits(straight, longer)
    assert options_of(RunFolder.open(str(longer))).model == "mlp"


def test_over_ranks_each_takes_the_options_over(
    tmp_path: Path, ended: Path, straight: Path
) -> None:
    out = tmp_path / "longer"
    command = ["train", "--resume", str(ended), "--epochs=3", "--out", str(out)]
    ranks = launch(tmp_path / "log", command, 2)
    assert ranks.wait() == [0, 0], ranks.output()
    assert_same_bits(straight, out)


def test_an_interrupted_longer_run_goes_on(
    tmp_path: Path, ended: Path, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "longer"
    command = ["--resume", str(ended), "--epochs", "3", "--snapshot-every", "5"]
    train_until(60, command, out, monkeypatch)
    assert_same_bits(straight, train_alone(command, out))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "end the training after 46: give more, such as --epochs 4"),
        (["--max-steps", "40"], "end the training after 40: give more, such as --epochs 4 --max"),
    ],
)
def test_no_more_than_there_was(
    tmp_path: Path,
    ended: Path,
    options: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    assert cli.run(["train", "--resume", str(ended), *options, "--out", str(out)]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_what_is_given_counts(
    tmp_path: Path, ended: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line over a --config file over the run; and --stages over the run's --cut."""
    file, first = tmp_path / "more.toml", tmp_path / "first"
    train_alone(["--resume", str(ended), "--cut", "layer2,layer4", "--epochs", "3"], first)
    assert options_of(RunFolder.open(str(first))).cut == "layer2,layer4"
    file.write_text(f'resume = "{first}"\nlr = 0.02\nepochs = 7\n')
    out = tmp_path / "out"
    train_alone(["--config", str(file), "--epochs", "4", "--stages", "2"], out)
    config = options_of(RunFolder.open(str(out)))
    assert (config.lr, config.epochs, config.schedule) == (0.02, 4, "constant")
    assert len(json.loads((out / "summary.json").read_text())["stages"]) == 2
    assert cli.run(["train", "--resume", str(tmp_path), "--epochs", "4"]) == 2
    assert f"--resume {tmp_path}: there is no run in {tmp_path}" in capsys.readouterr().err


@pytest.mark.slow
def test_another_batch_size_begins_with_the_next_epoch(
    tmp_path: Path, ended: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs of 23 batches, and one of 46: also if that one is interrupted."""
    command = ["--resume", str(ended), "--epochs", "3", "--batch-size", "32"]
    whole = train_alone(command, tmp_path / "whole")
    assert json.loads((whole / "summary.json").read_text())["steps"] == 2 * 23 + 46
    epochs = [
        (record["epoch"], record["step"])
        for record in map(json.loads, (whole / "metrics.jsonl").read_text().splitlines())
        if record["event"] == "train" and record["stage"] == 1
    ]
    assert {epoch for epoch, _ in epochs} == {3}
    assert epochs[-1] == (3, 92)
    command += ["--snapshot-every", "7"]
    train_until(80, command, tmp_path / "run", monkeypatch)
    assert_same_bits(whole, train_alone(command, tmp_path / "run"))


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--batch-size=32", "--batch-size (64 there, 32 here)"),
        ("--seed=5", "--seed (0 there, 5 here)"),
        ("--train-samples=1000", "--train-samples (None there, 1000 here)"),
    ],
)
def test_in_the_middle_of_an_epoch_its_other_batches_are_refused(
    tmp_path: Path, option: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    train_alone([*OPTIONS, "--max-steps", "30"], run)
    more = ["--max-steps", "60", option, "--out", str(out)]
    assert cli.run(["train", "--resume", str(run), *more]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "batch 30 is of the middle of an epoch" in line
    assert said in line
    assert not out.exists()


def test_two_runs_without_a_name_that_start_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each chose its folder before the other had made it."""
    monkeypatch.chdir(tmp_path)
    config = TrainConfig()
    nothing = of_nothing()
    folders = [choose_folder(spec_of(config), nothing.model) for _ in range(3)]
    for folder in folders:
        folder.begin(text_of(config), nothing)
    names = [folder.path.name for folder in folders]
    assert names == ["resnet8-digits-greedy", "resnet8-digits-greedy-2", "resnet8-digits-greedy-3"]
    assert all((folder.path / "config.toml").exists() for folder in folders)


def test_the_ranks_learn_which_folder_it_became(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def taken(rank: int) -> None:
        begin = RunFolder.begin

        def late(folder: RunFolder, text: Mapping[str, Any], description: Description) -> None:
            folder.path.mkdir(parents=True)  # by another run, a moment ago
            begin(folder, text, description)

        pytest.MonkeyPatch().setattr(RunFolder, "begin", late)

    command = ["train", *OPTIONS, "--max-steps", "3", "--plain"]
    ranks = launch(tmp_path / "log", command, 2, taken)
    assert ranks.wait() == [0, 0], ranks.output()
    first, second = sorted(Path("runs").iterdir())
    assert list(first.iterdir()) == []
    assert len(list((second / "stages").glob("stage-*.pt"))) == 3


def test_an_unfinished_run_of_other_options_or_in_use_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    nothing = of_nothing()

    def chosen(model: ModelDescription = nothing.model, **options: Any) -> RunFolder:
        return choose_folder(spec_of(TrainConfig(**options)), model)

    first = chosen()
    first.begin(text_of(TrainConfig()), nothing)  # and holds its lock
    assert chosen().path.name == "resnet8-digits-greedy-2"
    assert first._lock is not None
    first._lock.close()
    assert chosen(lr=0.5).path.name == "resnet8-digits-greedy-2"
    assert chosen(resume="never").path.name == "resnet8-digits-greedy-2"
    changed = ModelDescription(units="", code="another")
    assert chosen(changed).path.name == "resnet8-digits-greedy-2"
    again = chosen()
    assert (again.path, again.goes_on) == (first.path, True)
