"""A rank's stages begin to average once their gradients are there, and wait when all have begun."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of
from pipelocal.pipeline.worker import run_stream
from pipelocal.run.assembly import Assembly
from pipelocal.stage.replicas import Weight
from pipelocal.transport.header import Header, Kind
from pipelocal.transport.inprocess import InProcessEdge
from tests.transport.contracts import plain_contract

ROWS = 4


class Twins:
    """Two replicas with the same gradients, of which the other one is only said to be there."""

    count, index, sent_bytes, waited_s = 2, 0, 0, 0.0

    def __init__(self, stage: int, told: list[str]) -> None:
        self._stage, self._told = stage, told

    def _begin(self, what: str, result: Weight) -> Callable[[], Weight]:
        self._told.append(f"begin {what} {self._stage}")

        def wait() -> Weight:
            self._told.append(f"wait {what} {self._stage}")
            return result

        return wait

    def begin_average(self, weight: Weight) -> Callable[[], Weight]:
        return self._begin("average", 2 * weight)

    def holding_gradients(self, parameters: Iterable[Tensor]) -> Iterable[Tensor]:
        return parameters

    def each(self, values: Tensor) -> Tensor:
        self._told.append(f"weigh {self._stage}")
        return values.expand(2, *values.shape)

    def updated(self) -> None:
        self._told.append(f"updated {self._stage}")

    def whole(self, state: Any) -> Any:
        return state


@pytest.mark.parametrize("objective", ["greedy", "loco"])
def test_a_batch_and_a_marker_average_in_the_same_order(objective: str) -> None:
    """Of two replicas one may have the last batch of an epoch, and the other only the marker behind it.

    With a way back the last stage is first. Only before the first average do they agree on a unit of weight.
    """
    config = TrainConfig(model="mlp", stages=2, objective=objective, head="linear", log_every=100)
    blueprint, cpu = blueprint_of(config), torch.device("cpu")
    stages = [
        blueprint.build_stage(number, device=cpu, total_steps=4, accumulate=2) for number in (1, 2)
    ]
    told: list[str] = []
    for stage in stages:
        stage.join(Twins(stage.number, told))
    edge = InProcessEdge(
        plain_contract(source=0, feature=(1, 8, 8), label=(), classes=10, max_rows=ROWS)
    )
    events = [(Kind.TRAIN, 0, 2), (Kind.TRAIN, 2, 6), (Kind.UPDATE, 3, 0), (Kind.END, 3, 0)]
    for number, (kind, step, due) in enumerate(events):
        rows = ROWS if kind.trains else 0
        edge.begin(Header(kind=kind, number=number, rows=rows, epoch=0, step=step, update_at=due))
        if kind.trains:
            edge.send("ids", torch.arange(ROWS))
            edge.send("target", torch.arange(ROWS))
            edge.send("x", torch.randn(ROWS, 1, 8, 8))
    assembly = Assembly(config, blueprint, cpu, batch_size=ROWS, report=lambda _: None)
    run_stream(assembly.workers(stages, edge), lambda: None)
    if objective == "greedy":
        begins = ["begin average 1", "begin average 2"]
        ends = ["wait average 2", "updated 2", "wait average 1", "updated 1"]
        assert told == ["weigh 1", begins[0], "weigh 2", begins[1], *ends, *begins, *ends]
    else:
        one = ["begin average", "wait average", "updated"]
        first = [f"{what} {stage}" for stage in (2, 1) for what in ("weigh", *one)]
        assert told == [*first, *(f"{what} {stage}" for stage in (2, 1) for what in one)]
