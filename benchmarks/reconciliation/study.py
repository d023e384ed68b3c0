"""Accuracy: every form, number of stages and head, on the same data, steps and first weights."""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.common import BenchmarkError, Failure, Run
from benchmarks.reconciliation.forms import FORMS, VARIANTS
from pipelocal.config import TrainConfig
from pipelocal.system.strict_json import to_json

TRAINING_WINDOW = 50
Row = dict[str, Any]


def study(options: argparse.Namespace, device: str) -> list[Row]:
    """Train everything; a row for each kind of run, in the order of :func:`plan_cells`."""
    cells = list(plan_cells(options))
    configs = [config(options, device, cell, seed) for seed in options.seeds for cell in cells]
    runs = [load(options.keep, own) for own in configs]
    missing = [index for index, run in enumerate(runs) if run is None]
    print(f"{len(configs)} runs, {len(missing)} of them to do", flush=True)
    started = common.train_each([configs[index] for index in missing], jobs=options.jobs)
    for finished, (position, run) in enumerate(started, start=1):
        if isinstance(run, Failure) and not run.diverged:
            raise BenchmarkError(f"{run.config.objective}, exit code {run.code}: {run.reason}")
        runs[missing[position]] = run
        keep(options.keep, run)
        if finished % 10 == 0 or finished == len(missing):
            print(f"{finished}/{len(missing)}", flush=True)
    rows = [summarise(cell, runs[index :: len(cells)]) for index, cell in enumerate(cells)]
    compare_with_greedy(rows)
    return rows


def keep(folder: Path | None, run: Run | Failure) -> None:
    """Write a finished run where :func:`load` finds it."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    content = (
        {"reason": run.reason, "code": run.code}
        if isinstance(run, Failure)
        else {"summary": run.summary, "metrics": run.metrics}
    )
    file = folder / f"{_key(run.config)}.json"
    file.with_suffix(".part").write_text(to_json(content))
    file.with_suffix(".part").rename(file)


def load(folder: Path | None, own: TrainConfig) -> Run | Failure | None:
    """A run that was finished before, with the same options; None without one."""
    file = folder / f"{_key(own)}.json" if folder is not None else None
    if file is None or not file.exists():
        return None
    content = json.loads(file.read_text())
    return (Failure if "code" in content else Run)(config=own, **content)


def _key(own: TrainConfig) -> str:
    return hashlib.sha256(repr(own).encode()).hexdigest()[:16]


def plan_cells(options: argparse.Namespace) -> list[Row]:
    """Every kind of run: its name, stages, head and options."""
    cells: list[Row] = [{"form": "bp", "stages": 1, "head": "-", "options": {"objective": "bp"}}]
    for stages in options.stages:
        for head in options.heads:
            for form in options.forms:
                if head == options.heads[0] or stages == options.variants_at:
                    cell = {"form": form, "stages": stages, "head": head}
                    cells.append({**cell, "options": FORMS[form]})
    for form in options.variants:
        cell = {"form": form, "stages": options.variants_at, "head": options.heads[0]}
        cells.append({**cell, "options": VARIANTS[form]})
    return cells


def config(options: argparse.Namespace, device: str, cell: Row, seed: int) -> TrainConfig:
    """The options of one run."""
    own = {} if cell["form"] == "bp" else {"stages": cell["stages"], "head": cell["head"]}
    return TrainConfig(
        **cell["options"],
        **own,
        model=options.model,
        data=options.data,
        data_root=options.data_root,
        train_samples=options.train_samples,
        lr=options.lr,
        epochs=options.epochs,
        evaluate_every=options.epochs,  # the end is all that is looked at
        batch_size=options.batch_size,
        seed=seed,
        device=device,
    )


def summarise(cell: Row, outcomes: Sequence[Run | Failure | None]) -> Row:
    """Means over the seeds that did not diverge."""
    runs = [run for run in outcomes if isinstance(run, Run)]
    any_run = next(run for run in outcomes if run is not None)
    row = {
        "kind": "accuracy",
        **cell,
        "of_each_seed": [
            run.summary["eval_accuracy"] if isinstance(run, Run) else None for run in outcomes
        ],
        "diverged": len(outcomes) - len(runs),
        "command": common.command(any_run.config),
    }
    if not runs:
        return row
    stages = [run.summary["stages"] for run in runs]
    last = [own[-1] for own in stages]
    losses = [
        run.last_training(len(own), "loss", batches=TRAINING_WINDOW)
        for run, own in zip(runs, stages, strict=True)
    ]
    return row | {
        "test_accuracy": common.spread([run.summary["eval_accuracy"] for run in runs]),
        "ensemble_accuracy": common.spread([run.summary["ensemble_accuracy"] for run in runs]),
        "train_accuracy": statistics.fmean(stage["accuracy"] for stage in last),
        "train_loss": statistics.fmean(loss for loss in losses if loss is not None),
        "cosine": _mean_over_stages(stages, "cosine"),
        "residual": _mean_over_stages(stages, "residual"),
        "sent_bytes": statistics.fmean(sum(stage["sent_bytes"] for stage in own) for own in stages),
        "peak_memory_bytes": statistics.fmean(
            max(stage["peak_memory_bytes"] for stage in own) for own in stages
        ),
    }


def compare_with_greedy(rows: list[Row]) -> None:
    """Add to every row of sgr by how many points it is better than greedy, seed by seed."""
    greedy = {
        (row["stages"], row["head"]): row["of_each_seed"] for row in rows if row["form"] == "greedy"
    }
    for row in rows:
        base = greedy.get((row["stages"], row["head"]))
        if base is None or row["form"] == "greedy":
            continue
        pairs = zip(row["of_each_seed"], base, strict=True)
        gains = [100 * (a - b) for a, b in pairs if a is not None and b is not None]
        if gains:
            row["points_over_greedy"] = common.spread(gains)


def _mean_over_stages(runs: Sequence[Sequence[dict[str, Any]]], key: str) -> float | None:
    values = [stage[key] for stages in runs for stage in stages if stage[key] is not None]
    return statistics.fmean(values) if values else None
