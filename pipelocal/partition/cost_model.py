"""The best cut by measured time or memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipelocal.errors import UserError
from pipelocal.partition.cut import Cut
from pipelocal.partition.optimal import minimise_largest
from pipelocal.partition.profile import Cost, Profile
from pipelocal.transport.window import ring_slots


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """What a stage costs, from what its units and its head cost; means over the batches.

    Args:
        profile: the costs.
        x_bytes: of what travels of the output behind each unit, for a batch.
        delta_bytes: of what travels of delta behind each unit, for a batch.
        reconcile_share: share of the batches that are reconciled; 0 with the greedy objective.
        passes: first-order reconciliation: further passes, forward and backward, of such a batch; 0
            with the exact form, whose cost the profile has.
        window: batches that a stage may have sent and the next one not yet taken.
    """

    profile: Profile
    x_bytes: Sequence[int]
    delta_bytes: Sequence[int]
    reconcile_share: float
    passes: float
    window: int

    def seconds(self, start: int, stop: int) -> float:
        """Of one training batch in the stage of units ``start..stop-1`` and the head behind them."""
        units = self.profile.units[start:stop]
        total = sum(part.train_s for part in [*units, self.profile.heads[stop - 1]])
        return total - units[0].input_gradient_s + self.reconcile_seconds(start, stop)

    def reconcile_seconds(self, start: int, stop: int) -> float:
        """The part of it for reconciliation, with the gradient at the stage's input."""
        if start == 0:  # there is no stage before it
            return 0.0
        units = self.profile.units[start:stop]
        parts = [*units, self.profile.heads[stop - 1]]
        extra = sum(map(self.further_seconds, parts))
        return self.reconcile_share * (units[0].input_gradient_s + extra)

    def further_seconds(self, part: Cost) -> float:
        """What a reconciled batch adds to the time of a unit or head."""
        return self.passes * (part.forward_s + part.backward_s) + part.reconcile_s

    def memory_bytes(self, start: int, stop: int) -> int:
        """Peak of the stage: parameters, gradients, optimizer state, activations, edge buffers."""
        parts = [*self.profile.units[start:stop], self.profile.heads[stop - 1]]
        held = sum(part.held_bytes for part in parts)
        if self.reconcile_share and start > 0:
            held += sum(part.reconcile_bytes for part in parts)
            if self.passes:  # eta, the direction, and the displaced input
                held += 3 * self.profile.units[start - 1].output_bytes
        last = stop == len(self.profile.units)
        outgoing = 0 if last else self.window * self._most_sent(stop)
        return held + self._incoming_bytes(start) + outgoing

    def _incoming_bytes(self, start: int) -> int:
        """Of the ring of the edge before, and of x where it has to be unpacked first."""
        if start == 0:
            return self.profile.input_bytes
        x = self.profile.units[start - 1].output_bytes
        unpacked = 0 if self.x_bytes[start - 1] == x else x
        return ring_slots(self.window) * self._most_sent(start) + unpacked

    def _most_sent(self, stop: int) -> int:
        """Bytes of a batch that is reconciled, if any is."""
        delta = self.delta_bytes[stop - 1] if self.reconcile_share else 0
        return self.x_bytes[stop - 1] + delta

    def mean_delta_bytes(self, stop: int) -> float:
        """What a training batch sends of delta from the stage that ends before unit ``stop``."""
        return self.delta_bytes[stop - 1] * self.reconcile_share

    def edge_bytes(self, stop: int) -> int:
        """What a training batch sends from that stage: x, and delta if it is reconciled."""
        return self.x_bytes[stop - 1] + round(self.mean_delta_bytes(stop))


def balanced(
    model: CostModel,
    stages: int,
    *,
    balance: str,
    memory_limit: int | None = None,
    speeds: list[float] | None = None,
) -> list[Cut]:
    """The cut that minimises the slowest stage (``time``) or the largest (``memory``).

    Args:
        model: what stages cost.
        stages: number of stages.
        balance: ``time`` or ``memory``.
        memory_limit: bytes that no stage may exceed; None for no limit.
        speeds: relative speed of each stage's device; None if they are equal.

    Raises:
        UserError: no cut keeps the limit; says how little the largest stage can have.
    """
    speed = speeds or [1.0] * stages

    def cost(start: int, stop: int, stage: int) -> float:
        memory = model.memory_bytes(start, stop)
        if memory_limit is not None and memory > memory_limit:
            return math.inf
        if balance == "memory":
            return float(memory)
        return model.seconds(start, stop) / speed[stage - 1]

    units = len(model.profile.units)
    cuts = minimise_largest(units, stages, cost)
    if cuts is not None:
        return cuts
    assert memory_limit is not None, "without a limit every number of stages up to the units works"
    least = minimise_largest(units, stages, lambda a, b, _: float(model.memory_bytes(a, b)))
    assert least is not None
    needed = max(model.memory_bytes(cut.start, cut.stop) for cut in least)
    raise UserError(
        f"--memory-limit {memory_limit / 2**20:.1f}MiB: the best cut into {stages} stages needs "
        f"{needed / 2**20:.1f}MiB for its largest stage: raise the limit, cut more stages, or lower "
        f"--batch-size"
    )
