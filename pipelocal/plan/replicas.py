"""Plans replicas: their number per stage, their ranks, and the traffic between nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm

import numpy as np

from pipelocal.config import PlanConfig
from pipelocal.config.limits import MOST_RANKS
from pipelocal.errors import UserError
from pipelocal.partition.replicas import batches_an_update, choose_replicas, parse_replicas


@dataclass(frozen=True, kw_only=True)
class PlannedReplica:
    """The rank that holds a replica."""

    rank: int
    stage: int
    """Number of the stage, from 1."""
    replica: int
    """Index from 0: replica i gets the batches t with ``t mod r = i``."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine and its ranks."""

    node: int
    """Index of the node, from 0."""
    ranks: list[PlannedReplica]


@dataclass(frozen=True, kw_only=True)
class Replication:
    """The ranks of the replicas of all stages."""

    ranks: int
    """Number of ranks that hold a replica."""
    left_over: int
    """Unused ranks of ``--ranks``, which would hardly make the pipeline faster."""
    batches_an_update: int
    nodes: list[Node]
    crossing_bytes: float
    """Bytes between nodes per training batch, averaged over the batches of an update."""


def given_replicas(config: PlanConfig, stages: int) -> list[int] | None:
    """Return the given replicas of each stage, or None if they are to be chosen.

    Raises:
        UserError: ``--replicas`` does not fit the number of stages, or there are too many or too few
            ranks, or unequal numbers per node.
    """
    replicas = parse_replicas("--replicas", config.replicas, stages)
    ranks = sum(replicas) if replicas is not None else _all_ranks(config)
    if ranks > MOST_RANKS:
        raise UserError(
            f"--replicas {config.replicas}: these are {ranks} ranks; plan for at most {MOST_RANKS}"
        )
    if replicas is None and ranks < stages:
        raise UserError(
            f"--ranks {ranks}: with --replicas {config.replicas} each of the {stages} stages has a rank "
            f"at least: give {stages} or more, or cut fewer stages"
        )
    if ranks % config.nodes:
        raise UserError(
            f"--nodes {config.nodes}: {ranks} rank(s) cannot be the same number on each: give a number "
            f"of nodes that divides {ranks}"
        )
    return replicas


def planned_replicas(config: PlanConfig, seconds: Sequence[float]) -> list[int]:
    """Return the given replicas, or the best for stages with these seconds per batch.

    Raises:
        UserError: as :func:`given_replicas`.
    """
    replicas = given_replicas(config, len(seconds))
    return choose_replicas(seconds, _all_ranks(config)) if replicas is None else replicas


def replicate(
    config: PlanConfig,
    replicas: Sequence[int],
    *,
    edge_bytes: Sequence[float],
    parameter_bytes: Sequence[int],
) -> Replication:
    """Place the replicas on ranks.

    Args:
        config: the options.
        replicas: number of replicas of each stage.
        edge_bytes: bytes over the edge after each stage but the last, both ways, per training batch.
        parameter_bytes: of the parameters of each stage, including its head; gradients are as large.
    """
    used = sum(replicas)
    ranks = used if parse_replicas("--replicas", config.replicas, None) else _all_ranks(config)
    a_node = ranks // config.nodes
    batches = batches_an_update(replicas)
    seats = [
        PlannedReplica(rank=rank, stage=stage, replica=replica)
        for rank, (stage, replica) in enumerate(
            (stage, replica) for stage, r in enumerate(replicas, start=1) for replica in range(r)
        )
    ]
    return Replication(
        ranks=used,
        left_over=ranks - used,
        batches_an_update=batches,
        nodes=[
            Node(node=node, ranks=seats[node * a_node : (node + 1) * a_node])
            for node in range(config.nodes)
        ],
        crossing_bytes=crossing_bytes(
            replicas,
            a_node,
            edge_bytes=edge_bytes,
            gradient_bytes=[
                2 * (r - 1) * size / batches
                for r, size in zip(replicas, parameter_bytes, strict=True)
            ],
        ),
    )


def crossing_bytes(
    replicas: Sequence[int],
    a_node: int,
    *,
    edge_bytes: Sequence[float],
    gradient_bytes: Sequence[float],
) -> float:
    """Return the bytes per batch sent between nodes, with ranks in the order of the stages.

    Batch t goes from replica ``t mod r`` of a stage to replica ``t mod s`` of the next one. The ring of an
    all-reduce visits all ranks of a node before it leaves the node: for a stage on n nodes it has n links
    between nodes, or none on a single node.

    Args:
        replicas: of each stage.
        a_node: ranks per node.
        edge_bytes: bytes over the edge after each stage but the last, for all replicas together.
        gradient_bytes: bytes between the replicas of each stage, over all links of their ring; each
            of the r links carries an equal part.
    """
    first = [sum(replicas[:stage]) for stage in range(len(replicas))]
    total = 0.0
    for k, carried in enumerate(edge_bytes):
        batch = np.arange(lcm(replicas[k], replicas[k + 1]))
        here = (first[k] + batch % replicas[k]) // a_node
        there = (first[k + 1] + batch % replicas[k + 1]) // a_node
        total += carried * float((here != there).mean())
    for start, r, moved in zip(first, replicas, gradient_bytes, strict=True):
        nodes = (start + r - 1) // a_node - start // a_node + 1
        total += moved / r * (nodes if nodes > 1 else 0)
    return total


def _all_ranks(config: PlanConfig) -> int:
    assert config.ranks is not None, "checked with the options"
    return config.ranks
