"""The report of a run: one file that loads nothing, with the figures of the run's own record."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelocal import cli
from pipelocal.report.record import RunRecord
from pipelocal.report.report import report_text
from pipelocal.run.summary import known
from pipelocal.telemetry.formats import format_bytes
from tests.report.conftest import HOSTILE
from tests.report.parsed import Page


@pytest.fixture(scope="module")
def page(made: Path) -> Page:
    assert cli.run(["report", str(made)]) == 0
    return Page.read(made / "report.html")


def test_the_command_names_the_file(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["report", str(made)]) == 0
    assert capsys.readouterr().out == f"{made / 'report.html'}\n"


def test_every_stage_and_section_is_there(page: Page) -> None:
    assert page.texts["h2"] == [
        *("What stands out", "Curves", "Results", "The cut", "Time", "Bytes and memory"),
        *("Agreement of stages", "Configuration", "Environment"),
    ]
    assert {"figures", "curves", "cut", "time"} <= set(page.ids)
    for caption in (
        "The last figures of every stage's own head",
        "Milliseconds of a training batch",
    ):
        assert [row[0] for row in page.tables[caption][1:]] == ["1", "2", "3"]
    for name in ("figure", "desc"):  # every picture has a caption, and is told in words
        assert page.seen.count(name) == page.seen.count("svg") >= 9
    assert page.seen.count("table") == page.seen.count("caption") == len(page.tables)


def test_names_are_text_and_nothing_else(made: Path, page: Page) -> None:
    """Unit names, and the run's own path, come from the user."""
    assert page.seen.count("script") == 1
    assert "b" not in page.seen
    (row,) = (
        row
        for row in page.tables["Multiply-adds are of one sample's forward pass"]
        if "2" in row[0]
    )
    assert row[2] == HOSTILE
    assert page.texts["h1"] == [str(made)]
    raw = (made / "report.html").read_text()
    assert "<script src" not in raw
    assert re.findall(r"(?:url\(|@import)", raw) == []


def test_the_figures_are_those_of_the_summary(made: Path, page: Page) -> None:
    summary = json.loads((made / "summary.json").read_text())
    cards = dict(zip(page.texts["dt"], page.texts["dd"], strict=True))
    assert cards["accuracy, last head"] == known(summary["eval"]["accuracy"])
    assert cards["accuracy, ensemble"] == known(summary["ensemble"]["accuracy"])
    assert cards["batches"] == "30"
    results = page.tables["The last figures of every stage's own head"]
    for row, stage in zip(results[1:], summary["stages"], strict=True):
        figures = dict(zip(results[0], row, strict=True))
        assert figures["accuracy, evaluation"] == known(stage["figures"]["eval"]["accuracy"])
        assert figures["loss, evaluation"] == known(stage["figures"]["eval"]["loss"])
    (edges,) = (rows for caption, rows in page.tables.items() if caption.startswith("Bytes of"))
    sent = [re.search(r"\(([\d,]+)\)", row[2]) for row in edges[1:]]
    assert [int(found[1].replace(",", "")) for found in sent if found] == [
        stage["sent_bytes"] for stage in summary["stages"][:-1]
    ]
    (memory,) = (rows for caption, rows in page.tables.items() if caption.startswith("Memory"))
    peaks = [format_bytes(stage["peak_memory_bytes"]) for stage in summary["stages"]]
    assert [row[2] for row in memory[1:]] == peaks


def test_the_cut_says_what_the_heads_cost(made: Path, page: Page) -> None:
    """32 x 32 multiply-adds and a classifier of 32 x 10, as the model has them."""
    rows = page.tables["Multiply-adds are of one sample's forward pass"]
    last = dict(zip(rows[0], rows[-1], strict=True))
    assert last["units"] == "third"
    assert rows[-1][4:] == ["1,056", "330", "1,024", "320", "24%"]
    assert RunRecord(str(made)).total_steps == 30


def test_options_that_differ_are_marked(page: Page) -> None:
    changed = page.tables["Options that differ from their defaults"]
    names = [row[0] for row in changed[1:]]
    given = {"model", "stages", "max_steps", "lr", "log_every", "trace", "plain", "objective"}
    assert set(names) == given
    assert names == page.texts["mark"]
    assert ["lr", "0.02", "0.1"] in changed
    rest = page.tables["Options at their defaults, and where the run is"]
    assert ["momentum", "0.9", "0.9"] in rest


def test_an_unfinished_run_has_a_report_that_says_so(stopped: Path) -> None:
    """Its summary is missing; what its stages are made of is known since it began."""
    page = Page(report_text(RunRecord(str(stopped))))
    assert (
        "This run has not ended: its stages have reported 24 of 69 training batches." in page.text
    )
    assert "Bytes and memory" not in page.texts["h2"]
    rows = page.tables["Multiply-adds are of one sample's forward pass"]
    assert [row[0] for row in rows[1:]] == ["1", "2", "3"]
    assert all("layer" in row[2] and row[4] != "-" for row in rows[1:])


def test_a_run_that_has_only_begun(copied: Callable[..., Path]) -> None:
    """Nor does a line that is being written do harm."""
    run = copied()
    (run / "summary.json").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([*lines[:3], lines[3][:40]]))
    (run / "run.json").unlink()
    page = Page(report_text(RunRecord(str(run))))
    assert "0 of 30 training batches" in page.text
    (run / "metrics.jsonl").unlink()
    assert "0 training batches" in Page(report_text(RunRecord(str(run)))).text


@pytest.mark.parametrize("summary", ["", "{", "[]", "{}"])
def test_bad_input_ends_in_one_line(
    copied: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path, summary: str
) -> None:
    run = copied()
    (run / "summary.json").write_text(summary)
    for arguments, wanted in (
        (["report", str(run)], "summary.json cannot be read"),
        (["report", str(tmp_path)], "is no run folder"),
        (["report", str(tmp_path / "none")], "is no run folder"),
    ):
        assert cli.run(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert wanted in line


def test_a_pipeline_s_run_has_its_own_defaults(copied: Callable[..., Path]) -> None:
    """It describes what it was not given as None, which is no difference."""
    run = copied()
    text = 'python = true\nmodel = "Net"\ndata = "own"\nobjective = "greedy"\noptimizer = "None"\nseed = 3\n'
    (run / "config.toml").write_text(text)
    changed = Page(report_text(RunRecord(str(run)))).texts["mark"]
    assert "seed" in changed
    assert not {"optimizer", "objective"} & set(changed)
