"""Auxiliary heads: what turns a stage's output into the task's output, such as logits, for its local loss.

Auxiliary heads are dropped when the model is exported; the last stage uses the model's own classifier
instead.

The number of dimensions of a stage's output determines their meaning::

    [B, C]           one vector per sample
    [B, T, C]        tokens (never channels over a length: give such a unit's output a fourth
                     dimension, or transpose it)
    [B, C, H, W]     channels over space
"""

import inspect
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from pipelocal.errors import UserError
from pipelocal.heads.conv import conv
from pipelocal.heads.dgl import dgl
from pipelocal.heads.downstream import Downstream, downstream
from pipelocal.heads.guided import guided
from pipelocal.heads.linear import linear
from pipelocal.heads.mlp import mlp
from pipelocal.heads.names import HeadBuilder, HeadRegistry
from pipelocal.models.copying import copy_of
from pipelocal.models.in_place import give_own_input
from pipelocal.models.payload import Payload, pack, unpack
from pipelocal.models.trial import changes_input, shadow
from pipelocal.references.importing import calling
from pipelocal.system.tensor_kind import TensorKind

HEADS = HeadRegistry(
    "head",
    takes="feature_shape, classes, output_shape=, target_shape=, input_shape=, downstream=",
)

HEADS.register("linear")(linear)
HEADS.register("mlp")(mlp)
HEADS.register("conv")(conv)
HEADS.register("dgl")(dgl)
HEADS.register("downstream")(downstream)
HEADS.register("twin")(partial(downstream, twin=True))
HEADS.register("guided")(guided)


def build_head(
    builder: HeadBuilder,
    feature_shape: tuple[int, ...],
    *,
    classes: int,
    target_shape: tuple[int, ...],
    output_shape: tuple[int, ...] | None = None,
    input_shape: tuple[int, ...] | None = None,
    downstream: Downstream | None = None,
) -> nn.Module:
    """Build a head for the task's output, and check that it makes it.

    Args:
        builder: builds the head.
        feature_shape: shape of one row of the stage's output.
        classes: number of classes, labels or outputs.
        target_shape: shape of one row of the targets.
        output_shape: shape of one row of the output; None for logits of every label.
        input_shape: shape of one row of the stage's input; None if not known yet.
        downstream: what follows the cut; needed only by heads that ask for it.

    Raises:
        UserError: the head does not fit features or output, or needs an unknown input shape.
    """
    what = f"head '{HEADS.name_of(builder)}'"
    output_shape = (*target_shape, classes) if output_shape is None else output_shape
    offered = {
        "output_shape": output_shape,
        "target_shape": target_shape,
        "input_shape": input_shape,
        "downstream": downstream,
    }
    asked = inspect.signature(builder).parameters
    with calling(what):
        head = builder(feature_shape, classes, **{k: v for k, v in offered.items() if k in asked})
    if not isinstance(head, nn.Module):
        raise UserError(f"{what}: returned {type(head).__name__}: return Module")
    # A user's function may return one module for several stages, and they train apart.
    head = copy_of(head, shared=downstream)
    head.to(torch.get_default_device())  # units copied from an existing model stay on its device
    mend = "choose --head linear"
    if len(output_shape) == 2 and len(feature_shape) != 2:
        mend = f"outputs {list(output_shape)} want a model that passes on tokens [T, C]"
    elif len(output_shape) == 3 and len(feature_shape) != 3:
        mend = f"outputs {list(output_shape)} want a model that passes on images [C, H, W]"
    beside = downstream.crossing[0][1:] if downstream is not None else ()
    check_output(
        head,
        feature_shape,
        output_shape,
        what=what,
        mend=mend,
        input_shape=input_shape,
        beside=beside,
    )
    if not takes_input(head):
        changed = changes_input(shadow(head), _features(head, feature_shape, beside))
        if changed:
            give_own_input(head, changed)
    return head


def takes_input(head: nn.Module) -> bool:
    """Return whether a head also takes its stage's input, declared by ``takes_input = True``."""
    return bool(getattr(head, "takes_input", False))


def takes_beside(head: nn.Module) -> bool:
    """Return whether a head takes a tuple of all that its stage passes on, by ``takes_beside = True``."""
    return bool(getattr(head, "takes_beside", False))


def call_head(head: Callable[..., Tensor], out: Payload, x: Payload | None) -> Tensor:
    """Compute a head's output.

    Args:
        head: the head of a stage.
        out: outputs of its body ``[B, ...]``; most heads take the main one alone.
        x: the stage's inputs ``[B, ...]``, the main one of which some heads take as second argument; None
            to leave it out.
    """
    features = out if getattr(head, "takes_beside", False) else unpack(out)[0]
    if x is None or not getattr(head, "takes_input", False):
        return head(features)
    return head(features, unpack(x)[0])


def check_output(
    head: nn.Module,
    feature_shape: tuple[int, ...],
    output_shape: tuple[int, ...],
    *,
    what: str,
    mend: str,
    input_shape: tuple[int, ...] | None = None,
    beside: Sequence[TensorKind] = (),
) -> None:
    """Try a copy of a head, in evaluation mode, on two samples of zeros.

    Args:
        head: makes outputs from features.
        feature_shape: shape of one row of the features.
        output_shape: required shape of one row of its output.
        what: names the head in the error.
        mend: the remedy to suggest to the user.
        input_shape: shape of one row of the stage's input, for heads that take it.
        beside: what the stage passes on beside the features, for heads that take it.

    Raises:
        UserError: the head does not accept the features, or its output has another shape.
    """
    if takes_input(head) and input_shape is None:
        raise UserError(
            f"{what} sees its stage's input, which is not known before the model is cut: choose "
            f"--balance count, or give --cut"
        )
    try:
        with torch.no_grad():
            x = torch.zeros(2, *(input_shape or ()))
            output = call_head(shadow(head).eval(), _features(head, feature_shape, beside), x)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{what} does not take features {list(feature_shape)} ({reason}): {mend}"
        ) from error
    if not isinstance(output, Tensor) or output.shape != (2, *output_shape):
        made = list(output.shape[1:]) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(
            f"{what} makes {made} of features {list(feature_shape)}, but the task wants outputs "
            f"{list(output_shape)}: {mend}"
        )


def _features(
    head: nn.Module, feature_shape: tuple[int, ...], beside: Sequence[TensorKind]
) -> Payload:
    """Make two rows of what a head takes: zeros, and ones beside them, as in a mask."""
    others = (torch.ones(2, *kind.shape, dtype=kind.dtype) for kind in beside)
    return pack(torch.zeros(2, *feature_shape), tuple(others) if takes_beside(head) else ())
