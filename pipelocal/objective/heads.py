"""Auxiliary heads: what turns a stage's output into logits for its local loss.

A head is thrown away when the model is exported; the last stage has none of these but the model's
own classifier.

The rank of a stage's output says what its dimensions mean::

    [B, C]           one vector a sample
    [B, T, C]        tokens (never channels over a length: give such a unit's output a fourth
                     dimension, or transpose it)
    [B, C, H, W]     channels over space
"""

import inspect
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelocal.errors import UserError
from pipelocal.models.in_place import give_own_input
from pipelocal.models.trial import changes_input, shadow
from pipelocal.objective.heads_downstream import Downstream, downstream_head
from pipelocal.objective.heads_fixed import linear_fixed
from pipelocal.objective.heads_token import (
    TokenLinear,
    TokenMeanLinear,
    TokenMLP,
    pooled_features,
)
from pipelocal.registry import Registry

HeadBuilder = Callable[..., nn.Module]
"""Called with the shape of one feature (no batch dimension) and the number of classes; and with
``downstream=`` (a :class:`Downstream`), where it has a parameter of that name."""

HEADS: Registry[HeadBuilder] = Registry("head")

PER_TOKEN = {"linear": "token", "mlp": "token-mlp"}
"""What a head's name stands for where every token has a label of its own."""


class PooledLinear(nn.Module):
    """Mean over everything behind the channels, then a linear map.

    Features ``[B, C, ...]`` to logits ``[B, classes]``; flat features ``[B, C]`` are not pooled.

    Raises:
        UserError: the features are tokens, whose channels come last.
    """

    def __init__(self, feature_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        if len(feature_shape) == 2:
            raise UserError(
                f"a pooled head wants features [C] or [C, H, W], but these are tokens "
                f"{list(feature_shape)}: choose --head token-mean"
            )
        self.linear = nn.Linear(feature_shape[0], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(2).mean(2) if x.dim() > 2 else x)  # type: ignore[no-any-return]


@HEADS.register("linear")
def linear(feature_shape: tuple[int, ...], classes: int) -> nn.Module:
    """A linear map of the features' mean, over space or over tokens: logits ``[B, classes]``."""
    head = TokenMeanLinear if len(feature_shape) == 2 else PooledLinear
    return head(feature_shape, classes)


@HEADS.register("conv")
class ConvHead(nn.Module):
    """A 3x3 convolution with BatchNorm and ReLU before the pooled linear map.

    Features ``[B, C, H, W]`` to logits ``[B, classes]``.

    Raises:
        UserError: the features are no images.
    """

    def __init__(self, feature_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        if len(feature_shape) != 3:
            raise UserError(
                f"head 'conv' wants features [C, H, W], but this stage makes {list(feature_shape)}: "
                f"choose --head linear"
            )
        channels = feature_shape[0]
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.pooled = PooledLinear(feature_shape, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.pooled(F.relu(self.norm(self.conv(x))))  # type: ignore[no-any-return]


@HEADS.register("mlp")
class MLPHead(nn.Module):
    """The features' mean through one hidden layer of as many units as there are channels.

    Features ``[B, C]``, ``[B, T, C]`` or ``[B, C, H, W]`` to logits ``[B, classes]``.
    """

    def __init__(self, feature_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels = feature_shape[-1] if len(feature_shape) == 2 else feature_shape[0]
        self.norm = nn.LayerNorm(channels)
        self.hidden = nn.Linear(channels, channels)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.hidden(self.norm(pooled_features(x))))
        return self.linear(hidden)  # type: ignore[no-any-return]


HEADS.register("token")(TokenLinear)
HEADS.register("token-mlp")(TokenMLP)
HEADS.register("token-mean")(TokenMeanLinear)
HEADS.register("downstream")(downstream_head)
HEADS.register("linear-fixed")(linear_fixed)


def build_head(
    name: str,
    feature_shape: tuple[int, ...],
    *,
    classes: int,
    target_shape: tuple[int, ...],
    downstream: Downstream | None = None,
) -> nn.Module:
    """The head called ``name``, in the form that fits the labels, and seen to fit them.

    Args:
        name: a name in :data:`HEADS`.
        feature_shape: shape of one row of the stage's output.
        classes: number of classes.
        target_shape: shape of one row of the labels.
        downstream: what follows the cut; not needed by heads that do not ask for it.

    Raises:
        UserError: there is none, or it does not fit features or labels.
    """
    if target_shape and len(feature_shape) == 2:
        name = PER_TOKEN.get(name, name)
    builder = HEADS.get(name)
    asks = "downstream" in inspect.signature(builder).parameters
    head = builder(feature_shape, classes, **({"downstream": downstream} if asks else {}))
    head.to(torch.get_default_device())  # units copied from a ready model stay on its device
    what = f"head '{name}'"
    mend = "choose --head linear"
    if target_shape and len(feature_shape) != 2:
        mend = f"labels {list(target_shape)} want a model that passes on tokens [T, C]"
    check_logits(head, feature_shape, (*target_shape, classes), what=what, mend=mend)
    if changes_input(shadow(head), torch.zeros(2, *feature_shape)):
        give_own_input(head)
    return head


def check_logits(
    head: nn.Module,
    feature_shape: tuple[int, ...],
    logits_shape: tuple[int, ...],
    *,
    what: str,
    mend: str,
) -> None:
    """Try a copy of a head, in evaluation mode, on two samples of zeros.

    Args:
        head: makes logits from features.
        feature_shape: shape of one row of the features.
        logits_shape: shape that one row of its logits must have.
        what: names the head in the error.
        mend: what the user can do.

    Raises:
        UserError: it does not take the features, or its logits have another shape.
    """
    try:
        with torch.no_grad():
            logits = shadow(head).eval()(torch.zeros(2, *feature_shape))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{what} does not take features {list(feature_shape)} ({reason}): {mend}"
        ) from error
    if not isinstance(logits, Tensor) or logits.shape != (2, *logits_shape):
        made = list(logits.shape[1:]) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(
            f"{what} makes {made} of features {list(feature_shape)}, but the labels want logits "
            f"{list(logits_shape)}: {mend}"
        )
