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
from pipelocal.heads.pooled import ConvHead, linear, mlp
from pipelocal.heads.token import TokenMeanLinear, TokenMLP
from pipelocal.models.in_place import give_own_input
from pipelocal.models.layers import TokenLinear
from pipelocal.models.trial import changes_input, shadow
from pipelocal.registry import Registry

HeadBuilder = Callable[..., nn.Module]
"""Called with the shape of one feature (no batch dimension) and the number of classes; and with those of
these that it has a parameter for: ``target_shape=`` (of one row of the labels), ``input_shape=`` (of one row
of the stage's input), ``downstream=`` (a :class:`Downstream`)."""

HEADS: Registry[HeadBuilder] = Registry(
    "head", takes="feature_shape, classes, target_shape=, input_shape=, downstream="
)


HEADS.register("linear")(linear)
HEADS.register("conv")(ConvHead)
HEADS.register("mlp")(mlp)
HEADS.register("token")(TokenLinear)
HEADS.register("token-mlp")(TokenMLP)
HEADS.register("token-mean")(TokenMeanLinear)
HEADS.register("downstream")(downstream_head)
HEADS.register("linear-fixed")(linear_fixed)


def build_head(
    builder: HeadBuilder,
    feature_shape: tuple[int, ...],
    *,
    classes: int,
    target_shape: tuple[int, ...],
    input_shape: tuple[int, ...] | None = None,
    downstream: Downstream | None = None,
) -> nn.Module:
    """A head in the form that fits the labels, and seen to fit them.

    Args:
        builder: makes it.
        feature_shape: shape of one row of the stage's output.
        classes: number of classes.
        target_shape: shape of one row of the labels.
        input_shape: shape of one row of the stage's input; None where that is not known yet.
        downstream: what follows the cut; not needed by heads that do not ask for it.

    Raises:
        UserError: it does not fit features or labels, or wants an input that is not known.
    """
    what = f"head '{HEADS.name_of(builder)}'"
    offered = {"target_shape": target_shape, "input_shape": input_shape, "downstream": downstream}
    asked = inspect.signature(builder).parameters
    head = builder(feature_shape, classes, **{k: v for k, v in offered.items() if k in asked})
    if not isinstance(head, nn.Module):
        raise UserError(f"{what}: returned {type(head).__name__}: return Module")
    head.to(torch.get_default_device())  # units copied from a ready model stay on its device
    mend = "choose --head linear"
    if target_shape and len(feature_shape) != 2:
        mend = f"labels {list(target_shape)} want a model that passes on tokens [T, C]"
    logits_shape = (*target_shape, classes)
    check_logits(head, feature_shape, logits_shape, what=what, mend=mend, input_shape=input_shape)
    if not takes_input(head) and changes_input(shadow(head), torch.zeros(2, *feature_shape)):
        give_own_input(head)
    return head


def takes_input(head: nn.Module) -> bool:
    """Whether a head also sees its stage's input: a class says so by ``takes_input = True``."""
    return bool(getattr(head, "takes_input", False))


def call_head(head: Callable[..., Tensor], out: Tensor, x: Tensor) -> Tensor:
    """A head's logits.

    Args:
        head: of a stage.
        out: output of its body ``[B, ...]``.
        x: the stage's input ``[B, ...]``, which some heads see as their second argument.
    """
    return head(out, x) if getattr(head, "takes_input", False) else head(out)


def check_logits(
    head: nn.Module,
    feature_shape: tuple[int, ...],
    logits_shape: tuple[int, ...],
    *,
    what: str,
    mend: str,
    input_shape: tuple[int, ...] | None = None,
) -> None:
    """Try a copy of a head, in evaluation mode, on two samples of zeros.

    Args:
        head: makes logits from features.
        feature_shape: shape of one row of the features.
        logits_shape: shape that one row of its logits must have.
        what: names the head in the error.
        mend: what the user can do.
        input_shape: shape of one row of the stage's input, for heads that see it.

    Raises:
        UserError: it does not take the features, or its logits have another shape.
    """
    if takes_input(head) and input_shape is None:
        raise UserError(
            f"{what} sees its stage's input, which is not known before the model is cut: choose "
            f"--balance count, or give --cut"
        )
    try:
        with torch.no_grad():
            x = torch.zeros(2, *(input_shape or ()))
            logits = call_head(shadow(head).eval(), torch.zeros(2, *feature_shape), x)
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
