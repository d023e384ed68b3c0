"""Memory layout of tensors: contiguous, or channels last for images."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def laid_out(tensor: Tensor, *, channels_last: bool) -> Tensor:
    """Return the tensor or a copy in the wanted layout: ``[B, C, H, W]`` channels last, or contiguous.

    Args:
        tensor: of any shape and dtype; anything but a batch of images is made contiguous.
        channels_last: whether C is to vary fastest in memory.
    """
    if channels_last and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor.contiguous()


def put_channels_last(module: nn.Module) -> None:
    """Put the weights of two-dimensional convolutions in channels-last layout; values stay the same."""
    for parameter in module.parameters():
        parameter.data = laid_out(parameter.data, channels_last=True)


def own_memory(out: Tensor, *inputs: Tensor, channels_last: bool = False) -> Tensor:
    """Lay out ``out``, in memory apart from the inputs', which is reused while ``out`` is being sent."""
    return apart(laid_out(out, channels_last=channels_last), *inputs)


def apart(tensor: Tensor, *others: Tensor) -> Tensor:
    """Return the tensor, or a copy if it shares memory with another."""
    own = tensor.untyped_storage().data_ptr()
    shared = any(own == other.untyped_storage().data_ptr() for other in others)
    return tensor.clone() if shared else tensor
