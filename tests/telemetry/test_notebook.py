"""The table in a notebook: one output that is rewritten."""

import io
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pipelocal.system.streams import for_progress
from pipelocal.telemetry.notebook import NotebookView, as_mime
from pipelocal.telemetry.plain_lines import PlainView
from pipelocal.telemetry.view import make_view
from tests.telemetry.shown import ROWS, FakeClock, progress


class Cell:
    """An output of a cell, as IPython's ``display`` makes one."""

    def __init__(self) -> None:
        self.shown: list[dict[str, str]] = []

    def display(self, data: dict[str, str], **_options: Any) -> "Cell":
        self.shown.append(data)
        return self

    update = display


class Output(io.StringIO):
    """What a kernel puts in place of standard output."""

    name = "stdout"


def test_one_output_is_rewritten_twice_a_second_at_most_and_at_the_end() -> None:
    cell, stream, clock = Cell(), Output(), FakeClock()
    view = NotebookView(stream, cell.display, clock=clock)
    view.start("mlp in 2 stages")
    for tenth in range(11):
        clock.now_s = tenth / 10
        view.update(ROWS, progress(tenth))
    view.message("saved")
    view.update(ROWS, progress(240))
    view.close()
    view.close()
    assert stream.getvalue() == "mlp in 2 stages\nsaved\n"
    steps = [each["text/plain"].partition("step ")[2].partition("/")[0] for each in cell.shown]
    assert steps == ["", "0", "5", "10", "240"]


def test_text_and_html_hold_every_stage() -> None:
    shown = as_mime(ROWS * 30, progress())
    assert (
        shown["text/plain"].count("stem..block1") == shown["text/html"].count("stem..block1") == 30
    )
    assert "\x1b" not in shown["text/plain"]


def test_it_is_chosen_where_a_kernel_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ipython, display = ModuleType("IPython"), ModuleType("IPython.display")
    shell = SimpleNamespace(kernel=None)
    vars(ipython)["get_ipython"] = lambda: shell
    vars(display)["display"] = Cell().display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    output = for_progress(Output())
    assert type(make_view(output)) is PlainView  # IPython in a pipe
    shell.kernel = object()
    assert type(make_view(output)) is NotebookView
    assert type(make_view(output, plain=True)) is PlainView
    assert type(make_view(for_progress(io.StringIO()))) is PlainView  # progress=False
