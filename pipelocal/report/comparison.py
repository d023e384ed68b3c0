"""Runs side by side: their figures, and the options in which they differ."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipelocal.errors import UserError
from pipelocal.report.options import differing_options, other_differences
from pipelocal.report.record import RunRecord
from pipelocal.run.summary import known
from pipelocal.telemetry.formats import (
    UNKNOWN,
    format_bytes,
    format_rate,
    format_seconds,
    or_unknown,
)


@dataclass(frozen=True, kw_only=True)
class RunFigures:
    """A run's figures at its end, or so far; None for what is not known."""

    run: str
    """Path of its folder."""
    finished: bool
    steps: int
    stages: int
    world_size: int
    eval: dict[str, float | None]
    """Loss and metrics of the last head in the last evaluation; empty without one."""
    ensemble: dict[str, float | None]
    best_head: int | None
    samples_per_second: float | None
    seconds: float | None
    peak_memory_bytes: int | None
    """Of the largest stage."""
    sent_bytes: int | None
    """Over all edges."""
    backward_bytes: int | None
    began_at: int
    """Batches before the last start of a run that went on: time and bytes are counted from there."""

    @classmethod
    def of(cls, run: RunRecord) -> RunFigures:
        """Take the figures of a run from its record."""
        summary: dict[str, Any] = dict(run.summary or {})
        finals = summary.get("stages", [])
        rates = run.series("train", "samples_per_second").get(run.last_stage, [])
        memory = [
            value
            for points in run.series("train", "peak_memory_bytes").values()
            for _, value in points
        ]
        peaks = [final["peak_memory_bytes"] for final in finals] or memory
        times = [record["time_s"] for record in run.records if "time_s" in record]
        reported = dict(run.evaluation(run.last_stage))
        return cls(
            run=str(run.path),
            finished=run.summary is not None,
            steps=run.steps,
            stages=len(run.stages),
            world_size=run.world_size,
            eval=summary.get("eval") or reported,
            ensemble=summary.get("ensemble") or {},
            best_head=summary.get("best_head"),
            samples_per_second=summary.get("samples_per_second", rates[-1][1] if rates else None),
            seconds=summary.get("seconds", max(times, default=None)),
            peak_memory_bytes=max((int(peak) for peak in peaks if peak is not None), default=None),
            sent_bytes=_total(finals, "sent_bytes"),
            backward_bytes=_total(finals, "backward_bytes"),
            began_at=summary.get("began_at", 0),
        )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs side by side."""

    runs: Sequence[RunRecord]
    labels: Sequence[str]
    """What each run is called: its path, without what all have in common."""
    figures: Sequence[RunFigures]
    options: dict[str, list[str]]
    """The options in which runs differ, with each one's value as text."""
    differences: Sequence[str]
    """What else differs from the first run, in a line each."""

    @cached_property
    def rows(self) -> list[tuple[str, list[str]]]:
        """The figures as text: a name, and each run's value."""
        names = list(dict.fromkeys(name for each in self.figures for name in each.eval))
        votes = list(dict.fromkeys(name for each in self.figures for name in each.ensemble))
        names.sort(key=lambda name: name == "loss")

        went_on = any(each.began_at for each in self.figures)

        def row(name: str, value: Callable[[RunFigures], str]) -> tuple[str, list[str]]:
            return name, [value(each) for each in self.figures]

        def figures(name: str, of: str) -> list[str]:
            return [known(getattr(each, of).get(name)) for each in self.figures]

        return [
            *((f"{name}, last head", figures(name, "eval")) for name in names),
            *((f"{name}, ensemble", figures(name, "ensemble")) for name in votes),
            row("best head", lambda f: UNKNOWN if f.best_head is None else f"stage {f.best_head}"),
            row("samples/s", lambda f: or_unknown(format_rate, f.samples_per_second)),
            row("time", lambda f: or_unknown(format_seconds, f.seconds)),
            row("memory, largest stage", lambda f: or_unknown(format_bytes, f.peak_memory_bytes)),
            row("sent", lambda f: or_unknown(format_bytes, f.sent_bytes)),
            row("sent back", lambda f: or_unknown(format_bytes, f.backward_bytes)),
            row("batches", lambda f: f"{f.steps:,}" + ("" if f.finished else ", not finished")),
            *([row("time and bytes from batch", lambda f: f"{f.began_at:,}")] if went_on else []),
            row("stages, on ranks", lambda f: f"{f.stages}, on {f.world_size}"),
        ]

    def to_json(self) -> dict[str, Any]:
        """Return figures and differences as plain values."""
        return {
            "runs": [dict(vars(each)) for each in self.figures],
            "options": self.options,
            "differences": list(self.differences),
        }


def compare(paths: Sequence[str]) -> Comparison:
    """Compare runs.

    Args:
        paths: their folders.

    Raises:
        UserError: there are fewer than two, or one of them is no run.
    """
    if len(paths) < 2:
        raise UserError(f"compare {' '.join(paths)}: give the folders of two runs or more")
    runs = [RunRecord(path) for path in paths]
    return Comparison(
        runs=runs,
        labels=_labels([str(run.path) for run in runs]),
        figures=[RunFigures.of(run) for run in runs],
        options=differing_options(runs),
        differences=other_differences(runs),
    )


def _labels(paths: Sequence[str]) -> list[str]:
    """Return paths without the folder that all of them are in."""
    whole = [os.path.abspath(path) for path in paths]  # noqa: PTH100  which also takes .. away
    common = os.path.commonpath(whole)
    if common in whole:
        return list(paths)
    return [os.path.relpath(path, common) for path in whole]


def _total(finals: Sequence[dict[str, Any]], name: str) -> int | None:
    return sum(final.get(name, 0) for final in finals) if finals else None
