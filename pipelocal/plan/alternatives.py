"""Other ways to train the same model, by the same costs."""

from __future__ import annotations

from dataclasses import dataclass

from pipelocal.partition.cost_model import CostModel
from pipelocal.run.blueprint import Blueprint


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """Another way to train the same model with the same global batch."""

    name: str
    seconds: float
    """Seconds per training batch."""
    memory_bytes: int
    """Memory of the device that needs most."""


def alternatives(
    blueprint: Blueprint, model: CostModel, micro_batches: int, speeds: list[float]
) -> list[Alternative]:
    """Predict back-propagation on one device, and a 1F1B pipeline with the same cut.

    Args:
        blueprint: the model, cut.
        model: the costs of its units and heads.
        micro_batches: number of micro-batches of the pipeline.
        speeds: relative speed of each stage's device.
    """
    profile = model.profile
    whole = [*profile.units, profile.heads[-1]]
    bp = Alternative(
        name="BP, one device",
        seconds=sum(part.train_s for part in whole) - whole[0].input_gradient_s,
        memory_bytes=sum(part.held_bytes for part in whole) + profile.input_bytes,
    )
    # A schedule of m micro-batches over K stages takes m + K - 1 turns of its slowest stage, and
    # 1F1B keeps K - k + 1 micro-batches at stage k. Transfers are assumed to be free, as above.
    turns = micro_batches + blueprint.stages - 1
    seconds, memory = [], []
    for number, cut in enumerate(blueprint.cuts, start=1):
        parts = profile.units[cut.start : cut.stop]
        if number == blueprint.stages:
            parts = [*parts, profile.heads[-1]]
        seconds.append(sum(part.train_s for part in parts) / speeds[number - 1])
        in_flight = min(micro_batches, blueprint.stages - number + 1)
        saved = sum(part.saved_bytes for part in parts)
        resident = sum(part.held_bytes for part in parts) - saved
        memory.append(resident + saved * in_flight // micro_batches)
    pipeline = Alternative(
        name=f"1F1B, same cut, {micro_batches} micro-batches",
        seconds=max(seconds) / micro_batches * turns,
        memory_bytes=max(memory),
    )
    return [bp, pipeline]
