"""Where and how a stage computes: its speed and its memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from pipelocal.options import BATCHES, Limits, option

AUTOCAST = {"bf16": torch.bfloat16}
"""The dtypes that --autocast accepts, by name."""


@dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    """Where and how a stage computes: its speed and its memory."""

    device: str = option("auto", of_the_bits=False, alike=False)
    """auto (CUDA where there is any), cpu or cuda."""
    threads: int = option(1, limits=Limits(1, 1024, why="the system may refuse more"), alike=False)
    """CPU threads of each rank. With the same number, any number of ranks gives the same bits."""
    autocast: Literal["bf16"] | None = None
    """bf16: run body and head under torch.autocast in bfloat16. Parameters, optimizer, loss and
    reconciliation's difference stay float32, and so does what leaves a stage (see --wire)."""
    channels_last: bool = False
    """Keep images channels last in memory, in every stage and on the edges."""
    compile: str | None = None
    """Compile every stage's body and head with this back end of torch.compile, such as inductor (which on
    CPUs wants a C++ compiler) or aot_eager."""
    cuda_graphs: bool = option(False, of_the_bits=False)
    """Launch the passes of a stage's body, and of its head, as CUDA graphs: less time where kernels are
    short, the same results. For code that does the same on every batch."""
    checkpoint_activations: int | None = option(None, limits=BATCHES)
    """Keep of so many units the input alone, and compute what they make again in the backward pass: less
    memory, more time, the same bits."""
    step_early: bool = False
    """Update each parameter as soon as its gradient is there, and let that go: less memory, the same bits.
    Batches that sgr reconciles are updated at their end, as without it."""
    bp_free: bool = False
    """Form every gradient by its written-out formula, without autograd: one layer a stage (linear or
    convolution, with its norm and activation), head linear."""

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """Return the dtype that ``autocast`` names; None without autocast."""
        return None if self.autocast is None else AUTOCAST[self.autocast]
