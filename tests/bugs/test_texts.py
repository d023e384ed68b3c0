"""Text that carries something: paths, names of units, files of options. The docstrings give the cause."""

import io
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
from torch import nn

from pipelocal import cli
from pipelocal.checkpoint.run_folder import RunFolder
from pipelocal.config import EvaluateConfig, PlanConfig, TrainConfig
from pipelocal.config.checks import validate
from pipelocal.config.command_line import parse
from pipelocal.config.saved import options_of
from pipelocal.config.training import train
from pipelocal.data import DATASETS, ArrayDataset, DatasetEntry, data_info, load_dataset
from pipelocal.errors import DataError, UserError
from pipelocal.models import Chain
from pipelocal.results.evaluate import evaluate
from tests.launching import PATIENCE_S

ODD_NAMES = """
from collections import OrderedDict
from torch import nn
NAMES = ["3x3,a", "3x3,b", "\\u00e9 \\u6f22\\u5b57", "\\u05e9\\u05dc [bold]x[/bold]", "#'\\"\\\\", " , "]
def net(shape, classes):
    first = nn.Sequential(nn.Flatten(), nn.Linear(64, 32))
    rest = [nn.Linear(32, 32) for _ in NAMES[1:]]
    units = zip(NAMES, [first, *rest])
    return nn.Sequential(OrderedDict([*units, ("the, end", nn.Linear(32, classes))]))
"""


def _parsed(*arguments: str) -> TrainConfig:
    command = parse(["train", *arguments], options_of=lambda _: TrainConfig())
    assert isinstance(command, TrainConfig)
    return command


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    files = [tmp_path / "a.toml", tmp_path / "b.toml"]
    for seed, file in enumerate(files, start=1):
        file.write_text(f"seed = {seed}\nepochs = {seed}\n")
    return [str(file) for file in files]


def test_the_first_of_two_configs_counted(two: list[str]) -> None:
    """The file was looked for by hand, before tyro, which takes the last of everything."""
    a, b = two
    assert _parsed("--config", a, "--config", b).seed == 2
    assert _parsed(f"--config={a}", "--config", b, "--epochs", "7").seed == 2
    assert _parsed("--config", b, f"--config={a}", "--seed", "5").seed == 5
    # The value of another option is no file of options.
    config = _parsed("--out=--config", "--config", a)
    assert (config.out, config.seed) == ("--config", 1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xef\xbb\xbfseed = 3\r\n", None),
        (b"seed = 3\r\nepochs = 4\r\n", None),
        ("seed = 3".encode("utf-16"), "is not written in UTF-8"),
        ("data = 'é'".encode("latin-1"), "is not written in UTF-8"),
        (b"[train]\nseed = 3\n", r"no table such as \[train\]"),
        (b"seed = 3\nseed = 4\n", "is not valid TOML"),
        (b"max_steps = 3\nmax-steps = 4\n", "'max_steps' stands there twice"),
        (b"config = 'other.toml'\n", "there is no option 'config'"),
    ],
)
def test_files_of_options(tmp_path: Path, content: bytes, said: str | None) -> None:
    """A mark that Windows puts before UTF-8 was an invalid statement; a table was no such option."""
    file = tmp_path / "options.toml"
    file.write_bytes(content)
    if said is None:
        assert _parsed("--config", str(file)).seed == 3
        return
    with pytest.raises(UserError, match=said):
        _parsed("--config", str(file))


def test_a_tilde_was_the_name_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a shell puts the home folder for it, and only where a word begins with it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "options.toml").write_text('out = "~/run"\ndata-root = "~/$HOME/~"\n')
    config = _parsed("--config=~/options.toml", "--model=~/net.py:net", "--resume=~/old")
    assert config.out == f"{tmp_path}/run"
    assert (
        config.data_root == f"{tmp_path}/$HOME/~"
    )  # the rest is the shell's, and the file system's
    assert config.model == f"{tmp_path}/net.py:net"
    assert config.resume == f"{tmp_path}/old"
    assert _parsed("--out=~nobody-of-this-name/x").out == "~nobody-of-this-name/x"
    plan = parse(["plan", "--plot=~/a.png"], options_of=lambda _: TrainConfig())
    assert isinstance(plan, PlanConfig)
    assert plan.plot == f"{tmp_path}/a.png"
    command = parse(["evaluate", "~/run"], options_of=lambda _: TrainConfig())
    assert isinstance(command, EvaluateConfig)
    assert command.run == f"{tmp_path}/run"


@pytest.mark.parametrize("option", ["--out", "--data-root", "--resume", "--model", "--config"])
def test_a_blank_path_was_the_current_folder(option: str) -> None:
    """As that of a shell's variable that is not set."""
    with pytest.raises(UserError, match=f"{option} '' is blank"):
        _parsed(option, "")


@pytest.mark.parametrize(
    "name", ["データ\u3000一", "e\u0301", "👩\u200d🔬", "שלום", "a 'b\" #[c]", "\u00a0", "x\\"]
)
def test_names_in_any_script(tmp_path: Path, name: str) -> None:
    """``str.isprintable`` is false for every space but one, and for what joins emoji."""
    out = tmp_path / name
    train(TrainConfig(model="mlp", max_steps=1, plain=True, out=str(out)), stream=io.StringIO())
    assert options_of(RunFolder.open(str(out))).out == str(out)
    evaluate(EvaluateConfig(run=str(out)))


@pytest.mark.parametrize("bad", ["a\nb", "a\tb", "\x7f", "\u2028", "\udcff"])
def test_what_no_line_can_hold_is_refused(bad: str) -> None:
    with pytest.raises(UserError, match=r"--out .*: give text without line breaks"):
        validate(TrainConfig(out=bad))


def test_names_of_units_were_torn_at_commas(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cuts went from rank 0 to the others, and into snapshots, as text with commas between names."""
    file = tmp_path / "odd.py"
    file.write_text(ODD_NAMES)
    arguments = ["train", "--model", f"{file}:net", "--max-steps", "4", "--plain"]
    out, again = str(tmp_path / "one"), str(tmp_path / "two")
    assert cli.run([*arguments, "--stages", "6", "--snapshot-every", "2", "--out", out]) == 0
    # Another cut, from the snapshot's; and one that was chosen, whose text is in config.toml.
    more = ["--stages", "3", "--balance", "memory", "--resume", out, "--epochs", "2"]
    assert cli.run([*arguments, *more, "--max-steps", "8", "--out", again]) == 0
    cut = options_of(RunFolder.open(again)).cut
    assert cut is not None
    assert cli.run(["evaluate", again]) == 0
    capsys.readouterr()
    assert cli.run([*arguments, "--cut", cut, "--out", str(tmp_path / "three")]) == 0
    assert "3 stage(s)" in capsys.readouterr().out
    assert cli.run(["plan", "--model", f"{file}:net", "--data", "digits", "--stages", "6"]) == 0
    shown = capsys.readouterr().out
    assert "[bold]x[/bold]" in shown  # no markup
    assert r"3x3\,b" in shown


@pytest.mark.parametrize("bad", ["a\nb", "\t", "a\x1b[2J"])
def test_names_of_units_that_tear_a_table_are_refused(bad: str) -> None:
    model = nn.Sequential(OrderedDict([(bad, nn.Linear(4, 4)), ("head", nn.Linear(4, 3))]))
    with pytest.raises(UserError, match=r"unit name .*: give one without line breaks"):
        Chain.from_sequential(model, input_shape=(4,), classes=3)


def _said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.run(list(arguments)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "PIPELOCAL_TRACEBACK" not in said
    return said


def test_paths_that_cannot_be_were_unforeseen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``Path.is_file`` is false for a path that leads nowhere, and raises for one that is too long."""
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    long = "x" * 300
    for path, why in (
        (tmp_path / long, "File name too long"),
        (tmp_path / "file" / "run", "Not a directory"),
        (tmp_path / "loop" / "run", "Too many levels"),
    ):
        train_one = ("train", "--model", "mlp", "--max-steps", "1", "--plain")
        said = _said(capsys, *train_one, "--out", str(path))
        assert f"--out {path} cannot be used ({why}" in said
        assert "--resume" in _said(capsys, *train_one, "--resume", str(path))
        assert f"RUN {path} cannot be used ({why}" in _said(capsys, "evaluate", str(path))
        assert "--to" in _said(capsys, "export", str(tmp_path), "--to", f"{path}.pt")
        assert "--plot" in _said(capsys, "plan", "--model", "mlp", "--plot", f"{path}.png")
    assert "--out /dev/null cannot be used" in _said(capsys, *train_one, "--out", "/dev/null")


def test_help_in_one_column_did_not_end() -> None:
    """The box around an option's help has no room for a letter there, and rich looked for some."""
    done = subprocess.run(
        [sys.executable, "-m", "pipelocal", "train", "--help"],
        env=os.environ | {"COLUMNS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0
    assert "--batch-size" in done.stdout


def test_an_export_wrote_over_its_neighbour(tmp_path: Path) -> None:
    """What was written for the time being was called ``model.tmp``, which may be somebody's."""
    out = tmp_path / "run"
    train(TrainConfig(model="mlp", max_steps=1, plain=True, out=str(out)), stream=io.StringIO())
    (tmp_path / "model.tmp").write_text("mine")
    long = tmp_path / ("x" * 252 + ".pt")
    for file in (tmp_path / "model.pt", long):
        assert cli.run(["export", str(out), "--to", str(file)]) == 0
        assert file.is_file()
    assert (tmp_path / "model.tmp").read_text() == "mine"


def test_a_run_s_own_options_were_called_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run folder's file was read, and complained of, as if ``--config`` had named it."""
    out = tmp_path / "run"
    train(TrainConfig(model="mlp", max_steps=1, plain=True, out=str(out)), stream=io.StringIO())
    with (out / "config.toml").open("a") as file:
        file.write("of_a_later_version = 1\n")
    said = _said(capsys, "evaluate", str(out))
    assert f"error: {out}/config.toml: there is no option 'of_a_later_version'" in said


def test_a_file_of_weights_that_is_not_there_was_no_reason_to_train_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever was wrong with it, the advice was the same."""
    out = tmp_path / "run"
    train(TrainConfig(model="mlp", max_steps=1, plain=True, out=str(out)), stream=io.StringIO())
    file = out / "stages" / "stage-2.pt"
    content = file.read_bytes()
    file.write_bytes(content[:99])
    assert "stage-2.pt is damaged" in _said(capsys, "evaluate", str(out))
    file.unlink()
    said = _said(capsys, "evaluate", str(out))
    assert "stage-2.pt cannot be read (No such file or directory): take the run folder" in said


def test_a_loader_s_error_without_a_file_named_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not every OSError has the name of a file, such as those that a user's own loader raises."""

    def load(_root: Path | None, _seed: int) -> ArrayDataset:
        raise OSError("the server is down")

    entry = DatasetEntry(data_info("digits"), load)
    monkeypatch.setitem(DATASETS._entries, "mine", entry)
    with pytest.raises(DataError, match=rf"{tmp_path} cannot be read \(the server is down\)"):
        load_dataset("mine", root=tmp_path, seed=0)
