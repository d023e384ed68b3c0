"""Runs side by side, in a terminal, as a page and as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelocal import cli
from pipelocal.run.summary import known
from tests.report.parsed import Page

Copied = Callable[..., Path]


@pytest.fixture
def three(copied: Copied) -> list[Path]:
    """The same run thrice: as it was, with other options and a worse end, and without an end."""

    def worse(summary: dict[str, Any]) -> None:
        summary["eval"]["accuracy"] = 0.125

    one, two, three = copied("one"), copied("two<b>", edit=worse), copied("three")
    config = two / "config.toml"
    config.write_text(config.read_text().replace("lr = 0.02", "lr = 0.5") + "clip_norm = 1.5\n")
    (three / "summary.json").unlink()
    return [one, two, three]


def test_a_table_of_figures_and_of_options(
    three: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["compare", *map(str, three)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    lines = (re.split(r"\s{2,}", line.strip()) for line in out.splitlines())
    rows = {name: cells for name, *cells in lines}
    summary = json.loads((three[0] / "summary.json").read_text())
    own = known(summary["eval"]["accuracy"])
    assert rows["accuracy, last head"] == [own, "0.1250", own]
    assert rows["batches"] == ["30", "30", "30, not finished"]
    assert rows["sent"][-1] == "-"
    assert rows["lr"] == ["0.02", "0.5", "0.02"]
    assert rows["clip_norm"] == ["-", "1.5", "-"]
    assert "momentum" not in rows
    assert "out" not in rows


def test_json_has_the_summaries_figures(
    three: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["compare", *map(str, three), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["run"] for run in found["runs"]] == [str(path) for path in three]
    assert [run["finished"] for run in found["runs"]] == [True, True, False]
    for run, path in zip(found["runs"][:2], three, strict=False):
        summary = json.loads((path / "summary.json").read_text())
        for name in ("steps", "seconds", "samples_per_second", "eval", "ensemble", "best_head"):
            assert run[name] == summary[name]
        assert run["sent_bytes"] == sum(stage["sent_bytes"] for stage in summary["stages"])
    assert found["options"] == {"lr": ["0.02", "0.5", "0.02"], "clip_norm": ["-", "1.5", "-"]}
    assert found["differences"] == []


def test_a_page_with_every_run_in_each_picture(three: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "compare.html"
    assert cli.run(["compare", *map(str, three), "--html", str(file)]) == 0
    page = Page.read(file)
    assert page.tables["Options that differ"][0] == ["", "one", "two<b>", "three"]
    assert "b" not in page.seen
    assert page.seen.count("svg") == 7
    for run in ("one", "two<b>", "three"):
        told = [text for text in page.texts["desc"] if run in text]
        assert len(told) == 7


def test_changed_code_is_said(three: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    file = three[1] / "run.json"
    content = json.loads(file.read_text())
    content["model"]["code"] = "another"
    content["versions"]["torch"] = "1.0"
    file.write_text(json.dumps(content))
    assert cli.run(["compare", *map(str, three[:2])]) == 0
    out = capsys.readouterr().out
    assert f"{three[1]} and {three[0]}: the model: its code" in out
    assert "torch 1.0, not" in out


def test_bad_input_ends_in_one_line(
    three: list[Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    one = str(three[0])
    for arguments, wanted in (
        ([one], "give the folders of two runs or more"),
        ([one, str(tmp_path / "none")], "none is no run folder"),
        ([one, one, "--html", str(tmp_path)], "cannot be written"),
    ):
        assert cli.run(["compare", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert wanted in line
