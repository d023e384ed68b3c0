"""Gathers the whole model on every rank from the stages of all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipelocal.errors import UserError
from pipelocal.heads.early import EarlyNetwork
from pipelocal.ranks.control import ControlPlane
from pipelocal.ranks.world import World
from pipelocal.run.blueprint import Blueprint
from pipelocal.run.connection import joined
from pipelocal.run.failures import failures_told
from pipelocal.run.options import RunOptions
from pipelocal.run.train import Attempt
from pipelocal.stage.stage import Stage
from pipelocal.stage.state import load_weights, whole_model
from pipelocal.stage.unsaved import Unsaved


def gather_model(
    blueprint: Blueprint,
    stages: Sequence[Stage],
    world: World,
    *,
    replicas: RunOptions,
    upto: int | None = None,
    averaged: bool = False,
) -> nn.Module:
    """Return the uncut model with all stages' weights, on the CPU; all ranks call it together.

    Args:
        blueprint: the cut model.
        stages: this rank's stages; empty if nothing has been trained yet.
        world: the ranks.
        replicas: number of ranks of each stage.
        upto: number of the stage with whose head the model ends; None for the whole of it.
        averaged: whether to take the moving averages of the weights, which every stage keeps.

    Raises:
        UserError: there is no such stage, or its head never learnt anything; or a module has extra state that
            is not a tensor and cannot be sent.
        Interrupted: another rank failed.
    """
    last = blueprint.stages if upto is None else upto
    if not 1 <= last <= blueprint.stages:
        raise UserError(f"stage={last}: there are stages 1 to {blueprint.stages}")
    if blueprint.silent(last):
        raise UserError(f"stage={last}: its head never learnt anything: give another stage")
    own = {stage.number: stage for stage in stages}
    if not own or world.size == 1:
        return _joined(
            blueprint, [_weights(blueprint, n, own, last, averaged) for n in range(1, last + 1)]
        )
    attempt = Attempt(ControlPlane(world))
    with failures_told(attempt), joined(world, attempt.control, replicas.start_timeout):
        placement = replicas.placement(blueprint.stages, world.size)
        states = []
        for number in range(1, last + 1):
            state = _weights(blueprint, number, own, last, averaged)
            source = next(b.ranks[0] for b in placement.blocks if number in b.stages)
            for tensor in _tensors(state):
                dist.broadcast(tensor, src=source)
            states.append(state)
        attempt.control.leave()
    return _joined(blueprint, states)


def _joined(blueprint: Blueprint, states: list[dict[str, dict[str, Tensor]]]) -> nn.Module:
    """Return the model with these weights of its first stages, or of all."""
    network, cpu = blueprint.network, torch.device("cpu")
    if len(states) == blueprint.stages:
        return whole_model(network, states)
    parts = [blueprint.build_parts(n, device=cpu) for n in range(1, len(states) + 1)]
    for number, ((body, head), state) in enumerate(zip(parts, states, strict=True), start=1):
        own = state if number == len(states) else {**state, "head": head.state_dict()}
        load_weights(network, blueprint.cuts[number - 1], number, body, head, own)
        Unsaved(body, head).load(state["unsaved"])
    return EarlyNetwork([body for body, _ in parts], parts[-1][1])


def _weights(
    blueprint: Blueprint, number: int, own: dict[int, Stage], last: int, averaged: bool
) -> dict[str, dict[str, Tensor]]:
    """Return a stage's weights by the whole model's names, those of its head if it is the last one.

    Another rank's stage has tensors of other values, to be overwritten.
    """
    cut, cpu = blueprint.cuts[number - 1], torch.device("cpu")
    average = None
    if number in own:
        body, head, unsaved = own[number].body, own[number].head, own[number].unsaved
        average = own[number].average if averaged else None
    else:
        body, head = blueprint.build_parts(number, device=cpu)
        unsaved = Unsaved(body, head)
    with nullcontext() if average is None else average.in_place():
        state = {
            "body": blueprint.network.whole_state(body, cut.start, cut.stop),
            "head": head.state_dict() if number == last else {},
            "unsaved": unsaved.of_built_shapes(head=number == last),
        }
        for part in state.values():
            for name, value in part.items():
                if not isinstance(value, Tensor):
                    raise UserError(
                        f"'{name}' is no tensor but extra state, which does not travel between ranks: keep "
                        f"it in a buffer, or write the run to a folder and load that"
                    )
                part[name] = value.detach().to(cpu).clone().contiguous()
    return state


def _tensors(state: dict[str, dict[str, Tensor]]) -> list[Tensor]:
    return [value for part in state.values() for value in part.values()]
