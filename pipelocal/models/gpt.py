"""A causal transformer for language models, after GPT-2 (Radford et al. 2019).

::

    embed        token and position embedding          [B, T]    -> [B, T, C]
    block1..n    x + attention(norm(x)), x + MLP(norm(x))
    classifier   norm and a linear map of each token   [B, T, C] -> [B, T, vocabulary]

The embedding and each block are units. The classifier has its own weights: if they were tied to the
token embedding, as in GPT-2, they would be shared by the first and the last stage, and their gradient
would have to flow back.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipelocal.errors import UserError
from pipelocal.models.chain import Chain
from pipelocal.models.unit import Shape, Unit

BLOCKS = 6
WIDTH = 128
HEADS = 4
_STD = 0.02


def _linear(inputs: int, outputs: int, *, std: float = _STD) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.normal_(linear.weight, std=std)
    nn.init.zeros_(linear.bias)
    return linear


class Embedding(nn.Module):
    """Tokens ``[B, T]`` int64 to ``[B, T, C]``, the sum of token and position embeddings."""

    def __init__(self, vocabulary: int, length: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, WIDTH)
        self.position = nn.Embedding(length, WIDTH)
        nn.init.normal_(self.token.weight, std=_STD)
        nn.init.normal_(self.position.weight, std=_STD)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.token(tokens) + self.position.weight[: tokens.shape[1]]
        return out


class CausalAttention(nn.Module):
    """Each token attends to itself and those before it: ``[B, T, C]`` to ``[B, T, C]``.

    Args:
        out_std: standard deviation of the last projection's initial weights.
        math: whether to use the only attention back end of PyTorch that can be differentiated twice.
    """

    def __init__(self, *, out_std: float, math: bool) -> None:
        super().__init__()
        self.query_key_value = _linear(WIDTH, 3 * WIDTH)
        self.out = _linear(WIDTH, WIDTH, std=out_std)
        self._math = math

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        # [3, B, heads, T, C / heads]
        split = self.query_key_value(x).view(batch, length, 3, HEADS, width // HEADS)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        if self._math:
            with sdpa_kernel(SDPBackend.MATH):
                mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and a two-layer GELU MLP, each with pre-norm: ``[B, T, C]`` to ``[B, T, C]``."""

    def __init__(self, *, math: bool) -> None:
        super().__init__()
        # The residual stream sums 2 * BLOCKS projections.
        out_std = _STD / (2 * BLOCKS) ** 0.5
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.attention = CausalAttention(out_std=out_std, math=math)
        self.mlp_norm = nn.LayerNorm(WIDTH)
        self.mlp_in = _linear(WIDTH, 4 * WIDTH)
        self.mlp_out = _linear(4 * WIDTH, WIDTH, std=out_std)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))  # type: ignore[no-any-return]


class Classifier(nn.Module):
    """The last norm and a linear map: ``[B, T, C]`` to ``[B, T, vocabulary]``."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.linear = _linear(WIDTH, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))  # type: ignore[no-any-return]


def gpt(input_shape: Shape, classes: int, *, math: bool = False) -> Chain:
    """Build six blocks of width 128 with 4 heads, without dropout; the classes are the vocabulary.

    Args:
        input_shape: ``(T,)``, the longest sequence.
        classes: size of the vocabulary.
        math: whether to use PyTorch's MATH back end for attention, which is slower but can be
            differentiated twice. Parameters and their names are the same.

    Raises:
        UserError: the samples are not sequences.
    """
    length = sequence_length("gpt", input_shape)
    units = [
        Unit(name="embed", build=partial(Embedding, classes, length)),
        *(Unit(name=f"block{i + 1}", build=partial(Block, math=math)) for i in range(BLOCKS)),
    ]
    return Chain(
        units,
        classifier=Unit(name="classifier", build=partial(Classifier, classes)),
        input_shape=input_shape,
        classes=classes,
        input_dtype=torch.int64,
    )


def sequence_length(model: str, input_shape: Shape) -> int:
    """Return T of samples ``(T,)``; raise a :class:`UserError` for any other shape."""
    if len(input_shape) != 1:
        raise UserError(
            f"model '{model}' takes sequences of tokens [T], but the samples are "
            f"{list(input_shape)}: choose --data text, or another model"
        )
    return input_shape[0]
