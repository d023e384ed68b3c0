"""Checks before training that a stage can be run twice on one batch, and be saved.

Reconciliation, recomputation and the comparison with back-propagation run a module again on a batch that it
has already seen. With seeded generators and the buffers of the first pass it gives the same output, unless it
keeps state elsewhere, such as a count in a plain attribute, which no snapshot would contain either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipelocal.errors import UserError
from pipelocal.heads import call_head
from pipelocal.models.payload import Payload, each, tensors_of
from pipelocal.models.trial import shadow
from pipelocal.seeding import seeded
from pipelocal.stage.replay import copies_of_buffers, replay
from pipelocal.system.plain_state import why_not_plain

TOLERANCE = 1e-3
"""Allowed difference on a GPU, where the order of sums varies, relative to the largest entry."""


@dataclass(frozen=True, kw_only=True)
class Demands:
    """What a run asks of its modules beyond one forward pass per batch."""

    again: str | None
    """The option that makes modules run again on a batch; None if there is none."""
    saved: bool
    """Whether the run takes snapshots."""
    replicas: bool
    """Whether a stage has several replicas."""

    @property
    def any(self) -> bool:
        """Whether there is anything to check."""
        return self.again is not None or self.saved or self.replicas


def check_purity(
    body: nn.Module, head: nn.Module, x: Payload, demands: Demands, *, stage: int
) -> None:
    """Run copies of the stage's units and head repeatedly on the same input.

    Args:
        body: the stage's units, by name.
        head: its head.
        x: inputs of two rows.
        demands: what the run asks for.
        stage: number of the stage, for the error.

    Raises:
        UserError: one of them keeps state outside its buffers and the seeded generators; names it
            and the remedy.
    """
    if not demands.any:
        return
    first = x
    parts = [(f"unit '{name.replace('/', '.')}'", unit) for name, unit in body.named_children()]
    for what, part in [*parts, ("the head", head)]:
        try:
            seen = first if what == "the head" else None
            own = shadow(part).train()
            moved = _moved_by_replay(own, x) if demands.again and seen is None else None
            counted, same, x = _run_again(own, x, seen)
        except Exception:
            return
        if moved:
            raise UserError(
                f"stage {stage}: {what} changes its buffer '{moved}' by another reference than its name, and "
                f"{demands.again} runs it more than once a batch: use the buffer by its name alone"
            )
        if counted:
            path, _, attribute = counted.rpartition(".")
            owner = f" of '{path}'" if path else ""
            raise UserError(
                f"stage {stage}: {what} counts its forward passes in the attribute '{attribute}'{owner}, "
                f"{_why(demands)}: keep the count in a buffer (self.register_buffer)"
            )
        if demands.again and not same:
            raise UserError(
                f"stage {stage}: {what} makes something else of the same input the next time, and "
                f"{demands.again} runs it more than once a batch: keep what it remembers in a buffer "
                f"(self.register_buffer), and draw random numbers from torch's, Python's or NumPy's "
                f"global generator"
            )


def check_extra_state(body: nn.Module, head: nn.Module, *, replicas: int, stage: int) -> None:
    """Check that modules' extra state can be saved, and loaded without trusting the file.

    Args:
        body: the stage's units, by name.
        head: its head.
        replicas: number of replicas of the stage.
        stage: number of the stage, for the error.

    Raises:
        UserError: the extra state cannot be saved or loaded; names the unit.
    """
    parts = [(f"unit '{name.replace('/', '.')}'", unit) for name, unit in body.named_children()]
    for what, part in [*parts, ("the head", head)]:
        for name, value in part.state_dict().items():
            if not name.endswith("_extra_state"):
                continue
            if replicas > 1:
                raise UserError(
                    f"stage {stage}: {what} keeps extra state, of which each replica would have its own: "
                    f"keep it in a buffer (self.register_buffer), or leave out --replicas"
                )
            error = why_not_plain(value)
            if error is not None:
                raise UserError(
                    f"stage {stage}: {what} keeps a {type(value).__name__} as extra state (or within it), "
                    f"which is not read from a file unless trusted: have get_extra_state() return tensors, "
                    f"numbers, text, lists or dicts"
                ) from error


def _why(demands: Demands) -> str:
    if demands.again:
        return f"and {demands.again} runs it more than once a batch"
    if demands.saved:
        return "which a snapshot does not hold"
    return "of which each replica would have its own"


def _run_again(
    module: nn.Module, x: Payload, first: Payload | None
) -> tuple[str | None, bool, Payload]:
    """Return the name of a number that each pass changes, whether outputs are equal, and the output.

    Args:
        module: a unit or a head.
        x: its input.
        first: the stage's input, for a head.
    """
    outs: list[Payload] = []
    numbers: list[dict[str, Any]] = []
    buffers = None
    for _ in range(3):  # the first pass may create state once, such as a mask
        if buffers is not None:
            with torch.no_grad():
                for name, buffer in module.named_buffers():
                    buffer.copy_(buffers[name])
        with seeded(0, "purity"):
            out = module(x) if first is None else call_head(module, x, first)
            outs.append(each(Tensor.detach, out))
        numbers.append(_numbers(module))
        buffers = buffers or copies_of_buffers(module)
    *_, before, after = numbers
    counted = next((name for name, value in after.items() if before.get(name) != value), None)
    *_, one, two = outs
    same = all(map(_close, tensors_of(one), tensors_of(two)))
    return counted, same, two


def _moved_by_replay(unit: nn.Module, x: Payload) -> str | None:
    """Return the name of a buffer that a replay changes, which works on copies; None if there is none."""
    before = copies_of_buffers(unit)
    with seeded(0, "purity"):
        replay(unit, x)
    for name, buffer in unit.named_buffers():
        if name in before and not _equal(buffer, before[name]):
            return name
    return None


def _close(one: Tensor, two: Tensor) -> bool:
    floating = one.is_floating_point()
    within = TOLERANCE * float(one.nan_to_num().abs().max()) if floating else 0.0
    return _equal(one, two, within=within)


def _equal(one: Tensor, two: Tensor, *, within: float = 0.0) -> bool:
    """Return whether tensors are equal; what is no number in both counts as equal."""
    if not one.is_floating_point():
        return torch.equal(one, two)
    return torch.allclose(one, two, rtol=0, atol=within, equal_nan=True)


def _numbers(module: nn.Module) -> dict[str, Any]:
    """Return all plain numbers among the attributes of a module and its children, by dotted name."""
    return {
        f"{path}.{name}" if path else name: value
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, int | float | complex | np.generic)
    }
