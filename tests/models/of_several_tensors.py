"""Models of several tensors for the command line."""

from __future__ import annotations

import torch

from pipelocal.models import Chain, Shape
from tests.models.several_tensors import Encoder, UNet


def unet(shape: Shape, classes: int) -> Chain:
    return Chain.from_module(UNet(shape[0], classes), units=UNet.UNITS, input_shape=shape)


def encoder(shape: Shape, classes: int) -> Chain:
    ids = torch.zeros(2, *shape, dtype=torch.int64)
    return Chain.from_module(
        Encoder(classes=classes),
        units=Encoder.UNITS,
        inputs={"ids": ids, "attention_mask": torch.ones_like(ids)},
    )
