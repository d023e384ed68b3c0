"""A body as steps in a row: layers with the places behind them where noise is added, and residual sums.

A *segment* is a layer with what comes before it, such as an activation, and the norms right behind it. Noise
goes behind each segment that has parameters to train::

    norm  linear  norm | noise | ReLU  norm  linear in groups  norm | noise | ReLU

where its gradient reaches all of them through the segment's own formulas alone. If a ReLU comes next, what it
cuts off gets no noise: the gradient there is known to be 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

from torch import nn

from pipelocal.closed_form.form import form_of, refusal
from pipelocal.errors import UserError
from pipelocal.models.mixing import Residual

KNOWN = (
    "Linear, LayerNorm, ReLU, Tanh, Conv2d, Flatten, and Residual, Patches, TokenMixing, GroupedLinear and "
    "GroupedLayerNorm of pipelocal.models.mixing"
)


class Branch(Enum):
    """The two ends of a residual branch."""

    OPEN = 1
    CLOSE = 2


@dataclass(frozen=True)
class Scope:
    """On which of a stage's losses, one for each token and group, what a layer makes has an effect."""

    tokens: bool
    """Whether each token has an effect on its own losses alone."""
    groups: bool
    """The same for each group of channels."""


@dataclass(eq=False)
class Segment:
    """A layer with what is before and behind it."""

    row: nn.Sequential
    scopes: list[Scope] = field(default_factory=list)
    """For the output of each of its modules."""

    @property
    def trains(self) -> bool:
        """Whether there is anything to train."""
        return any(parameter.requires_grad for parameter in self.row.parameters())


@dataclass(eq=False)
class Site:
    """A place where noise is added to an output."""

    segment: Segment
    """The segment whose parameters it trains."""
    scope: Scope
    into_relu: bool
    """Whether a ReLU comes next."""


Step = Segment | Site | Branch


@dataclass(frozen=True)
class Program:
    """The steps of a body, and into how many groups its output's channels fall."""

    steps: Sequence[Step]
    groups: int

    @classmethod
    def of(cls, body: nn.Module) -> Program:
        """Analyse a body that :func:`check_stage` lets pass."""
        steps = list(_segments(body))
        groups = _set_scopes(steps)
        return cls(list(_with_sites(steps)), groups)


def check_stage(body: nn.Sequential, head: nn.Module, *, stage: int, head_name: str | None) -> None:
    """Check that a stage can be trained by forward gradients.

    Args:
        body: the stage's units, by name.
        head: its head.
        stage: number of the stage, for the errors.
        head_name: as given to ``--head``; None if the head is the model's own classifier.

    Raises:
        UserError: a part has no formula, or ties the samples of a batch together; says what to change.
    """
    parts = [(f"unit '{name.replace('/', '.')}'", unit) for name, unit in body.named_children()]
    what = "the model's classifier" if head_name is None else f"head '{head_name}'"
    for name, part in (*parts, (what, head)):
        for leaf in (each for each in _flat(part) if isinstance(each, nn.Module)):
            kind = type(leaf).__name__
            # Else a norm of another kind would be told that it is not known.
            if isinstance(leaf, nn.modules.batchnorm._BatchNorm) or (
                refusal(leaf) is None and form_of(leaf).couples_rows
            ):
                raise UserError(
                    f"stage {stage}: {name} has {kind}, by which each sample's loss depends on the noise of "
                    f"all others: for --objective lg-fg take LayerNorm, as --model local-mixer does"
                )
            if reason := refusal(leaf):
                mend = "choose --head linear" if part is head and head_name is not None else KNOWN
                raise UserError(
                    f"stage {stage}: {name} has what --objective lg-fg has no formula for ({reason}): "
                    + (mend if mend != KNOWN else f"it can do {KNOWN}")
                )


def _flat(module: nn.Module) -> Iterator[nn.Module | Branch]:
    if type(module).forward is nn.Sequential.forward:
        for child in module.children():
            yield from _flat(child)
    elif type(module) is Residual:
        yield Branch.OPEN
        for child in module.children():
            yield from _flat(child)
        yield Branch.CLOSE
    else:
        yield module


def _segments(body: nn.Module) -> Iterator[Segment | Branch]:
    pending: list[nn.Module] = []
    for item in (*_flat(body), None):
        layer_is_over = any(form_of(module).weighted for module in pending) and not (
            isinstance(item, nn.Module) and form_of(item).norm
        )
        if pending and (layer_is_over or not isinstance(item, nn.Module)):
            yield Segment(nn.Sequential(*pending))
            pending = []
        if isinstance(item, nn.Module):
            pending.append(item)
        elif item is not None:
            yield item


def _set_scopes(steps: Sequence[Segment | Branch]) -> int:
    """Set the scopes, from the output backwards; return the number of groups at the output."""
    found, tokens, apart = 0, True, True
    for segment in (step for step in reversed(steps) if isinstance(step, Segment)):
        for module in reversed(segment.row):
            segment.scopes.insert(0, Scope(tokens=tokens, groups=apart))
            kept = form_of(module).keeps_apart(module)
            tokens = tokens and kept.tokens
            if kept.groups:
                found = found or kept.groups
                apart = apart and kept.groups % found == 0
    return found or 1


def _with_sites(steps: Sequence[Segment | Branch]) -> Iterator[Step]:
    waiting: Segment | None = None
    for step in (*steps, None):
        # A sum changes nothing about noise that is added before it, but the ReLU may come behind it.
        if waiting is not None and step is not Branch.CLOSE:
            into_relu = isinstance(step, Segment) and type(step.row[0]) is nn.ReLU
            yield Site(waiting, waiting.scopes[-1], into_relu)
            waiting = None
        if step is not None:
            yield step
        if isinstance(step, Segment) and step.trains:
            waiting = step
