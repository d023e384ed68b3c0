"""Options of a run that do not depend on what is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipelocal.checkpoint.options import SnapshotOptions
from pipelocal.partition.replicas import parse_replicas
from pipelocal.pipeline.options import LengthOptions
from pipelocal.pipeline.placement import Placement, place
from pipelocal.replicas.options import ReplicaOptions
from pipelocal.stage.options import ComputeOptions
from pipelocal.telemetry.options import SeeingOptions
from pipelocal.transport.options import TransportOptions


@dataclass(frozen=True, kw_only=True)
class RunOptions(
    SeeingOptions,
    SnapshotOptions,
    TransportOptions,
    ComputeOptions,
    ReplicaOptions,
    LengthOptions,
):
    """How long, on what, and how carefully is trained; a flat group of the rooms' own groups."""

    def replica_counts(self, stages: int) -> list[int] | None:
        """Return the number of replicas of every stage; None if they are yet to be chosen.

        Raises:
            UserError: they are not positive numbers, or not one per stage.
        """
        return parse_replicas("--replicas", self.replicas, stages)

    def placement(self, stages: int, ranks: int) -> Placement:
        """Return which rank holds which stages, with one replica each while they are yet to be chosen.

        Raises:
            UserError: these ranks do not fit the stages and their replicas.
        """
        return place(stages, ranks, self.replica_counts(stages) or [1])

    @property
    def together(self) -> int:
        """The least number of batches that every stage's replicas can share evenly."""
        return batches_of_a_round(self.replicas)

    @property
    def batches_an_update(self) -> int:
        """Batches per update, summed over the replicas."""
        return self.accumulate * self.together


def batches_of_a_round(replicas: str) -> int:
    """Return the least number of batches that every stage's replicas share evenly, from ``--replicas``."""
    return 1 if replicas == "auto" else math.lcm(*map(int, replicas.split(",")))
