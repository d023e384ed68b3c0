"""The stream that a plan makes, and where stages are placed."""

import time
from collections.abc import Generator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelocal.data import load_dataset
from pipelocal.data.batches import Batch, BatchStream, Mine, everything
from pipelocal.errors import UserError
from pipelocal.pipeline.placement import place
from pipelocal.pipeline.source import Source
from pipelocal.pipeline.timetable import Timetable
from pipelocal.transport.header import Kind

CPU = torch.device("cpu")
LETTERS = {
    Kind.TRAIN: "T",
    Kind.RECONCILE: "R",
    Kind.EVALUATE: "E",
    Kind.EVALUATED: "#",
    Kind.EPOCH: "|",
    Kind.UPDATE: "u",
    Kind.END: ".",
}


def stream_of(
    *,
    epochs: int,
    max_steps: int | None,
    evaluate_every: int = 1,
    reconcile_every: int | None = None,
) -> str:
    """Digits in batches of 500: an epoch has three, an evaluation one."""
    dataset = load_dataset("digits", root=None, seed=0)
    batches = BatchStream(dataset, batch_size=500, seed=0)
    plan = Timetable(
        epochs=epochs,
        steps_per_epoch=batches.steps_per_epoch,
        max_steps=max_steps,
        evaluate_every=evaluate_every,
        reconcile_every=reconcile_every,
    )
    source = Source(batches, plan, CPU)
    letters = ""
    for number in range(100):
        event = source.receive()
        assert event.header.number == number
        letters += LETTERS[event.header.kind]
        if event.header.kind == Kind.END:
            break
        if event.tensors:
            assert {len(tensor) for tensor in event.tensors.values()} == {event.header.rows}
    assert letters.count("T") + letters.count("R") == plan.total_steps
    return letters


def test_loading_is_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first stage was called busy while it waited for data, so a slow loader looked like a slow stage."""
    now = 0.0

    class Slow(BatchStream):
        def training(
            self, epoch: int, start: int = 0, mine: Mine = everything
        ) -> Generator[Batch | None]:
            nonlocal now
            for batch in super().training(epoch, start, mine):
                now += 2.0
                yield batch

    batches = Slow(load_dataset("digits", root=None, seed=0), batch_size=500, seed=0)
    plan = Timetable(epochs=1, steps_per_epoch=3, max_steps=None, evaluate_every=1)
    source = Source(batches, plan, CPU)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    source.receive()
    now += 10.0  # the stage works
    source.receive()
    assert source.waited_s == 4.0


@pytest.mark.parametrize(
    ("epochs", "max_steps", "every", "expected"),
    [
        (1, None, 1, "TTT|E#."),
        (2, None, 1, "TTT|E#TTT|E#."),
        (2, None, 2, "TTT|TTT|E#."),
        (3, None, 2, "TTT|TTT|E#TTT|E#."),
        (2, 1, 1, "T|E#."),
        (2, 3, 1, "TTT|E#."),
        (2, 4, 1, "TTT|E#T|E#."),
        (5, 4, 9, "TTT|T|E#."),
        (1, 99, 1, "TTT|E#."),
    ],
)
def test_streams(epochs: int, max_steps: int | None, every: int, expected: str) -> None:
    assert stream_of(epochs=epochs, max_steps=max_steps, evaluate_every=every) == expected


@pytest.mark.parametrize(
    ("reconcile_every", "expected"),
    [(1, "RRR|E#RRR|E#."), (2, "RTR|E#TRT|E#."), (4, "RTT|E#TRT|E#.")],
)
def test_every_so_many_batches_are_reconciled_across_epochs(
    reconcile_every: int, expected: str
) -> None:
    assert stream_of(epochs=2, max_steps=None, reconcile_every=reconcile_every) == expected


def test_the_end_is_the_end() -> None:
    dataset = load_dataset("digits", root=None, seed=0)
    source = Source(BatchStream(dataset, batch_size=1000, seed=0), None, CPU)
    kinds = [source.receive().header.kind for _ in range(4)]
    assert kinds == [Kind.EVALUATE, Kind.EVALUATED, Kind.END, Kind.END]


@given(st.integers(1, 60), st.integers(1, 60))
def test_placement_is_contiguous_and_complete(stages: int, ranks: int) -> None:
    if ranks > stages:
        with pytest.raises(UserError, match=f"{ranks} ranks for {stages} stages"):
            place(stages, ranks)
        return
    blocks = [block.stages for block in place(stages, ranks).blocks]
    assert len(blocks) == ranks
    assert [stage for block in blocks for stage in block] == list(range(1, stages + 1))
    assert max(map(len, blocks)) - min(map(len, blocks)) <= 1
