"""Every script of docs/gallery prints the same figure on 1 and 2 ranks, and it is the one that is told."""

from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import pipelocal
from pipelocal.system.torchvision import import_torchvision
from tests.launching import run_script

GALLERY = Path(__file__).parents[1] / "docs" / "gallery"
SLOW = {
    "encoder.py",
    "fine_tuning.py",
    "gpt2.py",
    "image_folder.py",
    "multi_label.py",
    "timm_model.py",
    "unet.py",
}
"""Scripts that take more than some seconds, or want a package that the tests do not."""
NEAR = 0.1
"""How far a figure may be from the one that is told: kinds of CPUs differ in the last bits of a sum, and
training makes more of it."""


def scripts() -> list[Any]:
    names = sorted(path.name for path in GALLERY.glob("*.py"))
    return [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW else (), id=name)
        for name in names
    ]


def packages(script: Path) -> set[str]:
    """The packages that a script imports."""
    nodes = list(ast.walk(ast.parse(script.read_text())))
    modules = [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    modules += [each.name for node in nodes if isinstance(node, ast.Import) for each in node.names]
    return {module.partition(".")[0] for module in modules if module is not None}


def told(text: str) -> dict[str, float]:
    """The figure in a docstring or a row of the table."""
    (found,) = re.findall(r"\{.*?\}", text)
    figure: dict[str, float] = json.loads(found)
    return figure


def figures_of(source: Path, folder: Path, size: int) -> list[dict[str, float]]:
    """Run a script, or a folder's ``run.py``, in a copy on so many ranks; what each of them prints last."""
    import_torchvision()  # once, and not in every forked rank
    copy = folder / str(size)
    if source.is_dir():
        shutil.copytree(source, copy)
        script = copy / "run.py"
    else:
        copy.mkdir()
        script = Path(shutil.copy(source, copy))
    run_script(script, size)
    logs = [copy / f"log-{size}" / f"rank-{rank}.log" for rank in range(size)]
    return [json.loads(log.read_text().splitlines()[-1]) for log in logs]


@pytest.mark.parametrize("name", scripts())
def test_the_same_figure_on_1_and_2_ranks(name: str, tmp_path: Path) -> None:
    for package in packages(GALLERY / name):
        pytest.importorskip(package)
    figures = [each for size in (1, 2) for each in figures_of(GALLERY / name, tmp_path, size)]
    assert figures[1:] == figures[:1] * 2
    docstring = ast.get_docstring(ast.parse((GALLERY / name).read_text()))
    assert docstring is not None
    assert figures[0] == pytest.approx(told(docstring), abs=NEAR, rel=NEAR)


@pytest.mark.parametrize("name", sorted(SLOW))
def test_a_slow_script_runs_on_2_ranks(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To its end, with two batches in place of all."""
    for package in packages(GALLERY / name):
        pytest.importorskip(package)
    import_torchvision()
    fit = pipelocal.Pipeline.fit

    def short(self: pipelocal.Pipeline, *data: Any, **given: Any) -> dict[str, Any]:
        return fit(self, *data, **{**given, "epochs": 1, "max_steps": 2})

    monkeypatch.setattr(pipelocal.Pipeline, "fit", short)  # the forked ranks inherit it
    shutil.copy(GALLERY / name, tmp_path)
    said = run_script(tmp_path / name, 2)
    docstring = ast.get_docstring(ast.parse((GALLERY / name).read_text())) or ""
    assert json.loads(said.splitlines()[-1]).keys() == told(docstring).keys()


@pytest.mark.parametrize("name", sorted(path.name for path in GALLERY.glob("*.py")))
def test_the_table_and_the_docstring_tell_the_same(name: str) -> None:
    (row,) = (r for r in (GALLERY / "README.md").read_text().splitlines() if f"[{name}]" in r)
    text = (GALLERY / name).read_text()
    docstring = ast.get_docstring(ast.parse(text)) or ""
    assert told(row) == told(docstring)
    for line in (f"python docs/gallery/{name}", f"--nproc-per-node 2 docs/gallery/{name}"):
        assert line in docstring
    assert len(text.splitlines()) <= 80
