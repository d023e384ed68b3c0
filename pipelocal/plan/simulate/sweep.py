"""How the utilisation changes with the number of ranks, the link and the batch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipelocal.plan.simulate.forecast import Scenario, forecast, job
from pipelocal.plan.simulate.job import LinkSpeed, Outcome
from pipelocal.plan.simulate.schedules import SCHEDULES, simulate

MOST_RANKS_OF_OTHERS = 32
"""Sweeps over links and batches stop at so many ranks, to take seconds."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Outcomes along one axis, the rest being equal."""

    axis: str
    ranks: int | None
    """On which they were found; None where the ranks are the axis."""
    values: list[float]
    outcomes: list[list[Outcome]]
    """Of each value, every schedule."""


def sweeps(scenario: Scenario) -> list[Sweep]:
    """Along the ranks, the bandwidth and the batch.

    With another number of ranks every schedule takes its own best cut, on devices of equal speed.
    The batch is changed by the number of micro-batches, whose size stays.
    """
    few = scenario
    if scenario.ranks > MOST_RANKS_OF_OTHERS:
        few = replace(scenario, ranks=MOST_RANKS_OF_OTHERS, cuts=None, speeds=None)
    return [_along_ranks(scenario), _along_bandwidth(few), _along_batch(few)]


def _along_ranks(scenario: Scenario) -> Sweep:
    powers = {2**i for i in range(1, 20) if 2**i <= max(scenario.ranks, 8)}
    numbers = sorted(powers | {scenario.ranks})
    outcomes = [
        forecast(
            scenario
            if ranks == scenario.ranks
            else replace(scenario, ranks=ranks, cuts=None, speeds=None)
        )
        for ranks in numbers
    ]
    values = [float(ranks) for ranks in numbers]
    return Sweep(axis="ranks", ranks=None, values=values, outcomes=outcomes)


def _along_bandwidth(scenario: Scenario) -> Sweep:
    rates = [scenario.link.bytes_per_s * 10 ** (i / 2) for i in range(-6, 3)]
    outcomes = [
        forecast(
            replace(scenario, link=LinkSpeed(bytes_per_s=rate, latency_s=scenario.link.latency_s))
        )
        for rate in rates
    ]
    return Sweep(axis="bandwidth", ranks=scenario.ranks, values=rates, outcomes=outcomes)


def _along_batch(scenario: Scenario) -> Sweep:
    jobs = {name: job(scenario, back_propagation=name != "pipelocal") for name in SCHEDULES}
    size = scenario.model.profile.batch_size / scenario.micro_batches
    numbers = [2**i for i in range(20) if 2**i <= max(4 * scenario.ranks, scenario.micro_batches)]
    outcomes = [
        [
            simulate(
                name,
                replace(
                    jobs[name].with_batch(number / scenario.micro_batches), micro_batches=number
                ),
            )
            for name in SCHEDULES
        ]
        for number in numbers
    ]
    values = [number * size for number in numbers]
    return Sweep(axis="batch", ranks=scenario.ranks, values=values, outcomes=outcomes)
