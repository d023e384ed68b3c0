"""Which view a stream gets."""

import contextlib
import io

import pytest

from pipelocal.telemetry.live_table import LiveView
from pipelocal.telemetry.plain_lines import PlainView
from pipelocal.telemetry.view import View, make_view
from tests.telemetry.shown import ROWS, Terminal, progress


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
