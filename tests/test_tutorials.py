"""The tutorials' code runs as it stands in the notebooks, and the outputs of all of it are stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

TUTORIALS = sorted((Path(__file__).parents[1] / "docs" / "tutorials").glob("*.ipynb"))
SLOW = {"own-data", "read-a-timeline"}


def code_cells(notebook: Path) -> list[dict[str, Any]]:
    cells = json.loads(notebook.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def some_slow() -> list[Any]:
    marks = {path: pytest.mark.slow if path.stem in SLOW else () for path in TUTORIALS}
    return [pytest.param(path, marks=mark, id=path.stem) for path, mark in marks.items()]


@pytest.mark.parametrize("notebook", some_slow())
def test_its_code_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": notebook.stem}
    for cell in code_cells(notebook):
        exec(compile("".join(cell["source"]), notebook.name, "exec"), names)


@pytest.mark.parametrize("notebook", TUTORIALS, ids=lambda path: path.stem)
def test_it_was_executed_whole(notebook: Path) -> None:
    """With ``python docs/notebooks.py``, in order and to its end, without an error."""
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert kinds <= {"stream", "display_data", "execute_result"}
    assert len(notebook.read_bytes()) < 150_000
