"""The worked examples of the documentation run as they stand there."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from pipelocal import public
from tests.launching import PATIENCE_S, launch, python

DOCS = Path(__file__).parents[1] / "docs"


def python_blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(), re.DOTALL)


def train_in(folder: Path, options: Sequence[str]) -> str:
    """Train in a folder, in a process of its own; what it says."""
    arguments = ["train", *options, "--plain", "--out", "run"]
    ranks = launch(folder / "log", arguments, 1, lambda _: os.chdir(folder))
    assert ranks.wait() == [0], ranks.output()
    return ranks.output()


def test_a_new_partition_of_a_new_model_in_under_forty_lines(tmp_path: Path) -> None:
    (example,) = python_blocks("partitions.md")
    assert len(example.splitlines()) < 40
    (tmp_path / "my_partition.py").write_text(example)
    said = python(tmp_path / "my_partition.py")
    assert said.splitlines()[-1] == "[['0', '1', '2', '3'], ['4'], ['5']]"


@pytest.mark.slow
def test_a_model_by_the_names_of_its_units(tmp_path: Path) -> None:
    example = next(block for block in python_blocks("models.md") if "def resnet34" in block)
    (tmp_path / "mine.py").write_text(example)
    options = "--model mine.py:resnet34 --data synthetic --objective greedy --stages 5"
    arguments = [*options.split(), "--max-steps", "1", "--batch-size", "2", "--evaluate-every", "9"]
    said = train_in(tmp_path, arguments)
    assert "5 stage(s)" in said


def test_a_closed_form_of_one_s_own(tmp_path: Path) -> None:
    (example,) = python_blocks("bp-free.md")
    (tmp_path / "mine.py").write_text(example)
    options = "--model mine.py:leaky --stages 2 --bp-free --max-steps 6"
    said = train_in(tmp_path, options.split())
    assert "2 stage(s)" in said


def test_data_of_one_s_own(tmp_path: Path) -> None:
    (example,) = python_blocks("data.md")
    (tmp_path / "waves.py").write_text(example)
    said = python(tmp_path / "waves.py")
    assert float(said.splitlines()[-1]) > 0.7


def test_what_can_be_done_with_a_run(tmp_path: Path) -> None:
    (tmp_path / "use.py").write_text("\n".join(python_blocks("using-a-run.md")))
    said = python(tmp_path / "use.py")
    assert "4 heads" in said


def test_own_model_head_distance_and_data_set(tmp_path: Path) -> None:
    """The blocks of the guide, put together, are a file that the command line takes."""
    (tmp_path / "mine.py").write_text("\n".join(python_blocks("extending.md")))
    options = "--model mine.py:tiny --data mine.py:stripes --head mine.py:Hidden --max-steps 6"
    options += " --objective sgr --distance mine.py:manhattan --log mine.py:Best"
    said = train_in(tmp_path, options.split())
    assert "accuracy" in said.splitlines()[-1]
    assert "given up" not in said
    assert json.loads((tmp_path / "run" / "best.json").read_text()).keys() == {"1", "2", "3", "4"}


def test_every_ready_task_and_one_of_one_s_own(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile("\n".join(python_blocks("tasks.md")), "tasks.md", "exec"), {"__name__": "tasks"})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    shown = {" ".join(w for w in line if w[0].isalpha()): line for line in lines}
    for name, least in (("classification", 0.7), ("multi-label", 0.8), ("regression", 0.7)):
        assert float(shown[name][1]) > least
    assert float(shown["next token"][2]) < 8
    assert float(shown["segmentation"][1]) > 0.6
    assert float(shown["quantiles"][1]) < 0.3


def pages() -> list[Path]:
    root = DOCS.parent
    folders = (DOCS, root / "benchmarks", root / "launch")
    found = [page for folder in folders for page in folder.rglob("*.md")]
    return [*root.glob("*.md"), *found, *(DOCS / "tutorials").glob("*.ipynb")]


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as they are made of them."""
    found = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in found}


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(DOCS.parent)))
def test_no_link_is_dead(page: Path) -> None:
    """Of those to files and headings here; pages elsewhere are not asked."""
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        there = page.parent / name if name else page
        assert there.exists(), link
        if anchor:
            assert anchor in headings(there), link


def test_the_readme_is_short() -> None:
    assert len((DOCS.parent / "README.md").read_text().splitlines()) <= 150


def test_the_site_builds_without_a_warning() -> None:
    """And its pages are all that there are."""
    for module in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(module)
    root = DOCS.parent
    command = [sys.executable, str(DOCS / "build_site.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    reference = (root / "build" / "site" / "docs" / "reference.html").read_text()
    for name in public.__all__:
        if callable(getattr(public, name)):
            assert re.search(rf'id="pipelocal\.(\w+\.)*{name}"', reference), name
    shown = (root / "mkdocs.yml").read_text()
    for page in pages():
        name = str(page.relative_to(root).with_suffix(".md"))
        assert name in shown or "tests" in page.parts, page


def test_the_readmes_picture_shows_what_the_benchmarks_found() -> None:
    pytest.importorskip("matplotlib")
    drawing = spec_from_file_location("pictures", DOCS / "pictures.py")
    assert drawing is not None
    assert drawing.loader is not None
    pictures = module_from_spec(drawing)
    drawing.loader.exec_module(pictures)
    shown = re.findall(r"<text[^>]*>([^<]*)</text>", (DOCS / "pictures/against-bp.svg").read_text())
    drawn = re.findall(r"<text[^>]*>([^<]*)</text>", pictures.against_bp())
    assert shown == drawn, "make pictures"
    assert "1.00" in shown
