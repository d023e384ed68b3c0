"""Gathers the whole model on every rank from the stages of all ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipelocal.errors import UserError
from pipelocal.ranks.control import ControlPlane
from pipelocal.ranks.world import World
from pipelocal.run.blueprint import Blueprint
from pipelocal.run.connection import joined
from pipelocal.run.failures import failures_told
from pipelocal.run.options import RunOptions
from pipelocal.run.train import Attempt
from pipelocal.stage.stage import Stage
from pipelocal.stage.state import plain_state


def gather_model(
    blueprint: Blueprint, stages: Sequence[Stage], world: World, *, replicas: RunOptions
) -> nn.Module:
    """Return the uncut model with all stages' weights, on the CPU; all ranks call it together.

    Args:
        blueprint: the cut model.
        stages: this rank's stages; empty if nothing has been trained yet.
        world: the ranks.
        replicas: number of ranks of each stage.

    Raises:
        UserError: a module has extra state that is not a tensor and cannot be sent.
        Interrupted: another rank failed.
    """
    own = {stage.number: stage for stage in stages}
    if not own or world.size == 1:
        return blueprint.network.whole_with(
            plain_state(
                blueprint.network, [_weights(blueprint, n, own) for n in _numbers(blueprint)]
            )
        )
    attempt = Attempt(ControlPlane(world))
    with failures_told(attempt), joined(world, attempt.control, replicas.start_timeout):
        placement = replicas.placement(blueprint.stages, world.size)
        states = []
        for number in _numbers(blueprint):
            state = _weights(blueprint, number, own)
            source = next(b.ranks[0] for b in placement.blocks if number in b.stages)
            for tensor in _tensors(state):
                dist.broadcast(tensor, src=source)
            states.append(state)
        attempt.control.leave()
    return blueprint.network.whole_with(plain_state(blueprint.network, states))


def _numbers(blueprint: Blueprint) -> range:
    return range(1, blueprint.stages + 1)


def _weights(
    blueprint: Blueprint, number: int, own: dict[int, Stage]
) -> dict[str, dict[str, Tensor]]:
    """Return a stage's weights by the whole model's names; empty tensors for another rank's stage."""
    cut, cpu = blueprint.cuts[number - 1], torch.device("cpu")
    if number in own:
        body, head = own[number].body, own[number].head
    else:
        body, head = blueprint.build_parts(number, device=cpu)
    state = {
        "body": blueprint.network.whole_state(body, cut.start, cut.stop),
        "head": head.state_dict() if number == blueprint.stages else {},
    }
    for part in state.values():
        for name, value in part.items():
            if not isinstance(value, Tensor):
                raise UserError(
                    f"'{name}' is no tensor but extra state, which does not travel between ranks: keep it "
                    f"in a buffer, or write the run to a folder and load that"
                )
            part[name] = value.detach().to(cpu).clone().contiguous()
    return state


def _tensors(state: dict[str, dict[str, Tensor]]) -> list[Tensor]:
    return [value for part in state.values() for value in part.values()]
