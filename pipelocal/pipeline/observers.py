"""What is found out about a stage's training batches; none of it changes what is trained or sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

from torch import Tensor

from pipelocal.pipeline.bp_gap import BackPropagationGap
from pipelocal.pipeline.callbacks import BatchEnd, Callback
from pipelocal.pipeline.records import Records
from pipelocal.stage.memory import model_tensors, resident_bytes
from pipelocal.stage.stage import Stage, StepMetrics
from pipelocal.telemetry.memory import SavedBytes
from pipelocal.transport.edge import IncomingBatch

NOTHING = nullcontext()


class Observer:
    """Is told of every training batch of a stage, in this order; does nothing by itself."""

    def begin(self, batch: IncomingBatch) -> None:
        """The batch is there, and nothing was computed yet."""

    def passes(self) -> AbstractContextManager[None]:
        """Around the stage's forward and backward passes."""
        return NOTHING

    def gradients(self, batch: IncomingBatch, delta: Tensor | None) -> None:
        """All gradients are there, and the update comes next; without delta, of a stage that is frozen."""

    def trained(self, batch: IncomingBatch, metrics: StepMetrics) -> None:
        """The update is done."""


class PeakMemory(Observer):
    """What the first batch holds at its peak, by counting.

    Args:
        stage: the stage.
        records: take the figure.
    """

    def __init__(self, stage: Stage, records: Records) -> None:
        self._stage = stage
        self._records = records
        self._counter: SavedBytes | None = None

    def passes(self) -> AbstractContextManager[None]:
        """See :class:`Observer`."""
        if self._records.peak_memory_bytes is not None:
            return NOTHING
        self._counter = SavedBytes(model_tensors(self._stage))
        return self._counter.counting()

    def trained(self, batch: IncomingBatch, metrics: StepMetrics) -> None:  # noqa: ARG002
        """See :class:`Observer`."""
        counter, self._counter = self._counter, None
        if counter is not None:
            # One after the other: a stage without autograd has it for the distance alone, at the end.
            activations = max(counter.peak_bytes, self._stage.kept_bytes)
            self._records.peak_memory_bytes = activations + resident_bytes(self._stage)


class BpGap(Observer):
    """Compares a stage's gradients with those of back-propagation, now and then.

    Args:
        stage: the stage.
        records: take the figures.
        gap: of all stages, in this process.
        every: training batches between two comparisons.
    """

    def __init__(self, stage: Stage, records: Records, gap: BackPropagationGap, every: int) -> None:
        self._stage = stage
        self._records = records
        self._gap = gap
        self._every = every

    def begin(self, batch: IncomingBatch) -> None:
        """See :class:`Observer`."""
        if self._stage.number == 1 and self._stage.steps % self._every == 0:
            self._gap.begin(batch.get("x"), batch.get("target"))

    def gradients(self, batch: IncomingBatch, delta: Tensor | None) -> None:
        """See :class:`Observer`."""
        gap = None if delta is None else self._gap.compare(self._stage, delta)
        if gap is not None:
            self._records.record(
                "bp_gap",
                batch.header.epoch,
                step=self._stage.steps + 1,
                update_cosine=gap.update_cosine,
                residual_sum=gap.residual_sum,
            )


class Recording(Observer):
    """Sums what batches showed, for the records.

    Args:
        stage: the stage.
        records: take it.
    """

    def __init__(self, stage: Stage, records: Records) -> None:
        self._stage = stage
        self._records = records

    def gradients(self, batch: IncomingBatch, delta: Tensor | None) -> None:  # noqa: ARG002
        """See :class:`Observer`."""
        self._records.learning_rate = self._stage.optimizer.param_groups[0]["lr"]

    def trained(self, batch: IncomingBatch, metrics: StepMetrics) -> None:
        """See :class:`Observer`."""
        self._records.add(batch.header, metrics, batch.get("x"))


class Telling(Observer):
    """Tells a user's callbacks.

    Args:
        stage: the stage.
        callbacks: those of this rank.
    """

    def __init__(self, stage: Stage, callbacks: Sequence[Callback]) -> None:
        self._stage = stage
        self._callbacks = callbacks

    def trained(self, batch: IncomingBatch, metrics: StepMetrics) -> None:
        """See :class:`Observer`."""
        event = BatchEnd(
            stage=self._stage.number,
            epoch=batch.header.epoch + 1,
            step=self._stage.steps,
            loss=metrics.loss,
        )
        for callback in self._callbacks:
            callback.on_batch_end(event)


class Observers(Observer):
    """Several, each told in turn; a batch costs no call of what does nothing.

    Args:
        observers: in order.
    """

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._begin = [o.begin for o in observers if type(o).begin is not Observer.begin]
        self._passes = [o.passes for o in observers if type(o).passes is not Observer.passes]
        self._gradients = [
            o.gradients for o in observers if type(o).gradients is not Observer.gradients
        ]
        self._trained = [o.trained for o in observers if type(o).trained is not Observer.trained]

    def begin(self, batch: IncomingBatch) -> None:
        """See :class:`Observer`."""
        for begin in self._begin:
            begin(batch)

    def passes(self) -> AbstractContextManager[None]:
        """See :class:`Observer`."""
        around = [context for passes in self._passes if (context := passes()) is not NOTHING]
        return _all_of(around) if around else NOTHING

    def gradients(self, batch: IncomingBatch, delta: Tensor | None) -> None:
        """See :class:`Observer`."""
        for gradients in self._gradients:
            gradients(batch, delta)

    def trained(self, batch: IncomingBatch, metrics: StepMetrics) -> None:
        """See :class:`Observer`."""
        for trained in self._trained:
            trained(batch, metrics)


@contextmanager
def _all_of(contexts: Sequence[AbstractContextManager[None]]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield
