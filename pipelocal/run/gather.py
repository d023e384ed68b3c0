"""The whole model on every rank, from the stages that lie on each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipelocal.errors import UserError
from pipelocal.pipeline.placement import place
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
    """The uncut model with the weights of all stages, on the CPU; all ranks call it together.

    Args:
        blueprint: the cut model.
        stages: those of this rank; none if nothing was trained yet.
        world: the ranks.
        replicas: how many ranks each stage has.

    Raises:
        UserError: a module keeps extra state that is no tensor, which does not travel.
        Interrupted: another rank failed.
    """
    own = {stage.number: stage for stage in stages}
    if not own or world.size == 1:
        return blueprint.chain.whole_with(
            plain_state(blueprint.chain, [_weights(blueprint, n, own) for n in _numbers(blueprint)])
        )
    attempt = Attempt(ControlPlane(world))
    with failures_told(attempt), joined(world, attempt.control, replicas.start_timeout):
        counts = replicas.replica_counts(blueprint.stages) or [1]
        placement = place(blueprint.stages, world.size, counts)
        states = []
        for number in _numbers(blueprint):
            state = _weights(blueprint, number, own)
            source = next(b.ranks[0] for b in placement.blocks if number in b.stages)
            for tensor in _tensors(state):
                dist.broadcast(tensor, src=source)
            states.append(state)
        attempt.control.leave()
    return blueprint.chain.whole_with(plain_state(blueprint.chain, states))


def _numbers(blueprint: Blueprint) -> range:
    return range(1, blueprint.stages + 1)


def _weights(
    blueprint: Blueprint, number: int, own: dict[int, Stage]
) -> dict[str, dict[str, Tensor]]:
    """Body and head of a stage by the whole model's names; of another rank's, tensors to be filled."""
    cut, cpu = blueprint.cuts[number - 1], torch.device("cpu")
    if number in own:
        body, head = own[number].body, own[number].head
    else:
        body, head = blueprint.build_parts(number, device=cpu)
    state = {
        "body": blueprint.chain.whole_state(body, cut.start, cut.stop),
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
