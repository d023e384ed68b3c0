"""Estimates costs by analysis on the meta device: nothing is allocated or computed."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipelocal.partition.profile import LossOf, backward_pass, forward_pass
from pipelocal.telemetry.memory import SavedBytes, tensor_bytes

META = torch.device("meta")


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """A :class:`Meter` that counts operations and bytes instead of running anything.

    A pass takes the longer of two times: its floating-point operations at the device's rate, and the
    bytes that it moves at the memory's rate (the roofline model, Williams et al., Communications of
    the ACM 52(4), 2009). Counted operations are those of matrix products, convolutions and attention,
    with two per multiply-add. Bytes are approximate: input, parameters and output once, plus the
    tensors kept for the backward pass, written and read, as an estimate of intermediate traffic; a
    backward pass moves twice the bytes. Real devices reach neither rate, so relative times are more
    reliable than seconds.

    Args:
        flops: floating-point operations per second.
        memory_bytes_per_s: memory bandwidth in bytes per second.
    """

    flops: float
    memory_bytes_per_s: float
    device: torch.device = field(default=META, init=False)

    def seconds_of_pass(
        self, module: nn.Module, x: Tensor, loss: LossOf | None, *, reconcile: bool
    ) -> tuple[float, float]:
        """See :class:`Meter`."""
        leaf = x.detach().requires_grad_(x.requires_grad)
        fixed = [leaf, *module.parameters()]
        saved = SavedBytes(fixed)
        with saved.counting():
            with FlopCounterMode(display=False) as forward:
                out = forward_pass(module, leaf, loss)
            with FlopCounterMode(display=False) as backward:
                backward_pass(leaf, out, reconcile=reconcile)
        module.zero_grad(set_to_none=True)
        moved = tensor_bytes([*fixed, out]) + 2 * saved.peak_bytes
        return (
            self._seconds(forward.get_total_flops(), moved),
            self._seconds(backward.get_total_flops(), 2 * moved),
        )

    def seconds_of_step(self, optimizer: torch.optim.Optimizer) -> float:
        """See :class:`Meter`: gradients are read, parameters and state read and written."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        values = [value for state in optimizer.state.values() for value in state.values()]
        state = tensor_bytes(value for value in values if isinstance(value, Tensor))
        return self._seconds(0, 3 * tensor_bytes(parameters) + 2 * state)

    def _seconds(self, operations: int, moved_bytes: int) -> float:
        return max(operations / self.flops, moved_bytes / self.memory_bytes_per_s)
