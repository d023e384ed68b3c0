"""Summarises a run: the stages' first and last records, and ``summary.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch

from pipelocal.pipeline.evaluation import ensemble_figures
from pipelocal.pipeline.timetable import Timetable
from pipelocal.pipeline.worker import Worker
from pipelocal.run.blueprint import Blueprint
from pipelocal.stage.stage import Stage
from pipelocal.telemetry.formats import UNKNOWN
from pipelocal.telemetry.memory import device_peak_bytes


def begin_record(stage: Stage, rank: int, blueprint: Blueprint, plan: Timetable) -> dict[str, Any]:
    """Return a stage's first record: what it is made of, and how long the run will be.

    Args:
        stage: the stage.
        rank: on which it runs.
        blueprint: the cut model.
        plan: the run's events.
    """
    number = stage.number
    body, head = blueprint.multiply_adds(number) or (None, None)
    return {
        "event": "begin",
        "stage": number,
        "rank": rank,
        "replica": stage.replicas.index,
        "step": stage.steps,
        "units": blueprint.unit_names(number),
        "head": blueprint.head_name(number),
        "parameters": sum(each.numel() for each in stage.body.parameters()),
        "head_parameters": sum(each.numel() for each in stage.head.parameters()),
        "multiply_adds": body,
        "head_multiply_adds": head,
        "total_steps": plan.total_steps,
    }


def final_record(
    worker: Worker, rank: int, device: torch.device, *, head: str | None
) -> dict[str, Any]:
    """Return a stage's last record: training means over the last epoch, memory in bytes, fractions 0 to 1.

    Args:
        worker: runs the stage.
        rank: on which it runs.
        device: where the stage computes.
        head: the stage's auxiliary head; None on the last, which has the model's own.
    """
    records = worker.records
    train, evaluation = records.last_epoch, worker.evaluation
    names = worker.stage.task.metrics
    evaluated = evaluation.figures_of_head if evaluation.rows else None
    of_training = {} if train is None else {**train.metrics, **train.figures}
    return {
        "event": "final",
        "stage": worker.stage.number,
        "rank": rank,
        "replica": worker.stage.replicas.index,
        # Module names in a body cannot contain dots; the model's own unit names may.
        "units": [name.replace("/", ".") for name, _ in worker.stage.body.named_children()],
        "head": head,
        "loss": train and train.loss,
        **({"accuracy": of_training.get("accuracy")} if "accuracy" in names else {}),
        "reconciliation": train and train.reconciliation,
        "cosine": train and train.cosine,
        "residual": train and train.residual,
        "cap": train and train.cap,
        "eval_loss": evaluated and evaluated["loss"],
        **({"eval_accuracy": evaluated and evaluated["accuracy"]} if "accuracy" in names else {}),
        "figures": {"train": of_training, "eval": evaluated or {}},
        **ensemble_figures(evaluation.ensemble, names),
        "steps": worker.stage.steps,
        "began_at": records.began_at,
        "frozen_at": worker.stage.frozen_at,
        "seconds": records.throughput.seconds,
        "samples_per_second": records.throughput.samples_per_second,
        "busy_fraction": records.throughput.busy_fraction,
        "peak_memory_bytes": records.peak_memory_bytes,
        "process_memory_bytes": psutil.Process().memory_info().rss,
        "device_peak_bytes": device_peak_bytes(device),
        **worker.traffic(),
        "received_bytes": worker.incoming.received_bytes,
    }


def summarise(
    text: Mapping[str, Any],
    world_size: int,
    finals: list[dict[str, Any]],
    *,
    no_ensemble: str | None = None,
    higher_is_better: bool = True,
) -> dict[str, Any]:
    """Return the content of ``summary.json``.

    Args:
        text: the run's options, as plain values.
        world_size: number of ranks.
        finals: every stage's :func:`final_record`, in any order; one per replica if there are any.
        no_ensemble: why the ensemble's figures are unknown; None if they are known.
        higher_is_better: whether greater values of the task's first metric are better.

    Over replicas, rates and bytes are summed, the busy fraction is averaged, peaks are maxima, and the rest,
    identical on all, is the first replica's; ``replicas`` holds each one's own values.

    ``seconds`` is the duration of the slowest stage's whole stream, evaluations included;
    ``samples_per_second`` counts training only, at the last stage. Where a run went on from a snapshot,
    seconds and bytes are counted from batch ``began_at`` on.
    """
    numbers = sorted({int(record["stage"]) for record in finals})
    stages = [_of_all([final for final in finals if final["stage"] == n]) for n in numbers]
    last = stages[-1]
    apart = ("event", "time_s", "ensemble", "ensemble_accuracy", "replica")
    accuracies: dict[str, Any] = {
        name: last[name] for name in ("eval_accuracy", "ensemble_accuracy") if name in last
    }
    return {
        "model": text["model"],
        "data": text["data"],
        "objective": text["objective"],
        "seed": text["seed"],
        "world_size": world_size,
        "torch": torch.__version__,
        "steps": last["steps"],
        "began_at": last["began_at"],
        "seconds": max(stage["seconds"] for stage in stages),
        "samples_per_second": last["samples_per_second"],
        "eval": last["figures"]["eval"] or None,
        "ensemble": last["ensemble"],
        **accuracies,
        "no_ensemble": no_ensemble,
        "best_head": _best_head(stages, higher_is_better=higher_is_better),
        "stages": [{k: v for k, v in stage.items() if k not in apart} for stage in stages],
    }


def _best_head(stages: list[dict[str, Any]], *, higher_is_better: bool) -> int | None:
    """Return the stage whose head was best in the last evaluation, the latest of equals; None without one.

    Best is decided by the task's first metric. A head that never trained does not count.
    """
    found: dict[int, float] = {}
    for stage in stages:
        first = next(
            (value for name, value in stage["figures"]["eval"].items() if name != "loss"), None
        )
        if first is not None and stage["frozen_at"] != 0:
            found[int(stage["stage"])] = first if higher_is_better else -first
    return max(found, key=lambda number: (found[number], number), default=None)


SUMS = ("samples_per_second", "sent_bytes", "received_bytes", "backward_bytes", "gradient_bytes")
PEAKS = ("seconds", "peak_memory_bytes", "process_memory_bytes", "device_peak_bytes")
OF_EACH = ("rank", "busy_fraction", *SUMS, *PEAKS)


def _of_all(finals: list[dict[str, Any]]) -> dict[str, Any]:
    """Merge the records of a stage's replicas into one."""
    finals = sorted(finals, key=lambda record: int(record["replica"]))
    whole = dict(finals[0])
    if len(finals) == 1:
        return whole
    for name in SUMS:
        whole[name] = sum(record[name] for record in finals)
    for name in PEAKS:
        whole[name] = max((r[name] for r in finals if r[name] is not None), default=None)
    whole["busy_fraction"] = sum(record["busy_fraction"] for record in finals) / len(finals)
    whole["replicas"] = [{name: record[name] for name in OF_EACH} for record in finals]
    return whole


def describe(summary: dict[str, Any], folder: Path | None, *, python: bool) -> str:
    """Return a line for the user, and one more for each of the following.

    The ensemble's figures are unknown; an earlier head beats the last one.

    Args:
        summary: what :func:`summarise` returned.
        folder: the run's folder; None if it has none.
        python: whether a Pipeline ran it, whose model no command can build.
    """
    line = (
        f"{_figures(summary)} after {summary['steps']} batches in {summary['seconds']:.1f} s"
        f"{'' if folder is None else f'; run folder {folder}'}"
    )
    # Runs of earlier versions have neither of the two.
    more = (summary.get("no_ensemble"), earlier_head(summary, folder, python=python))
    return "\n".join([line, *(each for each in more if each is not None)])


def earlier_head(summary: dict[str, Any], folder: Path | None, *, python: bool) -> str | None:
    """Return what it means that an earlier head beats the last one; None if none does.

    The arguments are those of :func:`describe`.
    """
    stages, best = summary["stages"], summary.get("best_head")
    if best is None or best == len(stages):
        return None
    name = next(name for name in stages[-1]["figures"]["eval"] if name != "loss")
    value, last = (stages[n - 1]["figures"]["eval"][name] for n in (best, len(stages)))
    export = (
        f"Pipeline.module(stage={best})" if python else f"pipelocal export {folder} --stage {best}"
    )
    return (
        f"the head of stage {best} beats the last one ({name} {known(value)}): on this data, so far, the "
        f"stages behind it gain nothing over {known(last)}; {export} gives the network up to it"
    )


def _figures(summary: dict[str, Any]) -> str:
    """Return the figures of the last evaluation as text, the first metric also of the ensemble."""
    if "eval" in summary:
        found, ensemble = summary["eval"], summary["ensemble"] or {}
    else:  # runs of earlier versions knew only accuracy
        accuracy = summary["eval_accuracy"]
        found = None if accuracy is None else {"accuracy": accuracy}
        ensemble = {"accuracy": summary["ensemble_accuracy"]}
    if found is None:
        return "not evaluated"
    first, *further = [name for name in found if name != "loss"]
    text = f"{first} {known(found[first])} (last head), {known(ensemble.get(first))} (ensemble)"
    return ", ".join([text, *(f"{name} {known(found[name])}" for name in further)])


def known(figure: float | None) -> str:
    """Format a figure such as ``0.9944``; "-" if it is unknown."""
    if figure is None:
        return UNKNOWN
    return f"{figure:.4f}" if abs(figure) < 10_000 else f"{figure:.4g}"
