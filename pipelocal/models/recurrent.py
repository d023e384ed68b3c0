"""Stacks of recurrent layers for language models.

::

    embed        token embedding                [B, T]    -> [B, T, C]
    layer1..n    x + LSTM or GRU of norm(x)     [B, T, C] -> [B, T, C]
    classifier   norm and a linear map of each  [B, T, C] -> [B, T, vocabulary]

The embedding and each layer are units. A layer starts every sequence with a zero state and
passes on only its outputs, so that a single tensor is sent between stages. Without the residual sum and
the norms, the last of four layers barely learns, under back-propagation and in stages alike.
"""

from functools import partial

import torch
from torch import Tensor, nn

from pipelocal.models.chain import Chain
from pipelocal.models.gpt import sequence_length
from pipelocal.models.layers import TokenLinear
from pipelocal.models.unit import Shape, Unit

LAYERS = 4
WIDTH = 128


def _embedding(vocabulary: int) -> nn.Embedding:
    """Build the embedding, with weights too small to swamp the layers' outputs."""
    embedding = nn.Embedding(vocabulary, WIDTH)
    nn.init.normal_(embedding.weight, std=0.02)
    return embedding


class RecurrentLayer(nn.Module):
    """A recurrent layer with norm, added to its input: ``[B, T, C]`` to ``[B, T, C]``.

    Args:
        kind: ``nn.LSTM`` or ``nn.GRU``.
    """

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.recurrent = kind(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.recurrent(self.norm(x))[0]
        return x + outputs


def recurrent(kind: type[nn.LSTM] | type[nn.GRU], input_shape: Shape, classes: int) -> Chain:
    """Build four layers of width 128 over an embedding; the classes are the vocabulary.

    Args:
        kind: ``nn.LSTM`` or ``nn.GRU``.
        input_shape: ``(T,)``.
        classes: size of the vocabulary.

    Raises:
        UserError: the samples are not sequences.
    """
    sequence_length(kind.__name__.lower(), input_shape)
    units = [
        Unit(name="embed", build=partial(_embedding, classes)),
        *(Unit(name=f"layer{i + 1}", build=partial(RecurrentLayer, kind)) for i in range(LAYERS)),
    ]
    return Chain(
        units,
        classifier=Unit(
            name="classifier", build=partial(TokenLinear, (input_shape[0], WIDTH), classes)
        ),
        input_shape=input_shape,
        classes=classes,
        input_dtype=torch.int64,
    )
