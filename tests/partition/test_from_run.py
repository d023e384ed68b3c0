"""``--balance RUN``: a cut by what the stages of a run took."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelocal import PARTITIONERS, cli
from pipelocal.errors import UserError
from pipelocal.partition.cost_model import balanced
from pipelocal.partition.cut import Cut
from pipelocal.partition.from_run import Took, corrected, stages_of
from tests.partition.test_balance import NOTHING, model_of

SHAPE = (1, 8, 8)
UNITS = ["a", "b", "c", "d", "e", "f"]
TRAIN = ["train", "--model", "mlp", "--objective", "greedy", "--epochs", "2", "--plain"]


def a_run(folder: Path, stages: dict[str, list[float]]) -> Path:
    """A finished run whose stages worked so many seconds a sample, in window after window."""
    folder.mkdir()
    summary = [{"stage": k, "units": list(names)} for k, names in enumerate(stages, start=1)]
    (folder / "summary.json").write_text(json.dumps({"stages": summary}))
    records = [
        {
            "event": "train",
            "stage": stage,
            "busy_fraction": 0.5,
            "samples_per_second": 0.5 / seconds,
        }
        for stage, windows in enumerate(stages.values(), start=1)
        for seconds in windows
    ]
    records.append({"event": "evaluate", "stage": 1})
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in records))
    description = {"data": {"sample_shape": list(SHAPE)}}
    (folder / "run.json").write_text(json.dumps(description))
    return folder


def test_what_stages_took_is_the_median_of_the_later_windows(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", {"abc": [90.0, 1.0, 2.0, 7.0], "def": [4.0]})
    first, second = stages_of(run, UNITS, SHAPE)
    assert (first.cut, second.cut) == (Cut(start=0, stop=3), Cut(start=3, stop=6))
    assert first.seconds == pytest.approx(2.0)
    assert second.seconds == pytest.approx(4.0)


def test_the_slower_half_gets_fewer_units() -> None:
    """Units that are said to cost the same, on a second device of a fifth of the speed."""
    unit = replace(NOTHING, forward_s=1.0, backward_s=2.0)
    head = replace(NOTHING, forward_s=0.25, backward_s=0.25)
    model = model_of([unit] * 6, [head] * 6, reconcile=False)
    expected = model.seconds(0, 3)
    took = [
        Took(Cut(start=0, stop=3), expected),
        Took(Cut(start=3, stop=6), 5 * model.seconds(3, 6)),
    ]
    shown = corrected(model, took)
    assert shown.seconds(0, 3) == pytest.approx(expected)
    assert shown.seconds(3, 6) == pytest.approx(5 * model.seconds(3, 6))
    assert shown.memory_bytes(0, 3) == model.memory_bytes(0, 3)
    cuts = balanced(shown, 2, balance="time")
    assert [cut.stop for cut in cuts] == [4, 6]
    assert [cut.stop for cut in balanced(model, 2, balance="time")] == [3, 6]


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda run: (run / "summary.json").unlink(), "no finished run, which has summary.json"),
        (lambda run: (run / "summary.json").write_text("{"), "no finished run"),
        (lambda run: (run / "metrics.jsonl").write_text(""), "stage 1 .* no training record"),
    ],
)
def test_what_is_no_finished_run_is_refused(tmp_path: Path, spoil: Any, match: str) -> None:
    run = a_run(tmp_path / "run", {"abc": [1.0], "def": [1.0]})
    spoil(run)
    with pytest.raises(UserError, match=match):
        stages_of(run, UNITS, SHAPE)


def test_a_run_of_another_model_is_refused(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", {"abc": [1.0], "def": [1.0]})
    with pytest.raises(UserError, match=r"units are a, b, c, d, e, f, and here they are x, y"):
        stages_of(run, ["x", "y"], SHAPE)


def test_a_run_of_other_samples_is_refused(tmp_path: Path) -> None:
    """A plan for images of 32 pixels would be cut by what stages took of 8."""
    run = a_run(tmp_path / "run", {"abc": [1.0], "def": [1.0]})
    with pytest.raises(UserError, match=r"shape \[1, 8, 8\], and here they are \[3, 32, 32\]"):
        stages_of(run, UNITS, (3, 32, 32))


def test_a_folder_that_only_rank_0_sees_is_no_error_of_names() -> None:
    PARTITIONERS.check("runs/elsewhere")
    with pytest.raises(UserError, match=r"unknown partitioner 'tme'.*did you mean 'time'"):
        PARTITIONERS.check("tme")


def test_a_run_is_cut_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And where stage 1 is said to have been slow, it gets fewer units."""
    first, second = tmp_path / "first", tmp_path / "second"
    options = ["--log-every", "5", "--cut", "5,1"]
    assert cli.run([*TRAIN, *options, "--out", str(first)]) == 0
    lines = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    for record in lines:
        if record["event"] == "train":
            record["samples_per_second"] = 10.0 if record["stage"] == 1 else 1000.0
            record["busy_fraction"] = 0.5
    (first / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert cli.run([*TRAIN, "--stages", "2", "--balance", str(first), "--out", str(second)]) == 0
    stages = json.loads((second / "summary.json").read_text())["stages"]
    assert len(stages[0]["units"]) < 5
    assert cli.run([*TRAIN, "--balance", str(tmp_path), "--out", str(tmp_path / "no")]) == 2
    assert "no finished run" in capsys.readouterr().err
