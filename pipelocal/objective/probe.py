"""Checks before training that a stage can be differentiated twice, as exact SGR needs."""

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, autograd, nn

from pipelocal.errors import UserError
from pipelocal.heads import call_head
from pipelocal.models.payload import Payload, each, pack, unpack
from pipelocal.models.trial import shadow
from pipelocal.seeding import seeded
from pipelocal.system.tensor_kind import TensorKind


def check_double_backward(
    body: nn.Sequential,
    head: nn.Module,
    x_shape: tuple[int, ...],
    *,
    stage: int,
    beside: Sequence[TensorKind] = (),
) -> None:
    """Differentiate a copy of the stage twice on two random samples.

    Args:
        body: the stage's units.
        head: its head.
        x_shape: shape of one input, without the batch dimension.
        stage: number of the stage, for the error.
        beside: kinds of the inputs beside it.

    Raises:
        UserError: a unit's or the head's gradient cannot be differentiated; names it and the remedy.
    """
    x = first = random_input(body, head, 2, [TensorKind(name="x", shape=x_shape), *beside])
    with seeded(0, "probe"):
        # Copies: a probe must change neither gradients nor BatchNorm's running statistics.
        parts = [(f"unit '{name}'", unit) for name, unit in copy.deepcopy(body).named_children()]
        for what, part in [*parts, ("the head", copy.deepcopy(head))]:
            part.train()
            try:
                run = partial(call_head, part, x=first) if what == "the head" else part
                x = _differentiate_twice(run, x)
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
    body: nn.Sequential, head: nn.Module, kinds: Sequence[TensorKind], *, stage: int
) -> None:
    """Run a copy of the stage on a batch of one sample.

    Args:
        body: the stage's units.
        head: its head.
        kinds: kinds of its inputs, main first.
        stage: number of the stage, for the error.

    Raises:
        UserError: the stage cannot train on one sample, for example because of BatchNorm on flat features.
    """
    x = random_input(body, head, 1, kinds)
    try:
        with torch.no_grad(), seeded(0, "probe"):
            call_head(shadow(head).train(), shadow(body).train()(x), x)
    except ValueError as error:
        raise UserError(
            f"stage {stage}: a training batch has one sample, which this stage cannot train on "
            f"({error}): choose --drop-last or another --batch-size"
        ) from error


def random_input(
    body: nn.Module, head: nn.Module, rows: int, kinds: Sequence[TensorKind]
) -> Payload:
    """Make inputs on the modules' device: normal random numbers, or ones where they are no numbers.

    Tokens are zeros, which every vocabulary has; masks let everything pass.
    """
    parameter = next(iter([*body.parameters(), *head.parameters()]), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    made: list[Tensor] = []
    with seeded(0, "probe"):
        for kind in kinds:
            shape = (rows, *kind.shape)
            if kind.dtype.is_floating_point:
                made.append(torch.randn(shape, dtype=kind.dtype, device=device))
            elif not made:
                made.append(torch.zeros(shape, dtype=kind.dtype, device=device))
            else:
                made.append(torch.ones(shape, dtype=kind.dtype, device=device))
    return pack(made[0], tuple(made[1:]))


def _differentiate_twice(unit: Callable[[Payload], Payload], x: Payload) -> Payload:
    main, beside = unpack(x)
    main = main.detach().requires_grad_()
    payload = unit(pack(main, beside))
    out, _ = unpack(payload)
    (gradient,) = autograd.grad(out.square().sum(), main, create_graph=True)
    if gradient.requires_grad:
        gradient.square().sum().backward()  # type: ignore[no-untyped-call]
    return each(Tensor.detach, payload)
