"""What a run remembers of what it was made of, and who is told when that changes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pipelocal
from pipelocal import cli
from pipelocal.checkpoint.description import Description, data_differences
from pipelocal.data import load_dataset
from pipelocal.data.fingerprint import describe_data
from pipelocal.references import Source
from tests.interrupted import EVERY, train_until
from tests.launching import PATIENCE_S
from tests.test_transparency import assert_same_bits, train_alone

MODEL = """
from torch import nn
from {layers} import layer

def net(shape, classes):
    return nn.Sequential(nn.Sequential(nn.Flatten(), layer(64, 32)), layer(32, 32), nn.Linear(32, classes))
"""
LAYERS = """
from torch import nn

def layer(a, b):
    return nn.Sequential(nn.Linear(a, b), nn.ReLU())
"""
SHORT = ["--stages", "2", "--max-steps", "6", "--batch-size", "32"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model's file and one beside it, in which the test runs.

    The helper's name is the test's own: this process imports a module of one name once.
    """
    folder = tmp_path / "project"
    folder.mkdir()
    layers = f"layers_{abs(hash(str(tmp_path)))}"
    (folder / "net.py").write_text(MODEL.format(layers=layers))
    (folder / f"{layers}.py").write_text(LAYERS)
    monkeypatch.chdir(folder)
    return folder


def _change_helper(project: Path) -> None:
    (helper,) = project.glob("layers_*.py")
    helper.write_text(helper.read_text().replace("ReLU", "Tanh"))


def test_bits_do_not_depend_on_how_a_path_is_spelled(project: Path) -> None:
    spelled = ["net.py:net", "./net.py:net", f"{project}/net.py:net", "../project/net.py:net"]
    runs = [
        train_alone(["--model", model, *SHORT], project / str(number))
        for number, model in enumerate(spelled)
    ]
    for run in runs[1:]:
        assert_same_bits(runs[0], run)


def test_another_spelling_goes_on_with_the_same_run(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--stages", "2", "--epochs", "1", *EVERY]
    train_until(15, ["--model", "net.py:net", *options], project / "run", monkeypatch)
    train_alone(["--model", f"{project}/net.py:net", *options], project / "run")
    assert "going on after batch 10" in capsys.readouterr().err


def test_changed_code_is_told_by_evaluate_export_and_load(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where it is not the model's own file that changed, but one that it imports."""
    run = train_alone(["--model", "net.py:net", *SHORT], project / "run")
    _change_helper(project)
    for command in (["evaluate", str(run)], ["export", str(run), "--to", "m.pt"]):
        capsys.readouterr()
        assert cli.run(command) == 0
        said = capsys.readouterr().err.strip()
        assert "was trained, its code changed" in said
        assert len(said.splitlines()) == 1
    pipelocal.load(str(run))
    assert "its code changed" in capsys.readouterr().err


def test_unchanged_code_is_not_spoken_of(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train_alone(["--model", "net.py:net", *SHORT], project / "run")
    capsys.readouterr()
    assert cli.run(["evaluate", str(run)]) == 0
    assert capsys.readouterr().err == ""


def test_other_parameters_are_told(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train_alone(["--model", "net.py:net", *SHORT], project / "run")
    model = project / "net.py"
    model.write_text(
        model.read_text().replace("(32, 32)", "(32, 48)").replace("32, classes", "48, classes")
    )
    assert cli.run(["evaluate", str(run)]) == 2
    assert "the names, shapes or dtypes of its parameters changed" in capsys.readouterr().err


def test_going_on_with_changed_code_is_refused_unless_told_to(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "--model", "net.py:net", "--stages", "2", "--epochs", "1", *EVERY]
    command += ["--out", "run", "--plain"]
    train_until(15, command[1:-3], project / "run", monkeypatch)
    _change_helper(project)
    files = ("config.toml", "run.json", "metrics.jsonl")
    before = [(project / "run" / name).read_bytes() for name in files]
    assert cli.run(command) == 2
    assert "the model (its code): give --accept-changes" in capsys.readouterr().err
    assert [(project / "run" / name).read_bytes() for name in files] == before
    assert cli.run([*command, "--accept-changes"]) == 0
    assert "accepted: the model (its code)" in capsys.readouterr().err
    assert cli.run(["evaluate", "run"]) == 0
    assert "changed" not in capsys.readouterr().err  # what was accepted is what the run is now


def test_a_model_is_found_from_another_folder(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the run and the model's file were moved together, and a file of that name lies in the way."""
    run = train_alone(["--model", "net.py:net", *SHORT], project / "run")
    accuracy = json.loads((run / "summary.json").read_text())["eval_accuracy"]
    moved = project.parent / "moved"
    project.rename(moved)
    elsewhere = project.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "net.py").write_text("raise ImportError('the wrong file')")
    monkeypatch.chdir(elsewhere)
    capsys.readouterr()
    assert cli.run(["evaluate", str(moved / "run"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["eval_accuracy"] == accuracy
    assert err == ""


def test_changed_data_are_told_and_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 100)
    options = ["--model", "gru", "--data", "text16", "--data-root", str(text), "--stages", "2"]
    options += ["--max-steps", "6", "--batch-size", "8", "--lr", "0.01", "--snapshot-every", "2"]
    finished = train_alone(options, tmp_path / "finished")
    train_until(3, options, tmp_path / "stopped", monkeypatch)
    text.write_text(text.read_text().replace("fox", "cat"))
    assert cli.run(["evaluate", str(finished)]) == 0
    assert "the content of its samples or labels" in capsys.readouterr().err
    command = ["train", *options, "--out", str(tmp_path / "stopped"), "--plain"]
    assert cli.run(command) == 2
    assert "the data (the content of its samples" in capsys.readouterr().err
    assert cli.run([*command, "--accept-changes"]) == 0


def test_evaluate_says_that_the_accuracy_is_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_alone(["--model", "mlp", *SHORT], tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"eval": {"accuracy": 0.5}}))
    assert cli.run(["evaluate", str(run)]) == 0
    assert "0.5 in the run's summary.json" in capsys.readouterr().err


def test_load_needs_neither_the_data_nor_the_optimizer(tmp_path: Path) -> None:
    """Which a script had registered that is not at hand any more."""
    run = train_alone(["--model", "mlp", *SHORT], tmp_path / "run")
    config = run / "config.toml"
    text = config.read_text().replace('"digits"', '"gone"').replace('"sgd"', '"gone-too"')
    config.write_text(text)
    state = pipelocal.load(str(run)).state_dict()
    pipelocal.load_with_heads(str(run))
    assert cli.run(["export", str(run), "--to", str(tmp_path / "m.pt")]) == 0
    for name, value in torch.load(tmp_path / "m.pt", weights_only=True).items():
        assert torch.equal(value, state[name])


def test_evaluate_names_the_data_that_is_not_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_alone(["--model", "mlp", *SHORT], tmp_path / "run")
    config = run / "config.toml"
    config.write_text(config.read_text().replace('"digits"', '"gone"'))
    assert cli.run(["evaluate", str(run)]) == 2
    assert "data set 'gone', which is not known here" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["", "{}", '{"format": 99}', "[1]", None])
def test_a_damaged_description(
    tmp_path: Path, damage: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_alone(["--model", "mlp", *SHORT], tmp_path / "run")
    (run / "run.json").unlink()
    if damage is not None:
        (run / "run.json").write_text(damage)
    capsys.readouterr()
    assert cli.run(["evaluate", str(run)]) == 2
    said = capsys.readouterr().err.strip()
    assert "run.json does not say what the run was made of" in said
    assert len(said.splitlines()) == 1


def test_other_versions_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", "mlp", "--stages", "2", "--epochs", "1", *EVERY]
    train_until(15, options, tmp_path / "run", monkeypatch)
    file = tmp_path / "run" / "run.json"
    content = json.loads(file.read_text())
    content["versions"]["torch"] = "2.10.0"
    file.write_text(json.dumps(content))
    train_alone(options, tmp_path / "run")
    assert "other versions" in (said := capsys.readouterr().err)
    assert "torch (2.10.0 then" in said


def test_the_digest_of_code_follows_imports_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("from parts.layers import layer\nfrom . import near\n")
    (tmp_path / "near.py").write_text("x = 1\n")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "__init__.py").write_text("")
    (tmp_path / "parts" / "layers.py").write_text("from .deep import deepest\n")
    (tmp_path / "parts" / "deep.py").write_text("deepest = 1\n")
    (tmp_path / "unused.py").write_text("y = 1\n")
    digest = Source.of_file(tmp_path / "net.py").digest
    for name, counts in (("unused", False), ("near", True), ("parts/deep", True)):
        path = tmp_path / f"{name}.py"
        text = path.read_text()
        path.write_text(text + "z = 2\n")
        assert (Source.of_file(tmp_path / "net.py").digest != digest) == counts, name
        path.write_text(text)
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path, copy, ignore=lambda *_: ["copy"])
    assert Source.of_file(copy / "net.py").digest == digest


def test_data_are_described_by_shape_and_content() -> None:
    data = load_dataset("digits", root=None, seed=0)
    described = describe_data(data)
    assert described == describe_data(load_dataset("digits", root=None, seed=1))
    assert json.loads(json.dumps(described)) == described
    fewer = describe_data(data.first(100))
    assert "train samples (1442 then, 100 now)" in data_differences(described, fewer)
    data.test_x[3] += 1
    (said,) = data_differences(described, describe_data(data))
    assert "content" in said


def test_a_description_is_read_back(tmp_path: Path) -> None:
    run = train_alone(["--model", "mlp", *SHORT], tmp_path / "run")
    described = Description.read(run)
    assert described.info.sample_shape == (1, 8, 8)
    assert described.model.code is None
    assert described.versions["torch"] == torch.__version__.partition("+")[0]


def test_a_registered_model_has_its_scripts_code(tmp_path: Path) -> None:
    """A script that registers a model is that model's source."""
    script = tmp_path / "own.py"
    script.write_text(
        "import sys\nfrom pipelocal import MODELS, cli\nfrom pipelocal.models.mlp import mlp\n"
        "@MODELS.register('mine')\ndef mine(shape, classes):\n    return mlp(shape, classes)\n"
        "cli.main(sys.argv[1:])\n"
    )
    command = [sys.executable, str(script), "train", "--model", "mine", *SHORT, "--plain"]
    subprocess.run([*command, "--out", str(tmp_path / "run")], check=True, timeout=PATIENCE_S)
    assert Description.read(tmp_path / "run").model.file == str(script)
