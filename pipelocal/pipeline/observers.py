"""Observers of a stage's training batches; they never change what is trained or sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

from torch import Tensor

from pipelocal.models.payload import pack
from pipelocal.pipeline.bp_gap import BackPropagationGap
from pipelocal.pipeline.callbacks import BatchEnd, Callback
from pipelocal.pipeline.messages import Messages
from pipelocal.pipeline.records import Records
from pipelocal.stage.memory import model_tensors, resident_bytes
from pipelocal.stage.result import StepMetrics
from pipelocal.stage.stage import Stage
from pipelocal.telemetry.memory import SavedBytes
from pipelocal.transport.edge import IncomingBatch

NOTHING = nullcontext()


class Observer:
    """Base class whose methods are called in this order on every training batch; they do nothing."""

    def begin(self, batch: IncomingBatch) -> None:
        """Called when the batch has arrived, before anything is computed."""

    def passes(self) -> AbstractContextManager[None]:
        """Return a context for the stage's forward and backward passes."""
        return NOTHING

    def gradients(self, batch: IncomingBatch, delta: Tensor | None) -> None:
        """Called when all gradients are ready, before the update; delta is None on a frozen stage."""

    def trained(self, batch: IncomingBatch, metrics: StepMetrics | None) -> None:
        """Called after the update; metrics are None on a stage whose head is not heard."""


class PeakMemory(Observer):
    """Counts the peak memory of the first batch behind which the optimizer has its state.

    Args:
        stage: the stage.
        records: receive the figure.
    """

    def __init__(self, stage: Stage, records: Records) -> None:
        self._stage = stage
        self._records = records
        self._counter: SavedBytes | None = None
        self._settled = False

    def passes(self) -> AbstractContextManager[None]:
        """See :class:`Observer`."""
        if self._settled:
            return NOTHING
        self._counter = SavedBytes(model_tensors(self._stage))
        return self._counter.counting()

    def trained(self, batch: IncomingBatch, metrics: StepMetrics | None) -> None:  # noqa: ARG002
        """See :class:`Observer`."""
        counter, self._counter = self._counter, None
        if counter is not None:
            # The maximum, not the sum: a stage without autograd uses it only for the distance, at the end.
            activations = max(counter.peak_bytes, self._stage.kept_bytes)
            found = activations + resident_bytes(self._stage)
            self._records.peak_memory_bytes = max(self._records.peak_memory_bytes or 0, found)
            # With several batches an update, the first one is behind none.
            self._settled = self._stage.updated_at > 0 or self._stage.frozen


class BpGap(Observer):
    """Compares a stage's gradients with those of back-propagation at intervals.

    Args:
        stage: the stage.
        records: receive the figures.
        gap: the comparison for all stages, in this process.
        every: training batches between two comparisons.
        messages: names of the tensors that come in.
    """

    def __init__(
        self,
        stage: Stage,
        records: Records,
        gap: BackPropagationGap,
        every: int,
        messages: Messages,
    ) -> None:
        self._messages = messages
        self._stage = stage
        self._records = records
        self._gap = gap
        self._every = every

    def begin(self, batch: IncomingBatch) -> None:
        """See :class:`Observer`."""
        if self._stage.number == 1 and self._stage.steps % self._every == 0:
            main, beside = self._messages.inputs(batch)
            x = pack(main, beside)
            self._gap.begin(x, batch.get(self._messages.train_target))

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
    """Adds the metrics of batches to the records.

    Args:
        stage: the stage.
        records: receive the metrics.
    """

    def __init__(self, stage: Stage, records: Records) -> None:
        self._stage = stage
        self._records = records

    def gradients(self, batch: IncomingBatch, delta: Tensor | None) -> None:  # noqa: ARG002
        """See :class:`Observer`."""
        self._records.learning_rate = float(self._stage.optimizer.param_groups[0]["lr"])

    def trained(self, batch: IncomingBatch, metrics: StepMetrics | None) -> None:
        """See :class:`Observer`."""
        if metrics is not None:
            self._records.add(batch.header, metrics, batch.get("x"))


class Telling(Observer):
    """Calls the user's callbacks.

    Args:
        stage: the stage.
        callbacks: this rank's callbacks.
    """

    def __init__(self, stage: Stage, callbacks: Sequence[Callback]) -> None:
        self._stage = stage
        self._callbacks = callbacks

    def trained(self, batch: IncomingBatch, metrics: StepMetrics | None) -> None:
        """See :class:`Observer`."""
        if metrics is None:
            return
        event = BatchEnd(
            stage=self._stage.number,
            epoch=batch.header.epoch + 1,
            step=self._stage.steps,
            loss=metrics.loss,
        )
        for callback in self._callbacks:
            callback.on_batch_end(event)


class Observers(Observer):
    """Several observers, called in turn; methods that do nothing are never called.

    Args:
        observers: the observers, in order.
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

    def trained(self, batch: IncomingBatch, metrics: StepMetrics | None) -> None:
        """See :class:`Observer`."""
        for trained in self._trained:
            trained(batch, metrics)


@contextmanager
def _all_of(contexts: Sequence[AbstractContextManager[None]]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield
