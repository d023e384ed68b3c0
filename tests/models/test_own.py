"""A user's own model file: what it may import, and what is said where it fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from pipelocal.errors import UserError
from pipelocal.models import MODELS, Chain, build_chain

NET = """
from torch import nn
from {beside} import layer
def net(shape, classes):
    return nn.Sequential(layer(4, {width}), nn.Linear({width}, classes))
"""
LAYER = (
    "from torch import nn\ndef layer(a, b): return nn.Sequential(nn.Linear(a, b), nn.{kind}())\n"
)


def _chain(name: str) -> Chain:
    return build_chain(name, input_shape=(4,), classes=3, seed=0)


def _kind(chain: Chain) -> str:
    (unit,) = chain.units
    module = unit.build()
    assert isinstance(module, nn.Sequential)
    return type(module[1]).__name__


@pytest.fixture(autouse=True)
def _same_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])


def _write(folder: Path, *, beside: str = "own_layers", kind: str = "ReLU", width: int = 6) -> str:
    folder.mkdir(parents=True)
    (folder / "net.py").write_text(NET.format(beside=beside, width=width))
    place = folder / f"{beside}.py" if "." not in beside else folder / beside.replace(".", "/")
    if "." in beside:
        place.parent.mkdir()
        place.parent.joinpath("__init__.py").touch()
        place = place.with_suffix(".py")
    place.write_text(LAYER.format(kind=kind))
    return f"{folder / 'net.py'}:net"


def test_a_file_imports_what_lies_beside_it(tmp_path: Path) -> None:
    assert _kind(_chain(_write(tmp_path / "module"))) == "ReLU"
    assert _kind(_chain(_write(tmp_path / "package", beside="own_blocks.layers"))) == "ReLU"


def test_files_of_one_name_in_two_folders_have_their_own_neighbours(tmp_path: Path) -> None:
    """Both ``net.py`` and what they import are called alike; each gets its own, in any order."""
    one = _write(tmp_path / "one", kind="ReLU", width=6)
    two = _write(tmp_path / "two", kind="Tanh", width=7)
    first = _chain(one)
    assert (_kind(first), first.shapes()) == ("ReLU", [(6,)])
    assert (_kind(_chain(two)), _chain(two).shapes()) == ("Tanh", [(7,)])
    assert (_kind(_chain(one)), _chain(one).shapes()) == ("ReLU", [(6,)])
    assert _kind(first) == "ReLU"


def test_a_file_may_be_called_as_an_installed_module(tmp_path: Path) -> None:
    name = _write(tmp_path / "a")
    for stem in ("random", "torch", "my.model"):
        file = Path(name.partition(":")[0]).rename(tmp_path / "a" / f"{stem}.py")
        name = f"{file}:net"
        assert _kind(_chain(name)) == "ReLU"
    assert nn is sys.modules["torch"].nn


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "import no_such_thing",
            "ModuleNotFoundError: No module named 'no_such_thing' ({file}, line 2)",
        ),
        ("1 / 0", "ZeroDivisionError: division by zero ({file}, line 2)"),
        ("def net(:", "SyntaxError: invalid syntax ({file}, line 2)"),
        (
            "def not_net(shape, classes): ...",
            "there is no 'net' in {file}; did you mean 'not_net'?",
        ),
        (
            "def net(shape, classes): return shape[9]",
            "IndexError: tuple index out of range ({file}, line 2)",
        ),
        ("net = 3", "is no function but a int"),
        ("import torch\nnet = lambda s, c: torch.empty(2) @ torch.empty(3)", "({file}, line 3)"),
    ],
)
def test_what_fails_in_the_file_is_told_with_its_line(
    tmp_path: Path, content: str, said: str
) -> None:
    file = tmp_path / "own.py"
    file.write_text(f"\n{content}\n")
    with pytest.raises(UserError) as error:
        _chain(f"{file}:net")
    assert said.format(file=file) in str(error.value)
    assert "give package.module:function" not in str(error.value)


def test_what_fails_beside_the_file_is_told_with_that_line(tmp_path: Path) -> None:
    name = _write(tmp_path / "a")
    (tmp_path / "a" / "own_layers.py").write_text("\n\nraise OSError('no weights')\n")
    with pytest.raises(UserError, match=r"OSError: no weights \(.*own_layers.py, line 3\)"):
        _chain(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere.py:net", "there is no Python file at nowhere.py"),
        ("no_package.models:net", "there is no module 'no_package'"),
        ("json.no_part:net", "there is no module 'json.no_part'"),
        (f"{'x' * 300}.py:net", "cannot be imported: File name too long"),
    ],
)
def test_what_is_not_there(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        _chain(name)


def test_a_file_without_a_function() -> None:
    with pytest.raises(UserError, match=r"name the function too, as in net\.py:net"):
        MODELS.check("net.py")


def test_from_the_command_line(tmp_path: Path) -> None:
    """The console script has neither the current folder nor the file's on its path."""
    _write(tmp_path / "nets")
    (tmp_path / "nets" / "net.py").write_text(
        (tmp_path / "nets" / "net.py").read_text().replace("layer(4,", "nn.Flatten(), layer(64,")
    )
    arguments = ["train", "--model", "nets/net.py:net", "--stages", "2", "--max-steps", "1"]
    command = "import sys; from pipelocal.cli import main; sys.path.pop(0); main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", command, *arguments, "--out", "run"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
