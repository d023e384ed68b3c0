"""``file.py:thing`` and ``package.module:thing`` wherever a name is taken, by the real command line."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pipelocal
from pipelocal import cli
from pipelocal.checkpoint.run_folder import RunFolder
from pipelocal.config import TrainConfig
from pipelocal.config.named import REGISTRIES, references
from pipelocal.config.saved import options_of
from pipelocal.references import imported
from tests.interrupted import train_until
from tests.launching import launch, run_ranks
from tests.test_transparency import assert_same_bits, train_alone

OWN = """
from pathlib import Path

import torch
from torch import nn

from pipelocal.data import ArrayDataset, DataInfo, DatasetEntry
from pipelocal.objective import Greedy
from pipelocal.objective.delta_encoding import SUMMARIES
from pipelocal.replicas.compression import COMPRESSIONS
from pipelocal.tasks import Classification
from pipelocal.transport.packing import PACKINGS
from beside import hidden

with Path(__file__).with_name("imports").open("a") as file:
    file.write("x")
USED = set()


def net(shape, classes):
    USED.add("model")
    rows = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 8))
    return nn.Sequential(rows, nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, classes))


class Head(nn.Module):
    def __init__(self, feature_shape, classes):
        super().__init__()
        USED.add("head")
        self.layers = nn.Sequential(nn.Flatten(), hidden(feature_shape), nn.Linear(6, classes))

    def forward(self, x):
        return self.layers(x)


def objective(*_arguments, **_options):
    USED.add("objective")
    return Greedy()


def manhattan(eta, delta):
    USED.add("distance")
    return (eta - delta).abs().sum(1).mean()


INFO = DataInfo(name="waves", sample_shape=(1, 2, 4), classes=3)


def load(root, seed):
    USED.add("data")
    x, y = torch.rand(48, 1, 2, 4), torch.arange(48) % 3
    parts = dict(train_x=x[:32], train_y=y[:32], test_x=x[32:], test_y=y[32:])
    return ArrayDataset(info=INFO, mean=(0.5,), std=(0.3,), **parts)


ENTRY = DatasetEntry(INFO, load)


def adam(named, lr, weight_decay):
    USED.add("optimizer")
    return torch.optim.Adam([p for _, p in named], lr=lr, weight_decay=weight_decay)


def falling(done):
    USED.add("schedule")
    return 1 - done


def rising(progress):
    USED.add("reconcile_schedule")
    return progress


def halves(feature_shape, size, seed):
    USED.add("delta")
    return SUMMARIES.get("bf16")(feature_shape, size, seed)


def packed(shape):
    USED.add("wire")
    return PACKINGS.get("bf16")(shape)


def front(request):
    USED.add("balance")
    return [len(request.chain.units) - request.stages + 1] + [1] * (request.stages - 1)


def squeezed(settings):
    USED.add("compress")
    return COMPRESSIONS.get("bf16")(settings)


def task():
    USED.add("task")
    return Classification(label_smoothing=0.1)


def loss(output, target):
    USED.add("loss")
    return torch.nn.functional.cross_entropy(output, target)


NUMBER = 3
"""
BESIDE = """
import torch
from torch import nn

def hidden(shape):
    return nn.Linear(torch.Size(shape).numel(), 6)
"""
SHORT = ["--model", "mlp", "--stages", "3", "--max-steps", "2", "--batch-size", "16"]
SHORT += ["--train-samples", "32", "--evaluate-every", "9"]
OWN_OBJECTIVE = [*SHORT]
"""Beside one, options of sgr are refused."""
SHORT += ["--objective", "sgr", "--reconcile-every", "1"]
THINGS = {
    "model": "net",
    "data": "ENTRY",
    "objective": "objective",
    "head": "Head",
    "distance": "manhattan",
    "reconcile_schedule": "rising",
    "optimizer": "adam",
    "schedule": "falling",
    "wire": "packed",
    "delta": "halves",
    "balance": "front",
    "compress": "squeezed",
    "task": "task",
    "loss": "loss",
}
APART = ("objective", "balance", "compress", "task")
AT_ONCE = [option for option in THINGS if option not in APART]
"""Of which one run can have all."""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with one of each, in the folder where the test runs; and one beside it."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "parts.py").write_text(OWN)
    (folder / "beside.py").write_text(BESIDE)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "beside", raising=False)
    return folder / "parts.py"


def _given(options: list[str], file: str = "parts.py") -> list[str]:
    words = [(f"--{option.replace('_', '-')}", f"{file}:{THINGS[option]}") for option in options]
    return [word for pair in words for word in pair]


def _used(file: Path) -> set[str]:
    used = imported(f"{file}:USED", "set")
    assert isinstance(used, set)
    return used


def _imports(file: Path) -> int:
    return len(file.with_name("imports").read_text())


def _refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert cli.run(arguments) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1, said
    return said


def test_every_option_that_takes_a_name_is_tested() -> None:
    assert set(THINGS) == set(REGISTRIES)


@pytest.mark.parametrize("option", sorted(set(THINGS) - {"compress", "wire"}))
def test_each_kind(own: Path, option: str) -> None:
    short = OWN_OBJECTIVE if option == "objective" else SHORT
    run = train_alone([*short, *_given([option])], own.parent / "run")
    assert option in _used(own)
    described = RunFolder(run).description()
    kept = {"model": described.model, **described.references}
    assert (option in kept and kept[option].file == str(own)) == (option != "balance")


def test_a_module(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by the console script, which has not the current folder on its path."""
    name = f"parts_{abs(hash(str(own)))}"
    own.rename(own.with_name(f"{name}.py"))
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    run = train_alone([*SHORT, "--head", f"{name}:Head"], own.parent / "run")
    assert RunFolder(run).description().references["head"].code is not None


def test_a_loader_alone(own: Path) -> None:
    """Its sample shape is known when it has loaded; whatever it draws is the run's own."""
    options = [*SHORT, "--data", "parts.py:load"]
    runs = [train_alone(options, own.parent / out) for out in ("one", "other")]
    assert_same_bits(*runs)
    assert cli.run(["evaluate", str(runs[0])]) == 0


def test_what_replicas_compress_and_edges_carry_by(own: Path) -> None:
    options = [*SHORT, "--stages", "2", "--replicas", "2", *_given(["compress", "wire"])]
    run_ranks(own.parent / "ranks", ["train", *options, "--out", "run", "--plain"], 4)
    assert RunFolder("run").description().references.keys() == {"compress", "wire"}


def test_ranks_and_one_process_alike_and_what_is_done_with_the_run(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All at once: a process runs the file once, and finds it where it was moved with the run."""
    options = [*SHORT, *_given(AT_ONCE)]
    run_ranks(own.parent / "ranks", ["train", *options, "--out", "run", "--plain"], 2)
    assert _imports(own) == 2
    alone = train_alone(options, own.parent / "alone")
    assert _imports(own) == 3
    assert_same_bits(alone, own.parent / "run")

    moved = own.parent.rename(own.parent.with_name("moved"))
    elsewhere = moved.with_name("elsewhere")
    elsewhere.mkdir()
    (elsewhere / "parts.py").write_text("raise ImportError('the wrong file')")
    monkeypatch.chdir(elsewhere)
    capsys.readouterr()
    run = str(moved / "run")
    assert cli.run(["evaluate", run, "--json"]) == 0
    out, err = capsys.readouterr()
    summary = json.loads((moved / "run" / "summary.json").read_text())
    assert json.loads(out)["eval_accuracy"] == summary["eval_accuracy"]
    assert cli.run(["export", run, "--to", "m.pt2", "--heads"]) == 0
    assert cli.run(["export", run, "--to", "m.pt", "--heads"]) == 0
    x = torch.rand(2, 1, 2, 4)
    logits = pipelocal.load_with_heads(run).all_logits(x)
    assert torch.equal(pipelocal.load(run)(x), logits[-1])
    torch.testing.assert_close(torch.export.load("m.pt2").module()(x)[0], logits[0])
    assert err == capsys.readouterr().err == ""
    more = ["train", "--resume", run, "--epochs", "2", "--max-steps", "4", "--out", "more"]
    assert cli.run([*more, "--plain"]) == 0
    assert options_of(RunFolder("more")).head == f"{moved}/parts.py:Head"
    assert _imports(moved / "parts.py") == 4


def test_the_weights_alone_need_no_head(own: Path) -> None:
    run = train_alone([*SHORT, *_given(["head", "optimizer"])], own.parent / "run")
    own.unlink()
    pipelocal.load(str(run))
    assert cli.run(["export", str(run), "--to", "m.pt", "--heads"]) == 0


def test_a_plan(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = _given(["model", "data", "head", "delta", "optimizer", "balance"])
    options += ["--objective", "sgr", "--stages", "3", "--device", "meta"]
    assert cli.run(["plan", *options, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["stages"]) == 3
    assert {"model", "head", "balance"} <= _used(own)


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("nowhere.py:thing", "cannot be imported: there is no Python file at nowhere.py"),
        ("no_package.parts:thing", "cannot be imported: there is no module 'no_package'"),
        ("parts.py:manhatten", "there is no 'manhatten' in parts.py; did you mean 'manhattan'?"),
        ("parts.py:NUMBER", "is no function but a int: give one that takes (eta, delta)"),
        ("parts.py:front", "takes (request): give one that takes (eta, delta)"),
        ("parts.py", "name the function too, as in parts.py:parts"),
        ("parts.py:", "names nothing: give package.module:function or file.py:function"),
        ("broken.py:thing", "cannot be imported: ZeroDivisionError: division by zero ({}, line 2)"),
        ("leaving.py:thing", "cannot be imported: SystemExit: 0 ({}, line 2)"),
        ("refusing.py:thing", "'refusing.py:thing': give me a better file"),
    ],
)
def test_what_is_wrong_with_a_reference(
    own: Path, reference: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own.with_name("broken.py").write_text("\n1 / 0\n")
    own.with_name("leaving.py").write_text("\nraise SystemExit(0)\n")
    own.with_name("refusing.py").write_text(
        "import pipelocal\nraise pipelocal.UserError('give me a better file')\n"
    )
    told = _refusal(["train", *SHORT, "--distance", reference, "--out", "run"], capsys)
    assert told.startswith(f"pipelocal: error: distance '{reference}'")
    assert said.format(own.with_name(reference.partition(":")[0])) in told
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("option", "body", "said"),
    [
        ("head", "def f(shape, classes): 1 / 0", "head 'f.py:f': ZeroDivisionError"),
        ("head", "def f(shape, classes): pass", "head 'f.py:f': returned NoneType: return Module"),
        ("data", "def f(root, seed): return 3", "data set 'f.py:f': returned int: return a data"),
        ("data", "def f(root, seed): raise KeyError(3)", "data set 'f.py:f': KeyError: 3 ("),
        ("optimizer", "def f(named): pass", "'f.py:f': returned NoneType: return Optimizer"),
        ("balance", "def f(request): return 1 / 0", "partitioner 'f.py:f': ZeroDivisionError"),
        ("objective", "def f(*a, **b): 1 / 0", "objective 'f.py:f': ZeroDivisionError"),
    ],
)
def test_what_is_wrong_when_it_is_called(
    own: Path, option: str, body: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own.with_name("f.py").write_text(body)
    short = OWN_OBJECTIVE if option == "objective" else SHORT
    told = _refusal(["train", *short, f"--{option}", "f.py:f", "--out", "run"], capsys)
    assert said in told
    assert not Path("run").exists()


def test_what_fails_in_a_batch_is_told_with_its_line(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own.with_name("f.py").write_text("def f(eta, delta):\n    return eta.nothing\n")
    assert cli.run(["train", *SHORT, "--distance", "f.py:f", "--out", "run", "--plain"]) == 1
    assert f"({own.with_name('f.py')}, line 2)" in capsys.readouterr().err


def test_an_import_leaves_generators_and_torch_as_they_were(own: Path) -> None:
    """And draws the same, whatever they are at."""
    text = "import random, numpy, torch\ntorch.set_default_dtype(torch.float64)\n"
    text += "torch.manual_seed(5); torch.set_grad_enabled(False)\n"
    own.with_name("sets.py").write_text(text)
    own.with_name("draws.py").write_text(
        "import random, numpy, torch\ndrawn = (random.random(), numpy.random.rand(), torch.rand(1))\n"
    )
    states = (torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False))
    first = imported("draws.py:drawn", "thing")
    imported("sets.py:torch", "thing")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert str(np.random.get_state(legacy=False)) == str(states[2])
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    torch.rand(1)
    own.with_name("again.py").write_text(own.with_name("draws.py").read_text())
    assert imported("again.py:drawn", "thing") == first
    assert imported("draws.py:drawn", "thing") is first


def test_a_changed_file_is_imported_anew(own: Path) -> None:
    """Python's cached bytecode is taken for a file of the same size that was written in the same second."""
    own.with_name("f.py").write_text("x = 1")
    assert imported("f.py:x", "thing") == 1
    own.with_name("f.py").write_text("x = 2")
    assert imported("f.py:x", "thing") == 2


def test_changed_code_is_refused_where_a_run_goes_on_and_told_where_it_is_used(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where it is not the file itself that changed, but one that it imports."""
    options = [*SHORT, "--max-steps", "6", "--snapshot-every", "1", *_given(["head", "schedule"])]
    train_until(4, options, own.parent / "run", monkeypatch)
    beside = own.with_name("beside.py")
    beside.write_text(BESIDE + "# changed\n")
    command = ["train", *options, "--out", "run", "--plain"]
    told = _refusal(command, capsys)
    assert "have changed: --head (its code); --schedule (its code): give --accept-changes" in told
    assert cli.run([*command, "--accept-changes"]) == 0
    assert cli.run(["evaluate", "run"]) == 0
    assert "the code of" not in capsys.readouterr().err  # what was accepted is what the run is now
    beside.write_text(BESIDE)
    assert cli.run(["export", "run", "--to", "m.pt"]) == 0
    assert "the code of" not in capsys.readouterr().err  # it needs none
    assert cli.run(["evaluate", "run"]) == 0
    said = capsys.readouterr().err
    assert "the code of --head changed: " in said
    assert "--schedule" not in said


def test_a_run_goes_on_however_the_path_is_spelled(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without ``--out``, too, whose name holds no folder of a file."""
    options = ["--max-steps", "6", "--snapshot-every", "1"]
    options += ["--stages", "2", "--batch-size", "16"]
    given = ["model", "data", "head"]
    monkeypatch.setenv("HOME", str(own.parent))
    train_until(4, [*options, *_given(given)], Path("runs/parts-parts-greedy"), monkeypatch)
    assert cli.run(["train", *options, *_given(given, "~/parts.py"), "--plain"]) == 0
    assert "going on after batch" in capsys.readouterr().err
    assert Path("runs/parts-parts-greedy/summary.json").exists()


def test_a_description_of_an_earlier_version(own: Path) -> None:
    """Which knew the code of the model alone."""
    run = train_alone([*SHORT, *_given(["head"])], own.parent / "run")
    content = json.loads((run / "run.json").read_text())
    del content["references"]
    (run / "run.json").write_text(json.dumps(content))
    assert cli.run(["evaluate", str(run)]) == 0


def test_ranks_with_files_of_their_own(own: Path) -> None:
    """Each its copy, alike; one needs no head's file for the last stage, and none of a partitioner."""
    own.with_name("head.py").write_text(OWN)
    copy = own.parent / "copy"
    copy.mkdir()
    for name in ("parts.py", "beside.py"):
        (copy / name).write_text(own.with_name(name).read_text())
    ours = [*SHORT, *_given(["head", "balance"], "head.py"), *_given(["distance"])]
    theirs = [*SHORT, *_given(["head", "balance"], "copy/head.py")]
    theirs += _given(["distance"], "copy/parts.py")
    ends = ["--stages", "2", "--plain", "--out", "run"]

    ranks = launch(own.parent / "r1", [["train", *o, *ends] for o in (ours, theirs)], 2)
    assert ranks.wait() == [0, 0], ranks.output()

    (copy / "parts.py").write_text(OWN + "# another\n")
    (own.parent / "other").mkdir()
    ends[-1] = "other/run"
    ranks = launch(own.parent / "r2", [["train", *o, *ends] for o in (ours, theirs)], 2)
    assert ranks.wait() == [1, 2], ranks.output()
    assert "other code than on rank 0: that of --distance (" in ranks.output(1)


def test_one_rank_s_import_that_fails_ends_all(own: Path) -> None:
    commands = [
        ["train", *SHORT, "--stages", "2", "--plain", "--out", "run", "--schedule", f"{file}:f"]
        for file in ("a/f.py", "b/f.py")
    ]
    for folder, text in (("a", "def f(done): return 1.0"), ("b", "1 / 0")):
        (own.parent / folder).mkdir()
        (own.parent / folder / "f.py").write_text(text)
    ranks = launch(own.parent / "ranks", commands, 2)
    assert ranks.wait() == [1, 2], ranks.output()
    for rank in (0, 1):
        assert "ZeroDivisionError: division by zero" in ranks.output(rank)


def test_references_among_the_options() -> None:
    assert references(TrainConfig()) == {}
    config = TrainConfig(head="a.py:b", compress="c.d:e")
    assert references(config) == {"head": "a.py:b", "compress": "c.d:e"}
