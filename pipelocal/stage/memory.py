"""Counts the bytes that a stage holds besides its activations."""

from __future__ import annotations

from torch import Tensor

from pipelocal.stage.stage import Stage
from pipelocal.telemetry.memory import tensor_bytes


def resident_bytes(stage: Stage) -> int:
    """Count the bytes of parameters, buffers, optimizer state and, once trained, gradients at their peak."""
    state = [
        value
        for values in stage.optimizer.state.values()
        for value in values.values()
        if isinstance(value, Tensor)
    ]
    gradients = [p for p in model_tensors(stage) if p.requires_grad]
    return tensor_bytes([*model_tensors(stage), *state, *gradients])


def model_tensors(stage: Stage) -> list[Tensor]:
    """Return the parameters and buffers of body and head."""
    return [
        tensor for module in stage.modules for tensor in (*module.parameters(), *module.buffers())
    ]
