"""Where a model is cut for a comparison, and how long a stage takes: measured in this process."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import torch

from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of, cut_of
from pipelocal.partition.measured import Stopwatch
from pipelocal.run.blueprint import Blueprint
from pipelocal.run.costs import cost_model, partitioned


def balanced_cut(config: TrainConfig) -> str:
    """The cut that ``--balance time`` makes of a training with these options, as ``--cut`` takes it.

    Units and heads are measured in this process, on its CPU threads.
    """
    config = replace(config, balance="time", cut=None)
    blueprint = blueprint_of(config)
    stopwatch = Stopwatch(device=torch.device("cpu"))
    return partitioned(
        blueprint,
        cut_of(config),
        config,
        lambda: cost_model(blueprint, config, stopwatch, batch_size=config.batch_size),
    ).cut_text


def seconds_of_stage(blueprint: Blueprint, config: TrainConfig, number: int, repeats: int) -> float:
    """Seconds of a training step of one stage, alone: the mean over plain and reconciled ones, of medians."""
    stage = blueprint.build_stage(number, device=torch.device("cpu"), total_steps=3 * repeats)
    shape = (config.batch_size, *blueprint.output_shape(number - 1))
    dtype = blueprint.chain.input_dtype if number == 1 else torch.float32
    x = torch.randn(shape) if dtype.is_floating_point else torch.randint(9, shape, dtype=dtype)
    target = torch.randint(blueprint.classes, (config.batch_size, *blueprint.info.target_shape))

    def median(delta: torch.Tensor | None) -> float:
        seconds = []
        for _ in range(repeats + 1):
            started = time.perf_counter()
            stage.step(x, target, delta)
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds[1:])

    plain = median(None)
    if not stage.wants_delta:
        return plain
    share = 1 / config.reconcile_every
    return (1 - share) * plain + share * median(torch.randn(shape) / config.batch_size)
