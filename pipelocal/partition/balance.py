"""The best cut by measured time or memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipelocal.errors import UserError
from pipelocal.partition.cut import Cut
from pipelocal.partition.optimal import minimise_largest
from pipelocal.partition.profile import Profile
from pipelocal.transport.remote import RING_SLOTS


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """What a stage costs, from what its units and its head cost.

    Args:
        profile: the measured costs.
        reconcile: whether stages reconcile, and so also get the output gradient of the stage before.
        window: batches that a stage may have sent and the next one not yet taken.
    """

    profile: Profile
    reconcile: bool
    window: int

    def seconds(self, start: int, stop: int) -> float:
        """Of one training batch in the stage of units ``start..stop-1`` and the head behind them."""
        units = self.profile.units[start:stop]
        parts = [*units, self.profile.heads[stop - 1]]
        total = sum(part.train_s for part in parts)
        if self.reconcile and start > 0:
            return total + sum(part.reconcile_s for part in parts)
        return total - units[0].input_gradient_s

    def memory_bytes(self, start: int, stop: int) -> int:
        """Peak of the stage: parameters, gradients, optimizer state, activations, edge buffers."""
        parts = [*self.profile.units[start:stop], self.profile.heads[stop - 1]]
        held = sum(part.held_bytes for part in parts)
        if self.reconcile and start > 0:
            held += sum(part.reconcile_bytes for part in parts)
        incoming = RING_SLOTS * self.edge_bytes(start) if start > 0 else self.profile.input_bytes
        last = stop == len(self.profile.units)
        return held + incoming + (0 if last else self.window * self.edge_bytes(stop))

    def edge_bytes(self, stop: int) -> int:
        """What a training batch sends from the stage that ends before unit ``stop``: x and delta."""
        x = self.profile.units[stop - 1].output_bytes
        return 2 * x if self.reconcile else x


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
