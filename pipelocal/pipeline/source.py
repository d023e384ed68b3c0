"""The start of the stream: what the first stage receives, in place of a stage before it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from itertools import islice

import torch

from pipelocal.data.batches import Batch, BatchStream
from pipelocal.errors import UserError
from pipelocal.pipeline.markers import Markers
from pipelocal.transport.deal import EVERYTHING, Deal
from pipelocal.transport.header import Header, Kind
from pipelocal.transport.inprocess import HandedBatch


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long to train and when to evaluate.

    The stream, with two epochs of three batches and an evaluation of two after each::

        T T T |  E E #  T T T |  E E #  end    T train, | epoch over, E evaluate, # evaluation over

    and with a marker (*) behind every two batches::

        T T * T |  E E #  T * T T | *  E E #  end

    With replicas, ``together`` batches are a round: of them every replica of a stage meets as many as the
    others. What is done to a batch is the same within a round, and rounds begin anew with each epoch.
    """

    epochs: int
    steps_per_epoch: int
    max_steps: int | None
    """Stop after this many training batches, also in the middle of an epoch; None for no limit."""
    evaluate_every: int
    """Evaluate after every so many epochs, and always at the end."""
    reconcile_every: int | None = None
    """Let the stages reconcile in every so many rounds, the first included; None for never."""
    together: int = 1
    """Batches of a round: the least number that the replicas of every stage share out evenly."""
    update_every: int = 1
    """Batches of an update; an epoch's last one takes what is left."""

    @property
    def total_steps(self) -> int:
        """Training batches in all."""
        steps = self.epochs * self.steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)

    @property
    def epochs_begun(self) -> int:
        """Epochs of which at least one batch is trained on."""
        return -(-self.total_steps // self.steps_per_epoch)

    def in_whole_rounds(self) -> Plan:
        """Without the rest of each epoch that is no whole round.

        Raises:
            UserError: nothing would be left.
        """
        whole = self.steps_per_epoch - self.steps_per_epoch % self.together
        if whole == 0:
            raise UserError(
                f"an epoch of {self.steps_per_epoch} batch(es) is less than the {self.together} that all "
                f"replicas take in step: give a smaller --batch-size, or fewer --replicas"
            )
        plan = replace(self, steps_per_epoch=whole)
        steps = plan.total_steps - plan.total_steps % whole % self.together
        if steps == 0:
            raise UserError(
                f"--max-steps {self.max_steps} is less than the {self.together} batches that all replicas "
                f"take in step: give at least so many"
            )
        return replace(plan, max_steps=steps)

    def update_at(self, done: int) -> int:
        """The training batches after which comes the update of the batch before which there were ``done``."""
        epoch, step = divmod(done, self.steps_per_epoch)
        end = min(step - step % self.update_every + self.update_every, self.steps_per_epoch)
        return min(epoch * self.steps_per_epoch + end, self.total_steps)

    def reconciles(self, done: int) -> bool:
        """Whether the stages reconcile in the batch before which there were ``done``."""
        if self.reconcile_every is None:
            return False
        epoch, step = divmod(done, self.steps_per_epoch)
        rounds = epoch * -(-self.steps_per_epoch // self.together) + step // self.together
        return rounds % self.reconcile_every == 0


class Source:
    """Deals the batches of a data set as events.

    Args:
        batches: the data.
        plan: how long to train; None to evaluate once and end.
        device: where the first stage computes.
        start: training batches to leave out, for they were trained on before.
        markers: says where markers stand; None for nowhere.
        deal: the batches of this replica of the first stage; it is given these alone, and all markers.
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
        deal: Deal = EVERYTHING,
    ) -> None:
        self._batches = batches
        self._plan = plan
        self._device = device
        self._markers = markers
        self._deal = deal
        self._number = 0
        self._done = start
        self._events = self._evaluation(0) if plan is None else self._training(plan, start)

    def trouble(self) -> None:
        return None

    def receive(self) -> HandedBatch:
        """The next event; after the last batch, and for ever, the end of the stream."""
        return next(self._events, None) or self._event(Kind.END, 0)

    def close(self) -> None:
        self._events.close()

    def _training(self, plan: Plan, start: int) -> Generator[HandedBatch]:
        total = plan.total_steps
        # What follows the last batch of an epoch comes again if the snapshot was taken behind it.
        begun = max(0, -(-start // plan.steps_per_epoch) - 1)
        for epoch in range(begun, plan.epochs_begun):
            first = epoch * plan.steps_per_epoch
            stop = min(first + plan.steps_per_epoch, total)
            makers = self._batches.makers(epoch, self._done - first)
            for make in islice(makers, stop - self._done):
                kind = Kind.RECONCILE if plan.reconciles(self._done) else Kind.TRAIN
                yield from self._dealt(kind, epoch, make)
                self._done += 1
                if self._done == stop:
                    if plan.together > 1 and (self._done - first) % plan.update_every:
                        yield self._event(Kind.UPDATE, epoch)
                    yield self._event(Kind.EPOCH, epoch)
                elif plan.together > 1 and self._done < plan.update_at(self._done - 1):
                    continue  # replicas are alike behind an update only
                if self._markers is not None and self._markers.due(self._done, total):
                    yield self._event(Kind.SNAPSHOT, epoch)
                    if self._markers.stop and self._done < total:
                        return
            if (epoch + 1) % plan.evaluate_every == 0 or self._done == total:
                yield from self._evaluation(epoch)

    def _evaluation(self, epoch: int) -> Generator[HandedBatch]:
        for make in self._batches.test_makers():
            yield from self._dealt(Kind.EVALUATE, epoch, make)
        yield self._event(Kind.EVALUATED, epoch)

    def _dealt(self, kind: Kind, epoch: int, make: Callable[[], Batch]) -> Generator[HandedBatch]:
        """The event, if it is this replica's; others only count."""
        if self._deal.has(self._number):
            yield self._event(kind, epoch, make())
        else:
            self._number += 1

    def _event(self, kind: Kind, epoch: int, batch: Batch | None = None) -> HandedBatch:
        rows = 0 if batch is None else len(batch.target)
        if not kind.dealt and self._plan is not None:
            # So that the batches behind it begin with the first replica, whatever came before.
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
            for name, tensor in (("x", batch.x), ("target", batch.target), ("ids", batch.ids)):
                handed.tensors[name] = tensor.to(self._device, non_blocking=True)
        return handed
