"""Finds the best cut by measured time or memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pipelocal.errors import UserError
from pipelocal.partition.cut import Cut
from pipelocal.partition.optimal import minimise_largest
from pipelocal.partition.profile import Cost, Profile
from pipelocal.telemetry.formats import format_bytes
from pipelocal.transport.window import Window, frames, ring_slots


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """Costs of a stage, from the costs of its units and head; means over the batches.

    Args:
        profile: the costs.
        x_bytes: bytes sent of the outputs after each unit, per batch: the main one as it is packed, and
            those beside it.
        delta_bytes: bytes sent of delta after each unit, per batch.
        reconcile_share: share of the batches that are reconciled; 0 with the greedy objective.
        passes: first-order reconciliation: extra forward and backward passes per reconciled batch; 0
            with the exact form, whose cost is in the profile.
        window: batches that a stage may have sent before the next stage takes them; of ``auto`` what it
            begins with is counted.
        label_bytes: bytes of targets and ids, which every edge carries, per batch.
        packed: whether main outputs are packed on the wire, so that the receiving end holds them twice.
        light_stem: whether the first unit does less than the average unit, so that it should not be a stage
            alone: it learns little by itself, and what it does not learn no later stage makes good.
        trains_beside: whether the objective trains something beside the head of a stage, by the stage's
            number and the number of stages.
    """

    profile: Profile
    x_bytes: Sequence[int]
    delta_bytes: Sequence[int]
    reconcile_share: float
    passes: float
    window: Window
    label_bytes: int = 0
    packed: bool = False
    light_stem: bool = False
    trains_beside: Callable[[int, int], bool] | None = None

    def of_stages(self, stages: int) -> list[CostModel]:
        """Return the costs for each stage of so many: heads may have something beside them, or not."""
        fuller, beside = self.profile.fuller_heads, self.trains_beside
        if fuller is None or beside is None:
            return [self] * stages
        with_it = replace(self, profile=replace(self.profile, heads=fuller))
        return [with_it if beside(number, stages) else self for number in range(1, stages + 1)]

    def seconds_of(self, cuts: Sequence[Cut]) -> list[float]:
        """Return :meth:`seconds` of each stage of a network."""
        models = self.of_stages(len(cuts))
        return [own.seconds(cut.start, cut.stop) for own, cut in zip(models, cuts, strict=True)]

    def fewest_at_first(self, stages: int) -> int:
        """Return the fewest units of the first of so many stages."""
        return 2 if self.light_stem and stages < len(self.profile.units) else 1

    def seconds(self, start: int, stop: int) -> float:
        """Return the seconds per training batch of the stage with units ``start..stop-1`` and its head."""
        units = self.profile.units[start:stop]
        total = sum(part.train_s for part in [*units, self.profile.heads[stop - 1]])
        return total - units[0].input_gradient_s + self.reconcile_seconds(start, stop)

    def reconcile_seconds(self, start: int, stop: int) -> float:
        """Return the part of :meth:`seconds` for reconciliation, with the gradient at the stage's input."""
        if start == 0:  # no stage before it
            return 0.0
        units = self.profile.units[start:stop]
        parts = [*units, self.profile.heads[stop - 1]]
        extra = sum(map(self.further_seconds, parts))
        return self.reconcile_share * (units[0].input_gradient_s + extra)

    def further_seconds(self, part: Cost) -> float:
        """Return the seconds that a reconciled batch adds to a unit or head."""
        return self.passes * (part.forward_s + part.backward_s) + part.reconcile_s

    def memory_bytes(self, start: int, stop: int) -> int:
        """Return peak bytes of the stage: parameters, gradients, optimizer state, activations, edges."""
        parts = [*self.profile.units[start:stop], self.profile.heads[stop - 1]]
        held = sum(part.held_bytes for part in parts)
        if self.reconcile_share and start > 0:
            held += sum(part.reconcile_bytes for part in parts)
            if self.passes:  # eta, the direction, and the displaced input
                held += 3 * self.profile.units[start - 1].output_bytes
        last = stop == len(self.profile.units)
        outgoing = 0 if last else frames(self.window) * self._most_sent(stop)
        return held + self._incoming_bytes(start) + outgoing

    def _incoming_bytes(self, start: int) -> int:
        """Return bytes of the incoming edge's ring, and of x if it must be unpacked."""
        if start == 0:
            return self.profile.input_bytes
        unpacked = self.profile.units[start - 1].output_bytes if self.packed else 0
        return ring_slots(self.window) * self._most_sent(start) + unpacked

    def _most_sent(self, stop: int) -> int:
        """Return bytes sent per reconciled batch, or per plain batch if none is reconciled."""
        delta = self.delta_bytes[stop - 1] if self.reconcile_share else 0
        return self.x_bytes[stop - 1] + delta

    def mean_delta_bytes(self, stop: int) -> float:
        """Return mean bytes of delta sent per batch by the stage that ends before unit ``stop``."""
        return self.delta_bytes[stop - 1] * self.reconcile_share

    def edge_bytes(self, stop: int) -> int:
        """Return bytes sent per training batch by that stage: outputs, labels, delta if it is reconciled."""
        return self.x_bytes[stop - 1] + self.label_bytes + round(self.mean_delta_bytes(stop))


def balanced(
    model: CostModel,
    stages: int,
    *,
    balance: str,
    memory_limit: int | None = None,
    speeds: list[float] | None = None,
) -> list[Cut]:
    """Find the cut that minimises the slowest stage (``time``) or the largest (``memory``).

    Args:
        model: the costs of stages.
        stages: number of stages.
        balance: ``time`` or ``memory``.
        memory_limit: bytes that no stage may exceed; None for no limit.
        speeds: relative speed of each stage's device; None if they are equal.

    Raises:
        UserError: no cut keeps within the limit; says how small the largest stage can be.
    """
    speed, models = speeds or [1.0] * stages, model.of_stages(stages)

    def memory_bytes(start: int, stop: int, stage: int) -> float:
        return float(models[stage - 1].memory_bytes(start, stop))

    def cost(start: int, stop: int, stage: int) -> float:
        memory = memory_bytes(start, stop, stage)
        if memory_limit is not None and memory > memory_limit:
            return math.inf
        if balance == "memory":
            return memory
        return models[stage - 1].seconds(start, stop) / speed[stage - 1]

    units = len(model.profile.units)
    for first in sorted({model.fewest_at_first(stages), 1}, reverse=True):
        cuts = minimise_largest(units, stages, cost, first=first)
        if cuts is not None:  # else the memory limit leaves the stem alone, or allows no cut at all
            return cuts
    assert memory_limit is not None, "without a limit every number of stages up to the units works"
    least = minimise_largest(units, stages, memory_bytes)
    assert least is not None
    needed = max(memory_bytes(cut.start, cut.stop, k + 1) for k, cut in enumerate(least))
    raise UserError(
        f"--memory-limit {format_bytes(memory_limit)}: the best cut into {stages} stages needs "
        f"{format_bytes(needed)} for its largest stage: raise the limit, cut more stages, or lower "
        f"--batch-size"
    )
