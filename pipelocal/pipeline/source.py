"""The start of the stream: what the first stage receives, in place of a stage before it."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch

from pipelocal.data.batches import Batch, BatchStream
from pipelocal.pipeline.markers import Markers
from pipelocal.transport.header import Header, Kind
from pipelocal.transport.inprocess import HandedBatch


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long to train and when to evaluate.

    The stream, with two epochs of three batches and an evaluation of two after each::

        T T T  E E #  T T T  E E #  end        T train, E evaluate, # evaluation over

    and with a marker (*) behind every two batches::

        T T * T  E E #  T * T T *  E E #  end
    """

    epochs: int
    steps_per_epoch: int
    max_steps: int | None
    """Stop after this many training batches, also in the middle of an epoch; None for no limit."""
    evaluate_every: int
    """Evaluate after every so many epochs, and always at the end."""
    reconcile_every: int | None = None
    """Let the stages reconcile in every so many batches, the first included; None for never."""

    @property
    def total_steps(self) -> int:
        """Training batches in all."""
        steps = self.epochs * self.steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)

    @property
    def epochs_begun(self) -> int:
        """Epochs of which at least one batch is trained on."""
        return -(-self.total_steps // self.steps_per_epoch)


class Source:
    """Deals the batches of a data set as events.

    Args:
        batches: the data.
        plan: how long to train; None to evaluate once and end.
        device: where the first stage computes.
        start: training batches to leave out, for they were trained on before.
        markers: says where markers stand; None for nowhere.
    """

    waited_s = 0.0
    received_bytes = 0

    def __init__(
        self,
        batches: BatchStream,
        plan: Plan | None,
        device: torch.device,
        *,
        start: int = 0,
        markers: Markers | None = None,
    ) -> None:
        self._batches = batches
        self._plan = plan
        self._device = device
        self._markers = markers
        self._number = 0
        self._events = self._evaluation(0) if plan is None else self._training(plan, start)

    def trouble(self) -> None:
        return None

    def receive(self) -> HandedBatch:
        """The next event; after the last batch, and for ever, the end of the stream."""
        return next(self._events, None) or self._event(Kind.END, 0)

    def close(self) -> None:
        self._events.close()

    def _training(self, plan: Plan, start: int) -> Generator[HandedBatch]:
        done, total = start, plan.total_steps
        # A marker stands before the evaluation that follows its batch.
        begun = max(0, -(-start // plan.steps_per_epoch) - 1)
        for epoch in range(begun, plan.epochs_begun):
            for batch in self._batches.train(epoch, done - epoch * plan.steps_per_epoch):
                if done == total:
                    break
                every = plan.reconcile_every
                reconciled = every is not None and done % every == 0
                done += 1
                yield self._event(Kind.RECONCILE if reconciled else Kind.TRAIN, epoch, batch)
                if self._markers is not None and self._markers.due(done, total):
                    yield self._event(Kind.SNAPSHOT, epoch)
                    if self._markers.stop and done < total:
                        return
            if (epoch + 1) % plan.evaluate_every == 0 or done == total:
                yield from self._evaluation(epoch)

    def _evaluation(self, epoch: int) -> Generator[HandedBatch]:
        for batch in self._batches.test():
            yield self._event(Kind.EVALUATE, epoch, batch)
        yield self._event(Kind.EVALUATED, epoch)

    def _event(self, kind: Kind, epoch: int, batch: Batch | None = None) -> HandedBatch:
        rows = 0 if batch is None else len(batch.target)
        handed = HandedBatch(Header(kind=kind, number=self._number, rows=rows, epoch=epoch))
        self._number += 1
        if batch is not None:
            for name, tensor in (("x", batch.x), ("target", batch.target), ("ids", batch.ids)):
                handed.tensors[name] = tensor.to(self._device, non_blocking=True)
        return handed
