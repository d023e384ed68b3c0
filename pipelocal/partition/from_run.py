"""What the stages of a finished run really took, to cut anew: ``--balance RUN``.

Units measured one at a time do not show what they cost together on the devices of a run, for example beside
the edges' threads, or on a device that is slower. So the cost of each unit, and of the head that would follow
it, is multiplied by what the stage that held it took in the run over what had been expected.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelocal.errors import UserError
from pipelocal.models.unit import Shape
from pipelocal.partition.cost_model import CostModel
from pipelocal.partition.cut import Cut
from pipelocal.partition.profile import Cost
from pipelocal.references import is_reference

SUMMARY, METRICS, DESCRIPTION = "summary.json", "metrics.jsonl", "run.json"


@dataclass(frozen=True)
class Took:
    """What a stage of the run took."""

    cut: Cut
    seconds: float
    """Of work, without waiting, for a training sample."""


def is_run(name: str) -> bool:
    """Return whether a name is a path, though it may be there on rank 0 alone."""
    return not is_reference(name) and (len(Path(name).parts) > 1 or Path(name).is_dir())


def stages_of(folder: Path, units: Sequence[str], sample_shape: Shape) -> list[Took]:
    """Return what each stage of a run took: the median over the training records after the first quarter.

    Args:
        folder: of a finished run.
        units: names of the model's units, which must be those of the run.
        sample_shape: shape of one sample, likewise: with larger images, stages take other shares.

    Raises:
        UserError: it is no finished run, of another model or other samples, or it has no training records.
    """
    try:
        summary = json.loads((folder / SUMMARY).read_text())
        lines = (folder / METRICS).read_text().splitlines()
        shape = tuple(json.loads((folder / DESCRIPTION).read_text())["data"]["sample_shape"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"--balance {folder}: no finished run, which has {SUMMARY}, {METRICS} and {DESCRIPTION} ({error})"
        ) from error
    names = [name for stage in summary["stages"] for name in stage["units"]]
    if names != list(units):
        raise UserError(
            f"--balance {folder}: that run is of another model: its units are {_short(names)}, and here "
            f"they are {_short(units)}"
        )
    if shape != sample_shape:
        raise UserError(
            f"--balance {folder}: that run is of samples of shape {list(shape)}, and here they are "
            f"{list(sample_shape)}, of which stages take other shares: give --data as the run had it"
        )
    records: dict[int, list[float]] = {}
    for line in lines:
        record = json.loads(line)
        if record["event"] == "train" and record["samples_per_second"] > 0:
            work = record["busy_fraction"] / record["samples_per_second"]
            records.setdefault(record["stage"], []).append(work)
    took, start = [], 0
    for stage in summary["stages"]:
        found = records.get(stage["stage"], [])
        stop = start + len(stage["units"])
        seconds = statistics.median(found[len(found) // 4 :]) if found else 0.0
        if seconds <= 0:
            raise UserError(
                f"--balance {folder}: stage {stage['stage']} of that run has no training record that says "
                f"how long it worked: train for more batches than --log-every"
            )
        took.append(Took(Cut(start=start, stop=stop), seconds))
        start = stop
    return took


def corrected(model: CostModel, took: Sequence[Took]) -> CostModel:
    """Return the costs, as the stages of a run have shown them.

    Args:
        model: what was expected.
        took: the stages of the run.
    """
    profile = model.profile
    units, heads, fuller = list(profile.units), list(profile.heads), profile.fuller_heads
    fuller = None if fuller is None else list(fuller)
    seconds = model.seconds_of([stage.cut for stage in took])
    for stage, expected in zip(took, seconds, strict=True):
        cut = stage.cut
        factor = stage.seconds * profile.batch_size / expected if expected > 0 else 1.0
        for place in range(cut.start, cut.stop):
            for costs in (units, heads, fuller):
                if costs is not None:
                    costs[place] = _times(costs[place], factor)
    return replace(model, profile=replace(profile, units=units, heads=heads, fuller_heads=fuller))


def _times(cost: Cost, factor: float) -> Cost:
    seconds: dict[str, Any] = {
        name: factor * getattr(cost, name)
        for name in ("forward_s", "backward_s", "input_gradient_s", "reconcile_s", "update_s")
    }
    return replace(cost, **seconds)


def _short(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 6 else f"{names[0]}, ..., {names[-1]} ({len(names)})"
