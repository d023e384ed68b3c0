"""Converts the stages of one cut to those of another; only heads without a place are lost.

A snapshot stores every parameter, and its optimizer state, under the whole model's name, so the stages of
any cut can be filled from it::

    saved   | stage 1: a b | stage 2: c d | stage 3: e f |      heads after b, d, f
    wanted  | stage 1: a b c d    | stage 2: e f        |      heads after d, f: both are kept

The head of a stage that ends where an old one ended is kept with its optimizer state; others
start from scratch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelocal.errors import UserError
from pipelocal.stage.finite import HEAD, OBJECTIVE
from pipelocal.stage.unsaved import BESIDE

State = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class StageState:
    """The state of one stage in a snapshot."""

    units: tuple[str, ...]
    """Names of its units, in order."""
    state: State
    """``body``, ``head``, ``objective``, ``unsaved``, ``names``, ``training``, ``steps``, ``frozen_at``,
    ``averaged``."""

    @property
    def end(self) -> str:
        """The unit that its head follows."""
        return self.units[-1]


def repartitioned(
    saved: Sequence[StageState], units: Sequence[str], fresh: State, *, keep_head: bool
) -> State:
    """Assemble the state of a stage of the new cut.

    Args:
        saved: all stages of the snapshot, in order.
        units: names of the new stage's units, in order.
        fresh: the new stage's own state, with a new head; the result has the same structure.
        keep_head: whether an old head behind the stage's last unit is of the new one's form.

    Raises:
        UserError: some of the units' old stages were frozen and others were not.
    """
    sources = [stage for stage in saved if set(stage.units) & set(units)]
    frozen = {stage.state["frozen_at"] for stage in sources}
    if len(frozen) > 1 and None in frozen:
        raise UserError(
            f"units {units[0]} to {units[-1]} are of stages of which some are frozen and some are not: "
            f"keep them apart"
        )
    old_head = next((stage for stage in saved if keep_head and stage.end == units[-1]), None)
    known: State = {}
    for stage in sources:
        known |= _by_name(stage.state, body_only=True)
    if old_head is not None:
        known |= {
            n: v for n, v in _by_name(old_head.state).items() if n.startswith((HEAD, OBJECTIVE))
        }
    training = dict(sources[0].state["training"])
    names = fresh["names"]
    slots = {i: known[name]["optimizer"] for i, name in enumerate(names) if name in known}
    training["optimizer"] = {
        "state": {i: slot for i, slot in slots.items() if slot is not None},
        "param_groups": _groups(fresh["optimizer"], training["optimizer"]),
    }
    training["gradients"] = [known[n]["gradient"] if n in known else None for n in names]
    return {
        **fresh,
        **_weights(
            [stage.state for stage in sources], None if old_head is None else old_head.state, fresh
        ),
        "unsaved": _unsaved(sources, old_head),
        "averaged": _averaged(sources, old_head, fresh),
        "training": training,
        "steps": sources[0].state["steps"],
        "frozen_at": max((at for at in frozen if at is not None), default=None),
    }


def _groups(fresh: State, old: State) -> list[State]:
    """Return the new stage's groups, with the old ones' learning rates and other options."""
    new_groups: list[State] = fresh["param_groups"]
    old_groups: list[State] = old["param_groups"]
    if len(new_groups) != len(old_groups):
        return new_groups
    pairs = zip(new_groups, old_groups, strict=True)
    return [{**old, "params": new["params"]} for new, old in pairs]


def _weights(sources: Sequence[State], old_head: State | None, fresh: State) -> State:
    """Return body and head of the new stage."""
    body: State = {}
    for state in sources:
        body |= state["body"]
    return {
        "body": {name: body[name] for name in fresh["body"]},
        "head": fresh["head"] if old_head is None else old_head["head"],
        "objective": (fresh if old_head is None else old_head).get("objective"),
    }


def _unsaved(sources: Sequence[StageState], old_head: StageState | None) -> State:
    """Return what has changed of the buffers that no state dict holds: of bodies, and with the old head."""
    return {
        name: value
        for stage in sources  # among which is that of the old head
        for name, value in stage.state.get("unsaved", {}).items()
        if not name.startswith(BESIDE) or stage is old_head
    }


def _averaged(
    sources: Sequence[StageState], old_head: StageState | None, fresh: State
) -> State | None:
    """Return the averaged weights of the new stage, if all of its old ones kept an average."""
    averages = [stage.state["averaged"] for stage in sources]
    if not all(averages):
        return None
    head = None if old_head is None else old_head.state["averaged"]
    return _weights(averages, head, fresh) | {"updates": averages[0]["updates"]}


def _by_name(state: State, *, body_only: bool = False) -> dict[str, State]:
    """Return each trained parameter's optimizer state and gradient since the last update, by name."""
    training = state["training"]
    return {
        name: {
            "optimizer": training["optimizer"]["state"].get(i),
            "gradient": training["gradients"][i],
        }
        for i, name in enumerate(state["names"])
        if not (body_only and name.startswith((HEAD, OBJECTIVE)))
    }
