"""Where a model is cut for a comparison, measured once for all methods."""

from __future__ import annotations

from dataclasses import replace

import torch

from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of, cut_of
from pipelocal.partition.measured import Stopwatch
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
