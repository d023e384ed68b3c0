"""``pipelocal train``: trains what the options describe."""

from __future__ import annotations

from functools import partial
from typing import Any, TextIO

from pipelocal.config.checks import validate
from pipelocal.config.resolve import compared_text, own_names, spec_of
from pipelocal.config.train import TrainConfig
from pipelocal.ranks.world import World
from pipelocal.run.spec import Spec
from pipelocal.run.train import run_training


def train(
    config: TrainConfig, world: World | None = None, *, stream: TextIO | None = None
) -> dict[str, Any]:
    """Train as the options say, on every rank.

    Args:
        config: the options.
        world: the ranks; by default those of torchrun, or this process alone.
        stream: where progress is shown (rank 0); standard output by default.

    Returns:
        The summary.

    Raises:
        UserError: the options, the data or the run folder cannot be used.
        StageError: a stage of this rank cannot continue.
        Interrupted: another rank failed.
        Terminated: a signal ended the run; a snapshot exists to continue from.
    """
    _, summary = run_training(
        partial(_checked, config),
        text=compared_text(config),
        own=own_names(config),
        patience_s=config.start_timeout,
        world=world,
        stream=stream,
    )
    return summary


def _checked(config: TrainConfig) -> Spec:
    validate(config)
    return spec_of(config)
