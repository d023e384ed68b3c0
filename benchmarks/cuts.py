"""Where a model is cut for a comparison, and what a step of a stage takes: measured in this process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.live_bytes import LiveBytes
from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of, cut_of
from pipelocal.objective import way_back_of
from pipelocal.partition.measured import Stopwatch
from pipelocal.run.blueprint import Blueprint
from pipelocal.run.costs import cost_model, partitioned
from pipelocal.system.tensor_kind import TensorKind

Step = Callable[[], None]


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


class StageAlone:
    """One stage with its objective, and a batch of random numbers as the run would bring it.

    Args:
        blueprint: the cut model.
        config: of the training.
        number: the stage's number.
        steps: batches of the run, of which as many are trained on as :meth:`step` is called.
    """

    def __init__(
        self, blueprint: Blueprint, config: TrainConfig, number: int, *, steps: int = 100
    ) -> None:
        self._rows, self._reconcile_every = config.batch_size, config.reconcile_every
        self._way = way_back_of(blueprint.recipe.objective)
        self._gives, self._takes = number > 1, number < blueprint.stages
        self.stage = blueprint.build_stage(number, device=torch.device("cpu"), total_steps=steps)
        self._x, *self._beside = map(self._drawn, blueprint.passed_on(number - 1))
        self._relayed = {
            relay.name: self._x
            if relay.of == number - 1
            else self._drawn(blueprint.passed_on(relay.of)[0])
            for relay in blueprint.relays
            if relay.of < number <= relay.until
        }
        shape = (self._rows, *blueprint.info.target_shape)
        self._target = torch.randint(blueprint.classes, shape)

    def step(self, *, apart: bool = False) -> None:
        """Train on the batch.

        Args:
            apart: whether it is one of those that :attr:`every` says: reconciled, or with something that
                flows back.
        """
        if apart and self._way is not None:
            self._step_back()
            return
        if self._way is not None:
            self.stage.steps = 0
        delta = None
        if apart and self.stage.wants_delta:
            delta = torch.randn(self._x.shape) / self._rows
        self.stage.step(self._x, self._target, delta, beside=self._beside, relayed=self._relayed)

    @property
    def every(self) -> int | None:
        """Batches between two that are apart from the others; None if all are alike."""
        if self._way is not None:
            return self._way.every
        return self._reconcile_every if self.stage.wants_delta else None

    def mean(self, figure: Callable[[Step], float]) -> float:
        """The mean over all kinds of steps of a figure of a step, which it calls."""
        every, apart = self.every, partial(self.step, apart=True)
        if every == 1:
            return figure(apart)
        plain = figure(self.step)
        return plain if every is None else plain + (figure(apart) - plain) / every

    def _step_back(self) -> None:
        """Train on the batch, with random numbers for what comes back."""
        stage, way = self.stage, self._way
        assert way is not None
        stage.steps = way.every - 1
        out = stage.forward(self._x, self._beside, relayed=self._relayed)
        stage.output_gradient(self._target)
        stage.reconcile(None)
        if self._gives and not way.passed_on:
            stage.give_back()
        if self._takes:
            stage.take_back(torch.randn(out.shape) / self._rows)
        if self._gives and way.passed_on:
            stage.give_back()
        stage.metrics(self._target)
        stage.update()

    def _drawn(self, kind: TensorKind) -> Tensor:
        shape = (self._rows, *kind.shape)
        if kind.dtype.is_floating_point:
            return torch.randn(shape, dtype=kind.dtype)
        return torch.randint(9, shape, dtype=kind.dtype)


def seconds_of_stage(blueprint: Blueprint, config: TrainConfig, number: int, repeats: int) -> float:
    """Seconds of a training step of one stage, alone: the mean over plain and reconciled ones, of medians."""

    def median(step: Step) -> float:
        seconds = []
        for _ in range(repeats + 1):
            started = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds[1:])

    return StageAlone(blueprint, config, number, steps=3 * repeats).mean(median)


def multiply_adds_of_stage(blueprint: Blueprint, config: TrainConfig, number: int) -> float:
    """Multiply-adds of a training step of one stage, forward and backward, in the same mean."""

    def counted(step: Step) -> float:
        step()  # objectives may measure something on the first batch, and seldom after
        with FlopCounterMode(display=False) as counter:
            step()
        return float(counter.get_total_flops() / 2)

    return StageAlone(blueprint, config, number).mean(counted)


def peak_bytes_of_stage(blueprint: Blueprint, config: TrainConfig, number: int) -> int:
    """Most bytes of tensors that live at a time in two training steps of one stage, alone.

    Weights, gradients, the optimizer's state and one batch are among them; the edges' buffers are not.
    """
    counter = LiveBytes()
    with counter:
        alone = StageAlone(blueprint, config, number)
        for _ in range(2):  # gradients live beside the optimizer's state from the second on
            alone.step(apart=alone.every is not None)
    return counter.peak
