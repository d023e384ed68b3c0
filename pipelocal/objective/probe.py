"""Checks before training that a stage can be differentiated twice, as exact SGR needs."""

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, autograd, nn

from pipelocal.errors import UserError
from pipelocal.heads import call_head
from pipelocal.models.trial import shadow
from pipelocal.seeding import seeded


def check_double_backward(
    body: nn.Sequential, head: nn.Module, x_shape: tuple[int, ...], *, stage: int
) -> None:
    """Differentiate a copy of the stage twice on two random samples.

    Args:
        body: the stage's units.
        head: its head.
        x_shape: shape of one input, without the batch dimension.
        stage: number of the stage, for the error.

    Raises:
        UserError: a unit's or the head's gradient cannot be differentiated; names it and the remedy.
    """
    x = first = random_input(body, head, (2, *x_shape))
    with seeded(0, "probe"):
        # Copies: a probe must change neither gradients nor BatchNorm's running statistics.
        parts = [(f"unit '{name}'", unit) for name, unit in copy.deepcopy(body).named_children()]
        for what, part in [*parts, ("the head", copy.deepcopy(head))]:
            part.train()
            try:
                x = _differentiate_twice(partial(call_head, part, x=first), x)
            except RuntimeError as error:
                reason = str(error).partition("\n")[0].rstrip(".")
                other = " or another --head" if what == "the head" else ""
                raise UserError(
                    f"stage {stage}: {what} cannot be differentiated twice ({reason}), which "
                    f"--reconcile exact needs: choose --reconcile first-order{other}, or build it from "
                    f"operations that have a double backward (for attention: "
                    f"torch.nn.attention.sdpa_kernel(SDPBackend.MATH))"
                ) from error


def check_one_row(
    body: nn.Sequential, head: nn.Module, x_shape: tuple[int, ...], *, stage: int
) -> None:
    """Run a copy of the stage on a batch of one sample; arguments as for :func:`check_double_backward`.

    Raises:
        UserError: the stage cannot train on one sample, for example because of BatchNorm on flat features.
    """
    x = random_input(body, head, (1, *x_shape))
    try:
        with torch.no_grad(), seeded(0, "probe"):
            call_head(shadow(head).train(), shadow(body).train()(x), x)
    except ValueError as error:
        raise UserError(
            f"stage {stage}: a training batch has one sample, which this stage cannot train on "
            f"({error}): choose --drop-last or another --batch-size"
        ) from error


def random_input(
    body: nn.Module, head: nn.Module, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Make an input on the modules' device: normal random numbers, or zeros for integer dtypes."""
    parameter = next(iter([*body.parameters(), *head.parameters()]), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype, device=device)
    with seeded(0, "probe"):
        return torch.randn(shape, dtype=dtype, device=device)


def _differentiate_twice(unit: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    out: Tensor = unit(x)
    (gradient,) = autograd.grad(out.square().sum(), x, create_graph=True)
    if gradient.requires_grad:
        gradient.square().sum().backward()  # type: ignore[no-untyped-call]
    return out.detach()
