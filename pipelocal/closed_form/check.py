"""Checks before training that a stage can be trained without autograd."""

from __future__ import annotations

from torch import nn

from pipelocal.closed_form.form import form_of, leaves, refusal
from pipelocal.errors import UserError


def check_stage(
    body: nn.Sequential,
    head: nn.Module,
    *,
    stage: int,
    units: int,
    head_name: str | None,
) -> None:
    """Check that all of a stage has a closed form, and that its body is one layer.

    Args:
        body: the stage's units, by name.
        head: its head.
        stage: number of the stage, for the errors.
        units: number of units in the model, the maximum number of stages.
        head_name: as given to ``--head``; None if the head is the model's own classifier.

    Raises:
        UserError: a part has no closed form, or there is more than one layer; says what to change.
    """
    for name, unit in body.named_children():
        if reason := _refusal(unit):
            raise UserError(
                f"stage {stage}: unit '{name}' has no closed form ({reason}): choose --model mlp or "
                f"allconv, register a form (closed_form_of), or leave out --bp-free"
            )
    if reason := _refusal(head):
        if head_name is None:
            raise UserError(
                f"stage {stage}: the model's classifier has no closed form ({reason}): make it linear, "
                f"or leave out --bp-free"
            )
        raise UserError(
            f"stage {stage}: head '{head_name}' has no closed form ({reason}): with --bp-free choose "
            f"--head linear"
        )
    _check_layers(body, stage=stage, units=units)


def _check_layers(body: nn.Sequential, *, stage: int, units: int) -> None:
    counts = {
        name: sum(form_of(leaf).weighted for leaf in leaves(unit))
        for name, unit in body.named_children()
    }
    total = sum(counts.values())
    if total <= 1:
        return
    name, most = max(counts.items(), key=lambda item: item[1])
    if most > 1:
        raise UserError(
            f"stage {stage}: unit '{name}' has {most} layers, but --bp-free wants one a stage: make it "
            f"{most} units"
        )
    raise UserError(
        f"stage {stage} has {total} layers (units {', '.join(counts)}), but --bp-free wants one a "
        f"stage: --stages {units}"
    )


def _refusal(module: nn.Module) -> str | None:
    """Return why a sequence of modules has no closed form; None if it has one."""
    return next(filter(None, map(refusal, leaves(module))), None)
