"""How tensors lie in memory: contiguous, or images with their channels last."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def laid_out(tensor: Tensor, *, channels_last: bool) -> Tensor:
    """The tensor itself or a copy: ``[B, C, H, W]`` with the channels last if so wanted.

    Args:
        tensor: of any shape and dtype; what is no batch of images is made contiguous.
        channels_last: whether C is to vary fastest in memory.
    """
    if channels_last and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor.contiguous()


def put_channels_last(module: nn.Module) -> None:
    """Lay out the weights of two-dimensional convolutions so; what is in them stays."""
    for parameter in module.parameters():
        parameter.data = laid_out(parameter.data, channels_last=True)


def own_memory(out: Tensor, x: Tensor, *, channels_last: bool = False) -> Tensor:
    """Laid out, and apart from the input, whose memory is used again while ``out`` travels."""
    out = laid_out(out, channels_last=channels_last)
    shared = out.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    return out.clone() if shared else out
