"""Converts a stage's state to and from the whole model's names, so that it fits any cut."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from pipelocal.errors import StageError, UserError
from pipelocal.models import Chain
from pipelocal.models.state import versions_of, with_versions
from pipelocal.models.unit import module_name
from pipelocal.partition import Cut
from pipelocal.stage.finite import HEAD, OBJECTIVE, first_nonfinite
from pipelocal.stage.stage import Stage
from pipelocal.stage.unsaved import BESIDE

ANOTHER_HEAD = (
    ": another head was trained, such as the one that --head auto chose in an earlier version: give that "
    "head (summary.json of the run names it) as 'head' in the run's config.toml, train again, or export the "
    "model, which needs no such head"
)
"""What it means that an auxiliary head cannot be loaded, and how to go on."""


def trained_names(
    chain: Chain, cut: Cut, body: nn.Sequential, head: nn.Module, objective: nn.Module | None
) -> list[tuple[str, nn.Parameter]]:
    """Return a stage's parameters by name: the body's in the model's order, then head and objective."""
    named = zip(
        chain.whole_names(body, cut.start, cut.stop),
        (p for p in body.parameters() if p.requires_grad),
        strict=True,
    )
    rest = [(HEAD, head)] if objective is None else [(HEAD, head), (OBJECTIVE, objective)]
    return [
        *named,
        *(
            (prefix + name, parameter)
            for prefix, module in rest
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        ),
    ]


def parameter_names(chain: Chain, cut: Cut, stage: Stage) -> list[str]:
    """Return the names of the trained parameters in the optimizer's order; none once frozen."""
    if stage.frozen:
        return []
    named = trained_names(chain, cut, stage.body, stage.head, stage.own_objective)
    return [named[place][0] for place in stage.order]


def stage_state(chain: Chain, cut: Cut, stage: Stage) -> dict[str, Any]:
    """Return a stage's state, with its body under the whole model's names.

    ``body``, ``head`` and, if the objective has parameters or buffers, ``objective`` are state dicts;
    ``optimizer`` and ``steps`` are the state of the training; ``averaged`` is None, or holds the averaged
    ``body`` and ``head`` and the number of ``updates``; ``unsaved`` is what has changed of buffers that are
    in no state dict.

    Raises:
        StageError: the training diverged: a weight is NaN or infinite. Such a state is never saved.
    """
    averaged = None

    def whole_body() -> dict[str, Tensor]:
        return chain.whole_state(stage.body, cut.start, cut.stop)

    if stage.average is not None:
        with stage.average.in_place():
            weights = {"body": whole_body(), "head": stage.head.state_dict()}
            averaged = copy.deepcopy(weights) | {"updates": stage.average.updates}
    state = stage.state_dict() | {
        "body": whole_body(),
        "averaged": averaged,
        "unsaved": stage.unsaved.changed(),
    }
    whole: dict[str, Any] = stage.replicas.whole(state)
    if (bad := first_nonfinite(whole, parameter_names(chain, cut, stage))) is not None:
        raise StageError(
            f"after {stage.steps} batches {bad} is NaN or infinite: lower --lr, add --warmup-steps, or "
            f"look at the data",
            stage=stage.number,
        )
    return whole


def load_weights(
    chain: Chain, cut: Cut, number: int, body: nn.Sequential, head: nn.Module, state: dict[str, Any]
) -> None:
    """Load body and head of a stage from :func:`stage_state`.

    Raises:
        UserError: they do not fit.
    """
    chain.load_whole_state(body, cut.start, cut.stop, state["body"])
    auxiliary = cut.stop < len(chain.units)
    _load(
        head, state["head"], f"the head of stage {number}", mend=ANOTHER_HEAD if auxiliary else ""
    )


def load_stage_weights(chain: Chain, cut: Cut, stage: Stage, state: dict[str, Any]) -> None:
    """Load all weights of a stage from :func:`stage_state`, the averaged ones if present.

    Raises:
        UserError: they do not fit.
    """
    load_weights(chain, cut, stage.number, stage.body, stage.head, state)
    own = stage.own_objective
    if own is not None and state.get("objective") is not None:
        _load(own, state["objective"], f"the objective of stage {stage.number}")
    stage.unsaved.load(state.get("unsaved", {}))
    if stage.average is None:
        return
    stage.average.restart()
    if (averaged := state["averaged"]) is not None:
        with stage.average.in_place():
            load_weights(chain, cut, stage.number, stage.body, stage.head, averaged)
        stage.average.updates = averaged["updates"]


def plain_state(chain: Chain, stages: Iterable[dict[str, Any]]) -> dict[str, Tensor]:
    """Return the whole model's state dict from all stages' :func:`stage_state`, in order.

    Auxiliary heads are left out; the last stage's head is the model's classifier.
    """
    states = list(stages)
    classifier, head = chain.classifier, states[-1]["head"]
    own = {classifier.whole_name(name): value for name, value in head.items()}
    last = with_versions(own, classifier.whole_versions(versions_of(head)))
    return chain.joined_state([*(state["body"] for state in states), last])


def whole_model(chain: Chain, stages: Sequence[dict[str, Any]]) -> nn.Module:
    """Return the uncut model of all stages' :func:`stage_state`, in order.

    Its buffers that no state dict holds are as they are after training, too.
    """
    return chain.whole_with(plain_state(chain, stages), unsaved_of_model(chain, stages))


def unsaved_of_model(chain: Chain, stages: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Return the buffers that no state dict holds, as they are after training, by their names in units."""
    classifier = f"{module_name(chain.classifier)}."
    found = {}
    for state in stages:
        for name, value in state.get("unsaved", {}).items():
            if not name.startswith(BESIDE):
                found[name] = value
            elif state is stages[-1] and name.startswith(HEAD):
                found[classifier + name.removeprefix(HEAD)] = value
    return found


def _load(module: nn.Module, state: dict[str, Any], what: str, *, mend: str = "") -> None:
    own = module.state_dict().keys()
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        if other := sorted(own ^ state.keys()):
            where = "not among its weights" if other[0] in own else "no weight of it here"
            reason = f"{other[0]} is {where}"
        raise UserError(f"{what} cannot be loaded: {reason}{mend}") from error
