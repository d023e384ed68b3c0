"""The lines of a log: which, and when."""

import io
from dataclasses import replace

import pytest

from pipelocal.telemetry.plain_lines import PlainView
from pipelocal.telemetry.progress import Progress
from tests.telemetry.shown import MEASURED, ROWS, FakeClock, progress


def test_plain_view_writes_these_lines() -> None:
    stream = io.StringIO()
    view = PlainView(stream, clock=FakeClock())
    view.start("mlp in 2 stages")
    view.update(ROWS, progress())
    view.message("saved")
    view.close()
    assert stream.getvalue().splitlines() == [
        "mlp in 2 stages",
        "step 120/240  epoch 2/10  12.0 s left",
        "  1: loss 0.312 acc 0.912 eval 0.885 | 2: -",
        "saved",
    ]


def test_plain_view_tells_further_figures() -> None:
    stream = io.StringIO()
    row = replace(MEASURED, further={"eval auc": None, "agreement": -0.0412})
    PlainView(stream).update([row], progress())
    expected = "  1: loss 0.312 acc 0.912 eval 0.885 eval auc - agreement -0.041"
    assert stream.getvalue().splitlines()[1:] == [expected]


@pytest.mark.parametrize(
    ("shown", "line"),
    [
        (progress(0), "step 0/240  epoch 2/10"),
        (progress(120, phase="eval"), "step 120/240  epoch 2/10  eval  12.0 s left"),
        (progress(240, epoch=10), "step 240/240  epoch 10/10  12.0 s elapsed"),
    ],
)
def test_plain_view_progress_line(shown: Progress, line: str) -> None:
    stream = io.StringIO()
    PlainView(stream).update((), shown)
    assert stream.getvalue() == f"{line}\n"


def test_plain_view_breaks_lines_between_stages_only() -> None:
    stream = io.StringIO()
    row = replace(MEASURED, eval_metric=None)
    view = PlainView(stream, width=55)
    view.update([replace(row, stage=stage) for stage in (1, 2, 3)], progress())
    assert stream.getvalue().splitlines()[1:] == [
        "  1: loss 0.312 acc 0.912 | 2: loss 0.312 acc 0.912",
        "  3: loss 0.312 acc 0.912",
    ]


def plain_steps(stream: io.StringIO) -> list[str]:
    lines = stream.getvalue().splitlines()
    return [line.split()[1] for line in lines if line.startswith("step")]


def test_plain_view_waits_between_blocks_and_writes_the_last_at_the_end() -> None:
    stream, clock = io.StringIO(), FakeClock()
    view = PlainView(stream, clock=clock)
    view.start("title")
    for step in range(1, 26):
        clock.now_s = float(step)
        view.update(ROWS, progress(step))
    assert plain_steps(stream) == ["1/240", "11/240", "21/240"]
    view.close()
    view.close()
    assert plain_steps(stream) == ["1/240", "11/240", "21/240", "25/240"]


def test_plain_view_writes_the_last_figures_of_each_epoch() -> None:
    stream = io.StringIO()
    view = PlainView(stream, clock=FakeClock())
    for step, epoch, phase in [
        (1, 1, "train"),
        (2, 1, "train"),
        (3, 1, "train"),
        (3, 1, "eval"),
        (4, 2, "train"),
        (5, 2, "train"),
    ]:
        view.update(ROWS, progress(step, epoch=epoch, phase=phase))
    assert plain_steps(stream) == ["1/240", "3/240"]
    assert stream.getvalue().count("  eval  ") == 1


def test_plain_view_flushes() -> None:
    flushed = io.BytesIO()
    stream = io.TextIOWrapper(io.BufferedWriter(flushed), encoding="utf-8")
    PlainView(stream).message("now")
    assert flushed.getvalue() == b"now\n"
