"""The table on a terminal: what it shows, at any size, and that it gives the terminal back."""

import contextlib
import io
import sys
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from pipelocal.telemetry.live_table import LiveView, stage_table
from pipelocal.telemetry.progress import Progress, StageRow
from tests.telemetry.shown import MEASURED, ROWS, UNMEASURED, FakeClock, Terminal, progress

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


def terminal_console(width: int = 120, height: int = 30) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    console = Console(
        file=stream,
        width=width,
        height=height,
        force_terminal=True,
        force_interactive=True,
        color_system=None,
        _environ={},
    )
    return console, stream


def rendered(rows: tuple[StageRow, ...], *, columns: int, **options: Any) -> list[str]:
    stream = io.StringIO()
    console = Console(file=stream, width=columns, color_system=None, _environ={})
    console.print(stage_table(rows, **options))
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def words(line: str) -> str:
    """The line with one space between words."""
    return " ".join(line.split())


def test_table_shows_every_figure_and_a_dash_for_the_unknown() -> None:
    header, _, measured, unmeasured = map(words, rendered(ROWS, columns=120))
    assert header == "stage rank units loss accuracy eval acc samples/s busy memory"
    assert measured == "1 0 stem..block1 0.312 0.912 0.885 3211 50% ━━━━ 1.5 GiB"
    assert unmeasured == "2 1 block2..head - - - - - -"


def test_narrow_table_keeps_the_figures_whole() -> None:
    header, _, measured, _ = map(words, rendered(ROWS, columns=60, width=60))
    assert header == "stage loss accuracy eval acc samples/s busy memory"
    assert measured == "1 0.312 0.912 0.885 3211 50% 1.5 GiB"


FURTHER = (
    replace(MEASURED, further={"eval top5": 0.99}),
    replace(UNMEASURED, further={"eval top5": 0.98, "agreement": 0.4123}),
)


def test_further_figures_have_columns_of_their_own() -> None:
    header, _, first, second = map(words, rendered(FURTHER, columns=140))
    assert header == (
        "stage rank units loss accuracy eval acc eval top5 agreement samples/s busy memory"
    )
    assert first == "1 0 stem..block1 0.312 0.912 0.885 0.990 - 3211 50% ━━━━ 1.5 GiB"
    assert second == "2 1 block2..head - - - 0.980 0.412 - - -"


def test_further_figures_are_the_first_to_go() -> None:
    header = words(rendered(FURTHER, columns=88, width=88)[0])
    assert header == "stage rank units loss accuracy eval acc samples/s busy memory"
    header = words(rendered(FURTHER, columns=102, width=102)[0])
    assert header == "stage rank units loss accuracy eval acc eval top5 samples/s busy memory"


def test_table_never_exceeds_the_width_at_hand() -> None:
    for width in range(1, 130):
        for hint in (width, None):
            for rows in (ROWS, FURTHER):
                lines = rendered(rows, columns=width, width=hint)
                assert max(map(len, lines)) <= width


def test_units_with_brackets_are_not_markup() -> None:
    row = replace(UNMEASURED, units="blocks[0]..[bold]")
    assert "blocks[0]..[bold]" in rendered((row,), columns=120)[2]


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), 1e30])
def test_a_diverged_loss_is_shown_and_not_hidden(loss: float) -> None:
    row = replace(MEASURED, loss=loss)
    shown = rendered((row,), columns=60, width=60)[2].split()[1]
    assert shown in {"nan", "inf", "1.0e+30"}


def test_table_taller_than_its_room_keeps_the_last_stage() -> None:
    rows = tuple(replace(MEASURED, stage=stage) for stage in range(1, 21))
    lines = rendered(rows, columns=120, max_rows=5)[2:]
    assert [line.split()[0] for line in lines] == ["1", "2", "3", "...", "20"]


def test_live_view_draws_the_table_and_the_progress() -> None:
    console, stream = terminal_console()
    view = LiveView(console, clock=FakeClock())
    view.start("resnet110 [4 stages]")
    view.update(ROWS, progress())
    shown = stream.getvalue()
    assert shown.startswith("resnet110 [4 stages]\n")
    assert "stem..block1" in shown
    assert "step 120/240  epoch 2/10  12.0 s left" in shown
    view.close()


@pytest.mark.parametrize(("width", "height"), [(60, 30), (20, 4), (1, 1)])
def test_live_view_survives_small_terminals_and_unknown_figures(width: int, height: int) -> None:
    console, _ = terminal_console(width, height)
    with contextlib.closing(LiveView(console)) as view:
        view.start("title")
        view.update([UNMEASURED] * 40, progress(0, elapsed_s=0.0))
        view.update([], Progress(step=0, total_steps=0, epoch=0, epochs=0, phase="", elapsed_s=0))


def test_live_view_fits_60_columns() -> None:
    console, stream = terminal_console(width=60)
    with contextlib.closing(LiveView(console)) as view:
        view.start("title")
        view.update(ROWS, progress())
    assert "eval acc " in stream.getvalue()
    assert "step 120/240  epoch 2/10  12.0 s left" in stream.getvalue()


def test_live_view_redraws_four_times_a_second_at_most() -> None:
    console, stream = terminal_console()
    clock = FakeClock()
    view = LiveView(console, clock=clock)
    view.start("title")
    for hundredth in range(100):
        clock.now_s = hundredth / 100
        view.update(ROWS, progress(hundredth))
    assert stream.getvalue().count("eval acc ") == 4
    assert "step 99/240" not in stream.getvalue()
    view.close()
    assert "step 99/240" in stream.getvalue()  # the last figures are never lost


def test_live_view_shows_every_stage_at_the_end() -> None:
    console, stream = terminal_console(height=10)
    view = LiveView(console)
    view.start("title")
    view.update([replace(MEASURED, units=f"unit{k}") for k in range(40)], progress())
    assert "unit20" not in stream.getvalue()
    assert "unit39" in stream.getvalue()
    view.close()
    assert "unit20" in stream.getvalue()


def test_a_message_of_the_live_view_stays_whole() -> None:
    console, stream = terminal_console(width=60)
    text = "saved [step 3] to " + "/long/path" * 12
    with contextlib.closing(LiveView(console)) as view:
        view.start("title")
        view.message(text)
    assert f"{text}\n" in stream.getvalue()


def test_closing_gives_the_terminal_back_after_an_exception(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stdout = Terminal()
    monkeypatch.setattr(sys, "stdout", stdout)
    console, stream = terminal_console()
    view = LiveView(console)

    def interrupted_run() -> None:
        with contextlib.closing(view):
            view.start("title")
            view.update(ROWS, progress())
            assert HIDE_CURSOR in stream.getvalue()
            assert sys.stdout is not stdout
            raise RuntimeError("stage 3 failed")

    with pytest.raises(RuntimeError, match="stage 3 failed"):
        interrupted_run()
    assert stream.getvalue().endswith(SHOW_CURSOR)
    assert sys.stdout is stdout
    shown = stream.getvalue()
    view.close()
    assert stream.getvalue() == shown


def test_closing_gives_the_terminal_back_when_drawing_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    console, stream = terminal_console()
    view = LiveView(console)
    view.start("title")

    def fail(*_args: object, **_options: object) -> None:
        raise RuntimeError("cannot draw")

    monkeypatch.setattr("pipelocal.telemetry.live_table.stage_table", fail)
    with pytest.raises(RuntimeError, match="cannot draw"):
        view.update(ROWS, progress())
    with pytest.raises(RuntimeError, match="cannot draw"):
        view.close()
    assert stream.getvalue().endswith(SHOW_CURSOR)


def test_what_goes_to_a_file_is_not_drawn_into_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    piped = io.StringIO()
    monkeypatch.setattr(sys, "stdout", piped)
    console, stream = terminal_console()
    with contextlib.closing(LiveView(console)) as view:
        view.start("title")
        print("result 42")
    assert piped.getvalue() == "result 42\n"
    assert "result 42" not in stream.getvalue()


def test_a_live_view_can_be_started_again() -> None:
    console, stream = terminal_console()
    view = LiveView(console, clock=FakeClock())
    view.start("first")
    view.update(ROWS, progress(100))
    view.start("second")
    view.update(ROWS, progress(1))
    assert "step 1/240" in stream.getvalue()
    view.close()
    assert stream.getvalue().count(HIDE_CURSOR) == stream.getvalue().count(SHOW_CURSOR) == 2
