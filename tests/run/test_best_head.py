"""A run says if an earlier head beats the last one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelocal.run.summary import describe, summarise

TEXT = {"model": "mlp", "data": "digits", "objective": "greedy", "seed": 0}


def _final(stage: int, value: float | None, frozen_at: int | None, name: str) -> dict[str, Any]:
    return {
        "stage": stage,
        "replica": 0,
        "steps": 2,
        "began_at": 0,
        "seconds": 1.0,
        "samples_per_second": 1.0,
        "frozen_at": frozen_at,
        "figures": {"train": {}, "eval": {} if value is None else {"loss": 1.0, name: value}},
        "ensemble": None,
    }


@pytest.mark.parametrize(
    ("values", "higher", "best"),
    [
        ((0.5, 0.9, 0.8), True, 2),
        ((0.5, 0.8, 0.8), True, None),
        ((0.5, 0.9, 0.8), False, 1),
        ((0.9, 0.5, 0.8), True, None),  # of stage 1, which never trained
        ((None, None, None), True, None),
    ],
)
def test_what_is_said(values: tuple[float | None, ...], higher: bool, best: int | None) -> None:
    frozen = 0 if values[0] == 0.9 else None
    finals = [
        _final(number, value, frozen if number == 1 else None, "accuracy" if higher else "error")
        for number, value in enumerate(values, start=1)
    ]
    summary = summarise(TEXT, 1, finals, higher_is_better=higher)
    _, *more = describe(summary, Path("runs/one"), python=False).splitlines()
    if best is None:
        assert not more
        return
    (line,) = more
    assert line.startswith(f"the head of stage {best} beats the last one ")
    assert f"pipelocal export runs/one --stage {best}" in line
    from_python = describe(summary, None, python=True)
    assert f"; Pipeline.module(stage={best}) gives the network up to it" in from_python
