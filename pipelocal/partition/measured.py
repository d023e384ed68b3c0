"""Measures costs on the device on which the model will run."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipelocal.partition.profile import LossOf, backward_pass, forward_pass


@dataclass(frozen=True, kw_only=True)
class Stopwatch:
    """A :class:`Meter` that runs everything and measures the time.

    Args:
        device: where to run.
        repeats: number of runs of which the median counts, after one warm-up run.
    """

    device: torch.device
    repeats: int = 3

    def seconds_of_pass(
        self, module: nn.Module, x: Tensor, loss: LossOf | None, *, reconcile: bool
    ) -> tuple[float, float]:
        """See :class:`Meter`; medians."""
        runs = []
        for _ in range(self.repeats + 1):
            module.zero_grad(set_to_none=True)
            leaf = x.detach().requires_grad_(x.requires_grad)
            started = self._now()
            out = forward_pass(module, leaf, loss)
            between = self._now()
            backward_pass(leaf, out, reconcile=reconcile)
            runs.append((between - started, self._now() - between))
        return (
            statistics.median(forward for forward, _ in runs[1:]),
            statistics.median(backward for _, backward in runs[1:]),
        )

    def seconds_of_step(self, optimizer: torch.optim.Optimizer) -> float:
        """See :class:`Meter`; the median."""
        runs = []
        for _ in range(self.repeats + 1):
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = torch.zeros_like(parameter)
            started = self._now()
            optimizer.step()
            runs.append(self._now() - started)
        return statistics.median(runs[1:])

    def _now(self) -> float:
        if self.device.type == "cuda":
            # Synchronising is fine: this only measures, and nothing else is running.
            torch.cuda.current_stream(self.device).synchronize()
        return time.perf_counter()
