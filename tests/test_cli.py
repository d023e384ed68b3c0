"""The command line: good runs, and bad input that ends in one clear line."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch.distributed.run import get_args_parser

from pipelocal import cli
from pipelocal.checkpoint.run_folder import RunFolder
from pipelocal.checkpoint.snapshot import load_stage
from pipelocal.config.command_line import parse
from pipelocal.config.resolve import blueprint_of
from pipelocal.config.saved import options_of
from pipelocal.config.train import TrainConfig
from pipelocal.options import option_name
from pipelocal.system.toml import to_toml
from tests.launching import launch

MODELS = Path(__file__).parent / "models_for_tests.py"
QUICK = ["--model", "mlp", "--max-steps", "12", "--plain"]


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    assert cli.run(["train", *QUICK, "--stages", "3", "--seed", "5", "--out", str(out)]) == 0
    return out


def test_the_run_folder_holds_what_is_promised(finished_run: Path) -> None:
    summary = json.loads((finished_run / "summary.json").read_text())
    assert summary["world_size"] == 1
    assert summary["objective"] == "greedy"
    assert summary["steps"] == 12
    assert summary["seconds"] > 0
    assert summary["samples_per_second"] > 0
    assert 0 <= summary["eval_accuracy"] <= 1
    assert 0 <= summary["ensemble_accuracy"] <= 1
    assert [stage["stage"] for stage in summary["stages"]] == [1, 2, 3]
    for stage in summary["stages"]:
        assert stage["rank"] == 0
        assert stage["loss"] > 0
        assert 0 <= stage["accuracy"] <= 1
        assert 0 <= stage["eval_accuracy"] <= 1
        assert 0 < stage["busy_fraction"] <= 1
        assert stage["peak_memory_bytes"] > 0
    sent = [stage["sent_bytes"] for stage in summary["stages"]]
    received = [stage["received_bytes"] for stage in summary["stages"]]
    assert sent[:-1] == received[1:]
    assert (sent[-1], received[0]) == (0, 0)

    options = tomllib.loads((finished_run / "config.toml").read_text())
    assert options["seed"] == 5
    assert options["stages"] == 3
    assert options["batch_size"] == 64  # what was not given is written too

    records = [
        json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()
    ]
    for stage in (1, 2, 3):
        events = [record["event"] for record in records if record["stage"] == stage]
        assert events == ["begin", "train", "evaluate", "final"]
        (train,) = (r for r in records if r["stage"] == stage and r["event"] == "train")
        assert train["step"] == 12
        assert train["learning_rate"] > 0


def test_evaluate_repeats_the_trainings_own_figures(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["evaluate", str(finished_run), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    summary = json.loads((finished_run / "summary.json").read_text())
    assert result["eval_accuracy"] == summary["eval_accuracy"]
    assert result["ensemble_accuracy"] == summary["ensemble_accuracy"]
    accuracies = [stage["eval_accuracy"] for stage in summary["stages"]]
    assert [stage["accuracy"] for stage in result["stages"]] == accuracies


def test_evaluate_prints_every_head(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["evaluate", str(finished_run), "--batch-size", "7"]) == 0
    out = capsys.readouterr().out
    assert "layer1..layer2" in out
    assert "layer5..layer6" in out
    assert "ensemble" in out


def test_export_loads_into_the_uncut_model(finished_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    assert cli.run(["export", str(finished_run), "--to", str(file)]) == 0
    state = torch.load(file, weights_only=True)
    config = options_of(RunFolder.open(str(finished_run)))
    model = blueprint_of(config).chain.build_whole(seed=0)
    model.load_state_dict(state)  # strict: neither a head too many nor a layer too few
    trained = load_stage(finished_run / "stages", 3)["head"]["weight"]
    assert torch.equal(model.state_dict()["classifier.weight"], trained)


def test_bp_is_one_stage_of_the_uncut_model(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert cli.run(["train", *QUICK, "--objective", "bp", "--out", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert len(summary["stages"]) == 1
    assert summary["eval_accuracy"] == summary["ensemble_accuracy"]


def test_toml_holds_a_run_and_the_command_line_overrides_it(tmp_path: Path) -> None:
    file, out = tmp_path / "run.toml", tmp_path / "run"
    file.write_text('model = "mlp"\nmax-steps = 3\nlr = 1\nseed = 8\nplain = true\n')
    assert cli.run(["train", "--config", str(file), "--seed", "9", "--out", str(out)]) == 0
    options = tomllib.loads((out / "config.toml").read_text())
    assert (options["model"], options["max_steps"], options["lr"], options["seed"]) == (
        "mlp",
        3,
        1.0,
        9,
    )
    assert type(options["lr"]) is float
    # The resolved options are such a file themselves.
    again = tmp_path / "again"
    assert cli.run(["train", "--config", str(out / "config.toml"), "--out", str(again)]) == 0
    first, second = (load_stage(p / "stages", 4)["head"] for p in (out, again))
    assert torch.equal(first["weight"], second["weight"])


def test_runs_without_a_name_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert cli.run(["train", "--model", "mlp", "--max-steps", "1", "--plain"]) == 0
    assert {p.name for p in Path("runs").iterdir()} == {"mlp-digits-greedy", "mlp-digits-greedy-2"}


BAD_OPTIONS = {
    "unknown model": (["--model", "resnet9"], "unknown model 'resnet9'.*did you mean 'resnet"),
    "unknown data set": (["--data", "digit"], "unknown data set 'digit'.*did you mean 'digits'"),
    "unknown objective": (["--objective", "sgd"], "unknown objective 'sgd'.*did you mean 'sgr'"),
    "unknown head": (["--head", "x"], "unknown head 'x': choose one of linear, mlp, conv"),
    "unknown distance": (["--distance", "l2"], "unknown distance 'l2'"),
    "unknown optimizer": (["--optimizer", "adam"], "unknown optimizer 'adam'.*'adamw'"),
    "unknown schedule": (["--schedule", "step"], "unknown schedule 'step'"),
    "no stage": (["--stages", "0"], "--stages 0: must be at least 1"),
    "too many stages": (["--stages", "5"], "--stages 5: this model has 4 units.*from 1 to 4"),
    "no batch": (["--batch-size", "0"], "--batch-size 0: must be at least 1"),
    "batch too large": (["--batch-size", "9999"], "9999.*1442.*from 1 to 1442"),
    "no epoch": (["--epochs", "0"], "--epochs 0"),
    "no step": (["--max-steps", "0"], "--max-steps 0"),
    "no learning rate": (["--lr", "0"], "--lr 0.0: give a number above 0"),
    "nan learning rate": (["--lr", "nan"], "--lr nan"),
    "negative weight": (
        ["--objective", "sgr", "--reconcile-weight", "-1"],
        "--reconcile-weight -1: give one number from 0",
    ),
    "momentum of one": (["--momentum", "1"], "--momentum 1.0"),
    "unknown edge": (["--edge", "smoke"], "--edge smoke: choose one of auto, device, host"),
    "unknown device": (["--device", "tpu"], "--device tpu: choose auto, cpu or cuda"),
    "no data root": (["--data", "cifar10"], "--data-root"),
    "no data there": (["--data", "fashion-mnist", "--data-root", "/nowhere"], "/nowhere"),
    "no such file": (["--model", "none.py:f"], "'none.py:f' cannot be imported.*none.py"),
    "no such function": (["--model", "math:none"], "'math:none' cannot be imported"),
    "no such toml": (["--config", "none.toml"], "--config none.toml: No such file"),
    "no double backward": (
        ["--model", f"{MODELS}:attention", "--objective", "sgr", "--reconcile", "exact"],
        "stage 3: unit 'u3' cannot be differentiated twice .*choose --reconcile first-order",
    ),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options_end_in_one_line(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, text = BAD_OPTIONS[case]
    code = cli.run(["train", *options, "--plain", "--out", str(tmp_path / "run")])
    said = capsys.readouterr().err
    assert code == cli.USER_ERROR
    assert said.startswith("pipelocal: error: ")
    assert said.count("\n") == 1, said
    assert re.search(text, said), said


def test_a_failed_start_can_be_mended_in_the_same_folder(tmp_path: Path) -> None:
    """Bad input must not leave a folder behind that the next try is refused for."""
    out = str(tmp_path / "run")
    assert cli.run(["train", *QUICK, "--batch-size", "5000", "--out", out]) == cli.USER_ERROR
    twice = ["--model", f"{MODELS}:attention", "--objective", "sgr", "--reconcile", "exact"]
    assert cli.run(["train", *QUICK, *twice, "--out", out]) == cli.USER_ERROR
    assert cli.run(["train", *QUICK, "--out", out]) == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model = ", "not valid TOML"),
        ("modle = 'mlp'", "there is no option 'modle'; did you mean 'model'?"),
        ("epochs = 'many'", "'epochs' must be of type int, not str"),
        ("epochs = 1.5", "'epochs' must be of type int, not float"),
        ("plain = 1", "'plain' must be of type bool, not int"),
    ],
)
def test_bad_toml_ends_in_one_line(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.toml").write_text(text)
    assert cli.run(["train", "--config", str(tmp_path / "run.toml")]) == cli.USER_ERROR
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1


def test_an_output_folder_is_never_reused(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished_run / "summary.json").read_bytes()
    assert cli.run(["train", *QUICK, "--out", str(finished_run)]) == cli.USER_ERROR
    assert "holds a run that came to its end" in capsys.readouterr().err
    assert (finished_run / "summary.json").read_bytes() == before
    (tmp_path / "mine.txt").write_text("mine")
    assert cli.run(["train", *QUICK, "--out", str(tmp_path)]) == cli.USER_ERROR
    assert "already holds other files" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert cli.run(["train", *QUICK, "--out", str(tmp_path / "file")]) == cli.USER_ERROR


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_no_run_no_answer(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--to", str(tmp_path / "m.pt")] if command == "export" else []
    assert cli.run([command, str(tmp_path), *more]) == cli.USER_ERROR
    assert "no run folder" in capsys.readouterr().err
    (tmp_path / "config.toml").write_text("")
    assert cli.run([command, str(tmp_path), *more]) == cli.USER_ERROR
    assert "did not end, and left no snapshot" in capsys.readouterr().err


def test_a_damaged_stage_file_is_named(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    subprocess.run(["cp", "-r", str(finished_run), str(copy)], check=True)
    stage = copy / "stages" / "stage-2.pt"
    stage.write_bytes(stage.read_bytes()[:1000])
    assert cli.run(["export", str(copy), "--to", str(tmp_path / "m.pt")]) == cli.USER_ERROR
    said = capsys.readouterr().err
    assert "stage-2.pt is damaged" in said
    assert said.count("\n") == 1


def test_a_head_that_auto_no_longer_chooses(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as of an earlier version, whose budget meant something else: one line with a mend that works."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    options = tomllib.loads((run / "config.toml").read_text())
    options["head_budget"] = 1e-6
    (run / "config.toml").write_text(to_toml(options))
    assert cli.run(["evaluate", str(run)]) == 2
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert "the head of stage 1 cannot be loaded" in last
    assert "in an earlier version: give that head (summary.json of the run names it)" in last
    assert cli.run(["export", str(run), "--to", str(tmp_path / "model.pt")]) == 0
    first, *_ = json.loads((run / "summary.json").read_text())["stages"]
    (run / "config.toml").write_text(to_toml({**options, "head": first["head"]}))
    assert cli.run(["evaluate", str(run)]) == 0


def test_export_to_nowhere(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["export", str(finished_run), "--to", "/nowhere/m.pt"]) == cli.USER_ERROR
    assert "/nowhere/m.pt cannot be written" in capsys.readouterr().err


def test_a_loss_that_becomes_nan_names_stage_and_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.run(["train", "--lr", "1e30", "--plain", "--out", str(tmp_path / "run")])
    assert code == cli.FAILURE
    assert "error: stage 1, batch 2: the loss is NaN or infinite" in capsys.readouterr().err


def test_more_ranks_than_stages(tmp_path: Path) -> None:
    ranks = launch(tmp_path / "log", ["train", "--stages", "2", "--out", str(tmp_path / "run")], 3)
    assert ranks.wait() == [2, 2, 2]
    for rank in range(3):
        assert f"pipelocal (rank {rank}): error: 3 ranks for 2 stages" in ranks.output(rank)


def test_bp_on_several_ranks(tmp_path: Path) -> None:
    ranks = launch(tmp_path / "log", ["train", "--objective", "bp"], 2)
    assert ranks.wait() == [2, 2]
    assert "bp trains the uncut model in one process, but 2 ranks were started" in ranks.output(1)


def test_help_explains_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.run(["train", "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    for option in ("--model", "--data-root", "--max-steps", "--reconcile-weight", "--window"):
        assert option in said
    assert "Nothing is downloaded" in said or "nothing is downloaded" in " ".join(said.split())


def test_the_module_and_the_script_are_the_same() -> None:
    script = Path(sys.executable).with_name("pipelocal")
    module = [sys.executable, "-m", "pipelocal"]
    outputs = [
        subprocess.run(
            [*command, "--help"],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"COLUMNS": "100"},
        ).stdout
        for command in ([str(script)], module)
    ]
    assert outputs[0] == outputs[1]
    assert all(name in outputs[0] for name in ("train", "evaluate", "export"))


def test_torchrun_hands_every_option_on(capsys: pytest.CaptureFixture[str]) -> None:
    """It refuses ``--log`` as one of several abbreviations, though it stands behind the program's name."""
    names = {option_name(field.name) for field in fields(TrainConfig)} - {"--log"} | {"--loggers"}
    for name in sorted(names):
        arguments = ["--nproc-per-node", "2", "-m", "pipelocal", "train", name, "csv"]
        parsed = get_args_parser().parse_args(arguments)  # exits otherwise
        assert parsed.training_script_args == ["train", name, "csv"], capsys.readouterr().err
    config = parse(["train", "--loggers", "csv"], options_of=lambda _: TrainConfig())
    assert isinstance(config, TrainConfig)
    assert config.log == "csv"
