import contextlib
import io
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from pipelocal.telemetry.view import (
    LiveView,
    PlainView,
    Progress,
    StageRow,
    View,
    format_bytes,
    format_seconds,
    make_view,
    stage_table,
)

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"

UNMEASURED = StageRow(stage=2, rank=1, units="block2..head")
MEASURED = StageRow(
    stage=1,
    rank=0,
    units="stem..block1",
    step=120,
    loss=0.3123,
    accuracy=0.912,
    eval_accuracy=0.885,
    samples_per_second=3211.4,
    busy_fraction=0.5,
    peak_memory_bytes=1536 * 1024**2,
)
ROWS = (MEASURED, UNMEASURED)


def progress(
    step: int = 120, *, epoch: int = 2, phase: str = "train", elapsed_s: float = 12.0
) -> Progress:
    return Progress(
        step=step, total_steps=240, epoch=epoch, epochs=10, phase=phase, elapsed_s=elapsed_s
    )


class FakeClock:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


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


def rendered(rows: tuple[StageRow, ...], *, columns: int, **options: int | None) -> list[str]:
    stream = io.StringIO()
    console = Console(file=stream, width=columns, color_system=None, _environ={})
    console.print(stage_table(rows, **options))
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def words(line: str) -> str:
    """The line with one space between words."""
    return " ".join(line.split())


# Time left


def test_time_left_follows_the_mean_rate() -> None:
    assert progress(60, elapsed_s=12.0).eta_s == pytest.approx(36.0)


def test_time_left_of_a_resumed_run_counts_only_its_own_steps() -> None:
    resumed = replace(progress(120, elapsed_s=12.0), first_step=100)
    assert resumed.eta_s == pytest.approx(12.0 / 20 * 120)


@pytest.mark.parametrize("before_a_rate", [progress(0), progress(120, elapsed_s=0.0)])
def test_time_left_is_unknown_before_there_is_a_rate(before_a_rate: Progress) -> None:
    assert before_a_rate.eta_s is None


@pytest.mark.parametrize("step", [240, 250])
def test_no_time_is_left_at_the_end(step: int) -> None:
    assert progress(step).eta_s == 0.0


# Formats


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (812 * 1024**2, "812 MiB"),
        (23.4 * 1024**3, "23.4 GiB"),
        (2 * 1024**4, "2.0 TiB"),
        (5000 * 1024**4, "5000 TiB"),
    ],
)
def test_format_bytes(count: float, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (12.34, "12.3 s"),
        (59.96, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.7, "1 h 00 min"),
        (3720, "1 h 02 min"),
        (86399, "1 d 00 h"),
        (3 * 86400 + 4 * 3600, "3 d 04 h"),
    ],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


# The table


def test_table_shows_every_figure_and_a_dash_for_the_unknown() -> None:
    header, _, measured, unmeasured = map(words, rendered(ROWS, columns=120))
    assert header == "stage rank units loss accuracy eval acc. samples/s busy memory"
    assert measured == "1 0 stem..block1 0.312 91.2% 88.5% 3211 50% ━━━━ 1.5 GiB"
    assert unmeasured == "2 1 block2..head - - - - - -"


def test_narrow_table_keeps_the_figures_whole() -> None:
    header, _, measured, _ = map(words, rendered(ROWS, columns=60, width=60))
    assert header == "stage loss accuracy eval acc. samples/s busy memory"
    assert measured == "1 0.312 91.2% 88.5% 3211 50% 1.5 GiB"


def test_table_never_exceeds_the_width_at_hand() -> None:
    for width in range(1, 130):
        for hint in (width, None):
            lines = rendered(ROWS, columns=width, width=hint)
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


# The live view


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
    assert "eval acc." in stream.getvalue()
    assert "step 120/240  epoch 2/10  12.0 s left" in stream.getvalue()


def test_live_view_redraws_four_times_a_second_at_most() -> None:
    console, stream = terminal_console()
    clock = FakeClock()
    view = LiveView(console, clock=clock)
    view.start("title")
    for hundredth in range(100):
        clock.now_s = hundredth / 100
        view.update(ROWS, progress(hundredth))
    assert stream.getvalue().count("eval acc.") == 4
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

    monkeypatch.setattr("pipelocal.telemetry.view.stage_table", fail)
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


# The plain view


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
    row = replace(MEASURED, eval_accuracy=None)
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


# The choice


@pytest.fixture
def ordinary_terminal(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    return monkeypatch


def kind(view: View) -> type[View]:
    return type(view)


def test_make_view_is_live_on_a_terminal_only(ordinary_terminal: pytest.MonkeyPatch) -> None:
    assert kind(make_view(Terminal())) is LiveView
    assert kind(make_view(Terminal(), plain=False)) is LiveView
    assert kind(make_view(Terminal(), plain=True)) is PlainView
    assert kind(make_view(io.StringIO())) is PlainView
    assert kind(make_view(io.StringIO(), plain=False)) is PlainView


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("TTY_INTERACTIVE", "0")])
def test_make_view_is_plain_where_redrawing_is_not_wanted(
    ordinary_terminal: pytest.MonkeyPatch, name: str, value: str
) -> None:
    ordinary_terminal.setenv(name, value)
    assert kind(make_view(Terminal())) is PlainView


def test_forced_colour_does_not_redraw_into_a_file(ordinary_terminal: pytest.MonkeyPatch) -> None:
    ordinary_terminal.setenv("FORCE_COLOR", "1")
    assert kind(make_view(io.StringIO())) is PlainView


@pytest.mark.parametrize("no_color", [False, True])
def test_no_color_is_respected(ordinary_terminal: pytest.MonkeyPatch, no_color: bool) -> None:
    if no_color:
        ordinary_terminal.setenv("NO_COLOR", "1")
    stream = Terminal()
    with contextlib.closing(make_view(stream)) as view:
        view.start("title")
        view.update(ROWS, progress())
    cyan = "\x1b[36m"
    assert (cyan not in stream.getvalue()) is no_color
