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
from torch import Tensor, nn

from pipelocal.errors import UserError
from pipelocal.heads.downstream import Downstream, downstream_head
from pipelocal.heads.fixed import linear_fixed
from pipelocal.heads.pooled import ConvHead, MLPHead, linear
from pipelocal.heads.token import TokenMeanLinear, TokenMLP
from pipelocal.models.in_place import give_own_input
from pipelocal.models.layers import TokenLinear
from pipelocal.models.trial import changes_input, shadow
from pipelocal.references import returned, users_code
from pipelocal.registry import Registry

HeadBuilder = Callable[..., nn.Module]
"""Called with the shape of one feature (no batch dimension) and the number of classes; and with
``downstream=`` (a :class:`Downstream`), where it has a parameter of that name."""

HEADS: Registry[HeadBuilder] = Registry("head", takes="feature_shape, classes, downstream=")

PER_TOKEN = {"linear": "token", "mlp": "token-mlp"}
"""What a head's name stands for where every token has a label of its own."""


HEADS.register("linear")(linear)
HEADS.register("conv")(ConvHead)
HEADS.register("mlp")(MLPHead)
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
    with users_code("head", name):
        more = {"downstream": downstream} if asks else {}
        head = returned(builder(feature_shape, classes, **more), nn.Module)
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
