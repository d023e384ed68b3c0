"""Everything that a run folder records, finished or not, in the form in which it is shown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelocal.checkpoint.description import Description
from pipelocal.checkpoint.run_folder import RunFolder
from pipelocal.errors import UserError
from pipelocal.telemetry.timeline import Timeline

Point = tuple[float, float]
Record = Mapping[str, Any]

BESIDE_METRICS = frozenset(
    {"event", "stage", "epoch", "step", "loss", "ensemble", "ensemble_accuracy", "time_s"}
)
"""What a record of an evaluation holds besides the task's metrics."""


@dataclass(frozen=True, kw_only=True)
class StageFacts:
    """What is known of one stage."""

    stage: int
    ranks: tuple[int, ...]
    """The rank of each replica; empty if unknown."""
    units: tuple[str, ...]
    head: str | None
    """Its auxiliary head, as ``--head`` takes it; None on the last stage, or if unknown."""
    parameters: int | None
    head_parameters: int | None
    multiply_adds: int | None
    head_multiply_adds: int | None
    """Of the forward pass of body and head, for one sample; None if they were not counted."""
    final: Record
    """The stage's entry in the summary; empty before the end."""
    seats: tuple[Record, ...]
    """Busy fraction, bytes and memory at the end, for each replica."""

    @property
    def head_share(self) -> float | None:
        """The head's share of the multiply-adds of body and head, 0 to 1; None if unknown."""
        if self.multiply_adds is None or self.head_multiply_adds is None:
            return None
        both = self.multiply_adds + self.head_multiply_adds
        return self.head_multiply_adds / both if both else None


class RunRecord:
    """The record of a run.

    Args:
        path: the run's folder.

    Raises:
        UserError: there is no run, or its files cannot be read.
    """

    def __init__(self, path: str) -> None:
        self.folder = RunFolder.open(path)
        self.path = self.folder.path
        self.options = self.folder.options()
        self.summary: Record | None = self.folder.summary() if self.folder.finished else None
        self.records: Sequence[Record] = self.folder.records()

    @cached_property
    def description(self) -> Description | None:
        """What the run was made of; None if that is not recorded."""
        try:
            return self.folder.description()
        except UserError:
            return None

    @cached_property
    def timeline(self) -> Timeline | None:
        """The timing of its batches; None without a trace of two batches."""
        try:
            return Timeline.of(self.path)
        except (UserError, ValueError, KeyError):
            return None

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """The names of the task's metrics, the first one first; empty before the first record."""
        for record in self.records:
            names = list(record)
            if record["event"] == "train" and {"loss", "reconciliation"} <= record.keys():
                return tuple(names[names.index("loss") + 1 : names.index("reconciliation")])
            if record["event"] == "evaluate":
                return tuple(name for name in names if name not in BESIDE_METRICS)
        return ()

    @cached_property
    def stages(self) -> tuple[StageFacts, ...]:
        """All stages, in order."""
        finals = {stage["stage"]: stage for stage in (self.summary or {}).get("stages", ())}
        begun: dict[int, list[Record]] = defaultdict(list)
        for record in self._of("begin"):
            if record["step"] == self.starts[-1]:  # it may have had another cut before
                begun[record["stage"]].append(record)
        numbers = finals.keys() or begun.keys() or {record["stage"] for record in self.records}
        return tuple(
            _facts(number, finals.get(number, {}), begun.get(number, []))
            for number in sorted(numbers)
        )

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Training batches after which the run began, and began again; empty if that is not recorded."""
        return tuple(sorted({int(record["step"]) for record in self._of("begin")}))

    @property
    def steps(self) -> int:
        """Training batches that all stages have reported; 0 before the first record."""
        if self.summary is not None:
            return int(self.summary["steps"])
        reached = [points[-1][0] for points in self.series("train", "loss").values() if points]
        return int(min(reached, default=0))

    @property
    def total_steps(self) -> int | None:
        """Training batches of the whole run; None if unknown."""
        return max(
            (r["total_steps"] for r in self._of("begin") if "total_steps" in r), default=None
        )

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        if self.summary is not None:
            return int(self.summary["world_size"])
        return len({rank for stage in self.stages for rank in stage.ranks}) or 1

    @property
    def last_stage(self) -> int:
        """Number of the last stage; 0 if none is known."""
        return self.stages[-1].stage if self.stages else 0

    def series(self, event: str, name: str, *, over: str = "step") -> dict[int, list[Point]]:
        """Return a figure of every stage over training batches, without what is unknown.

        Args:
            event: kind of the records.
            name: the figure.
            over: ``step``, or ``time_s`` for seconds.
        """
        found: dict[int, list[Point]] = {stage.stage: [] for stage in self.stages}
        for record in self._of(event):
            value, at = record.get(name), record.get(over)
            points = found.get(record["stage"])  # none of a stage that there is no longer
            if points is None or value is None or at is None:
                continue
            points.append((float(at), float(value)))
        return {stage: points for stage, points in found.items() if points}

    def ensemble(self) -> list[Point]:
        """Return the first metric of the ensemble of heads over training batches."""
        if not self.metrics:
            return []
        found = []
        for record in self._of("evaluate"):
            value = (record.get("ensemble") or {}).get(self.metrics[0])
            if value is not None:
                found.append((float(record["step"]), float(value)))
        return found

    def evaluation(self, stage: int) -> Record:
        """Return the figures of a stage's last evaluation; empty without one."""
        found: Record = {}
        for record in self._of("evaluate"):
            if record["stage"] == stage:
                found = record
        return {name: found.get(name) for name in ("loss", *self.metrics)} if found else {}

    @cached_property
    def failures(self) -> tuple[tuple[str, str], ...]:
        """Files with the traceback of an unexpected error, and the error, each on one line."""
        found = []
        for path in sorted(self.path.glob("error-rank-*.txt")):
            lines = _text(path).strip().splitlines()
            found.append((path.name, lines[-1] if lines else "no error is named"))
        return tuple(found)

    def _of(self, event: str) -> list[Record]:
        return [record for record in self.records if record["event"] == event]


def _facts(number: int, final: Record, begun: Sequence[Record]) -> StageFacts:
    seats = tuple(final.get("replicas") or ([final] if final else []))
    first: Record = begun[0] if begun else {}
    return StageFacts(
        stage=number,
        ranks=tuple(seat["rank"] for seat in seats) or tuple(sorted(r["rank"] for r in begun)),
        units=tuple(final.get("units") or first.get("units") or ()),
        head=final.get("head") or first.get("head"),
        parameters=first.get("parameters"),
        head_parameters=first.get("head_parameters"),
        multiply_adds=first.get("multiply_adds"),
        head_multiply_adds=first.get("head_multiply_adds"),
        final=final,
        seats=seats,
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
