"""The start of the stream: feeds the first stage, in place of a previous stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from pipelocal.data.ahead import prepared_ahead
from pipelocal.data.batches import Batch, Batches, Mine
from pipelocal.errors import DataError
from pipelocal.pipeline.markers import Markers
from pipelocal.pipeline.messages import named_outputs
from pipelocal.pipeline.timetable import Timetable
from pipelocal.transport.contract import TRAIN_TARGET
from pipelocal.transport.deal import EVERYTHING, Deal
from pipelocal.transport.header import Header, Kind
from pipelocal.transport.inprocess import HandedBatch

SHOWN = 5
"""Samples with targets that cannot be taken that are named."""


class Source:
    """Yields the batches of a data set as events.

    Args:
        batches: the data.
        plan: how long to train; None to evaluate once and end.
        device: where the first stage computes.
        start: number of training batches to skip because they were already trained on.
        evaluated: whether the evaluation after those, if any, has been done.
        markers: decides where to put markers; None for no markers.
        deal: the batches of this replica of the first stage; it gets only these, and all markers.
        check_target: raises a DataError for targets that the task cannot take; called before they are sent.
    """

    received_bytes = 0

    def __init__(
        self,
        batches: Batches,
        plan: Timetable | None,
        device: torch.device,
        *,
        start: int = 0,
        evaluated: bool = False,
        markers: Markers | None = None,
        deal: Deal = EVERYTHING,
        check_target: Callable[[Tensor], None] = lambda _: None,
    ) -> None:
        self._batches = batches
        self._plan = plan
        self._device = device
        self._markers = markers
        self._deal = deal
        self._check_target = check_target
        self.waited_s = 0.0
        """Seconds spent on loading, in which the stage waits for its batch."""
        self._number = 0
        self._done = start
        self._events = self._evaluation(0) if plan is None else self._training(plan, evaluated)

    def trouble(self) -> None:
        return None

    def receive(self) -> HandedBatch:
        """Return the next event; after the last batch, always the end of the stream."""
        started = time.perf_counter()
        try:
            return next(self._events, None) or self._event(Kind.END, 0)
        finally:
            self.waited_s += time.perf_counter() - started

    def state_dict(self) -> dict[str, Any] | None:
        """Return the state of the data behind the last batch; None if the step says all."""
        return self._batches.state_dict()

    def close(self) -> None:
        self._events.close()
        self._batches.close()

    def _training(self, plan: Timetable, evaluated: bool) -> Generator[HandedBatch]:
        total, start, markers = plan.total_steps, self._done, self._markers
        for epoch in range(plan.epoch_of_last(start), plan.epochs_begun):
            first = plan.first_of(epoch)
            stop = min(first + plan.steps_per_epoch, total)
            begun = self._done - first
            batches = self._batches.training(epoch, begun, self._mine(begun))
            for batch in islice(self._ahead(batches), stop - self._done):
                kind = Kind.RECONCILE if plan.reconciles(self._done) else Kind.TRAIN
                yield from self._dealt(kind, epoch, batch)
                self._done += 1
                if self._done == stop:
                    if plan.together > 1 and (self._done - first) % plan.update_every:
                        yield self._event(Kind.UPDATE, epoch)
                    yield self._event(Kind.EPOCH, epoch)
                elif plan.together > 1 and self._done < plan.update_at(self._done - 1):
                    continue  # replicas are identical only after an update
                # The final state is saved after its evaluation.
                if markers and self._done < total and markers.due(self._done):
                    yield self._event(Kind.SNAPSHOT, epoch)
                    if markers.stop:
                        return
            over = self._done == total
            if over or (epoch + 1) % plan.evaluate_every == 0:
                if evaluated and self._done == start:
                    continue
                yield from self._evaluation(epoch)
                if markers and (markers.stop or (not over and markers.due_after_evaluation())):
                    yield self._event(Kind.SNAPSHOT, epoch)
                if markers and markers.stop:
                    return

    def _evaluation(self, epoch: int) -> Generator[HandedBatch]:
        """Yield the events of an evaluation, cut short if the stream is to end."""
        for batch in self._ahead(self._batches.testing(self._mine(0))):
            if self._markers and self._markers.stopping():
                return
            yield from self._dealt(Kind.EVALUATE, epoch, batch)
        yield self._event(Kind.EVALUATED, epoch)

    def _mine(self, begun: int) -> Mine:
        """Return which of the batches from step ``begun`` on are this replica's.

        Markers between them are only where a round ends, so they change nothing.
        """
        number = self._number
        return lambda step: self._deal.has(number + step - begun)

    def _ahead(self, batches: Generator[Batch | None]) -> Generator[Batch | None]:
        """Yield the batches, prepared ahead where that is worth it; close them with this stream."""
        if self._batches.ahead:
            batches = prepared_ahead(batches, pin=self._device.type == "cuda")
        with closing(batches):
            yield from batches

    def _dealt(self, kind: Kind, epoch: int, batch: Batch | None) -> Generator[HandedBatch]:
        """Yield the event if it is this replica's; otherwise only count it."""
        assert (batch is not None) == self._deal.has(self._number)
        if batch is not None:
            yield self._event(kind, epoch, batch)
        else:
            self._number += 1

    def _refused(self, batch: Batch) -> str:
        """Return in words which samples' targets cannot be taken; nothing if all, or nobody knows."""
        refused = []
        for row, sample in enumerate(batch.ids.tolist()):
            try:
                self._check_target(batch.target[row : row + 1])
            except DataError:
                refused.append(sample)
        if not 0 < len(refused) < len(batch.ids) or min(refused) < 0:
            return ""
        more = ", ..." if len(refused) > SHOWN else ""
        return f" (sample {', '.join(map(str, refused[:SHOWN]))}{more})"

    def _event(self, kind: Kind, epoch: int, batch: Batch | None = None) -> HandedBatch:
        rows = 0 if batch is None else len(batch.target)
        if not kind.dealt and self._plan is not None:
            # So that the following batches start with the first replica again.
            self._number += -(self._number + 1) % self._plan.together
        header = Header(
            kind=kind,
            number=self._number,
            rows=rows,
            epoch=epoch,
            step=self._done,
            update_at=self._plan.update_at(self._done) if kind.trains and self._plan else 0,
        )
        handed = HandedBatch(header)
        self._number += 1
        if batch is not None:
            try:
                self._check_target(batch.target)
            except DataError as error:
                part = "training" if kind.trains else "test"
                which = self._refused(batch)
                raise DataError(f"a {part} batch in epoch {epoch + 1}{which}: {error}") from error
            tensors = {"ids": batch.ids, "target": batch.target}
            tensors |= dict(named_outputs(batch.x, batch.beside))
            for name, tensor in tensors.items():
                handed.tensors[name] = tensor.to(self._device, non_blocking=True)
            # A batch has one target, whatever the name under which it is asked for.
            handed.tensors[TRAIN_TARGET] = handed.tensors["target"]
        return handed
