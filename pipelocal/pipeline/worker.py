"""Runs one stage: takes the stream's events from one edge and passes them on to the next.

A training batch, with time from left to right; ``>`` marks what is sent to the next stage::

    receive x | forward > ids, target, x | head backward > delta | receive delta, reconcile | update

Their names in a trace: receive, forward, send, head, send, backward (or receive, reconcile), average
(with replicas), step. What flows back is received and sent before or after the last part.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pipelocal.errors import StageError
from pipelocal.pipeline.bp_gap import BackPropagationGap
from pipelocal.pipeline.callbacks import Callback, EpochEnd, EvaluationEnd
from pipelocal.pipeline.evaluation import Evaluation
from pipelocal.pipeline.hearing import EVERYBODY, Hearing
from pipelocal.pipeline.messages import PLAIN, Messages, named_outputs, send_all
from pipelocal.pipeline.observers import (
    BpGap,
    Observer,
    Observers,
    PeakMemory,
    Recording,
    Telling,
)
from pipelocal.pipeline.records import Records, Report
from pipelocal.pipeline.way_back import WayBackEnds
from pipelocal.pipeline.whereabouts import Whereabouts
from pipelocal.stage.freezing import Freezing
from pipelocal.stage.stage import Stage
from pipelocal.telemetry.actions import Action, Recorder
from pipelocal.transport.edge import Check, IncomingBatch, Receiver, Sender
from pipelocal.transport.header import Header, Kind

Save = Callable[["Worker"], None]
"""Saves a stage, together with the worker's state needed to continue it."""


class Worker:
    """Runs one stage.

    Args:
        stage: the stage.
        device: where the stage computes.
        incoming: the edge from the stage before, or the source.
        outgoing: the edge to the next stage; None on the last.
        encode_delta: encodes the output gradient for sending.
        report: receives the records of this stage.
        log_every: training batches between two records.
        recorder: receives what is done, and when; None to record nothing.
        freezing: decides when the stage stops training; None for never.
        hearing: which heads are heard.
        save: saves the stage when a marker comes; None if no marker will come.
        gap: compares the stages of this process with back-propagation; None for no comparison.
        gap_every: training batches between two comparisons.
        votes: whether evaluations send the heads' votes along.
        callbacks: called with what the stage has done.
        messages: names of the tensors that come in.
        way_back: what flows back; None for nothing.
    """

    def __init__(
        self,
        *,
        stage: Stage,
        device: torch.device,
        incoming: Receiver,
        outgoing: Sender | None,
        encode_delta: Callable[[Tensor], Tensor],
        report: Report,
        log_every: int,
        recorder: Recorder | None = None,
        freezing: Freezing | None = None,
        hearing: Hearing = EVERYBODY,
        save: Save | None = None,
        gap: BackPropagationGap | None = None,
        gap_every: int = 1,
        votes: bool = True,
        callbacks: Sequence[Callback] = (),
        messages: Messages = PLAIN,
        way_back: WayBackEnds | None = None,
    ) -> None:
        self.stage = stage
        self.way_back = way_back or WayBackEnds()
        self._messages = messages
        self.incoming = incoming
        self.outgoing = outgoing
        self.records = Records(stage, device, report, log_every=log_every, traffic=self.traffic)
        self.evaluation = Evaluation(
            stage,
            device,
            last=outgoing is None,
            votes=votes,
            hearing=hearing,
            messages=messages,
        )
        self._device = device
        self._encode_delta = encode_delta
        self._report = report
        self._recorder = recorder or Recorder()
        self._lane = f"stage {stage.number}"
        self._freezing = freezing
        self._hearing = hearing
        self._save = save
        self._callbacks = callbacks
        observers: list[Observer] = [PeakMemory(stage, self.records)]
        if gap is not None:
            observers.append(BpGap(stage, self.records, gap, gap_every, messages))
        observers.append(Recording(stage, self.records))
        if callbacks:
            observers.append(Telling(stage, callbacks))
        self._observers = Observers(observers)
        self._at = Whereabouts(stage.number)
        self._waiting: IncomingBatch | None = None
        """A batch whose training waits for the next stage, or for replicas."""
        self._ended_loss: float | None = None

    def advance(self) -> bool:
        """Process one event, up to where it waits for another rank; return False at the stream's end.

        Raises:
            StageError: the stage cannot continue; names stage and batch.
        """
        self._at.expect(self.stage.steps)
        with self._at_work():
            with self._action("receive") as receiving:
                batch = self.incoming.receive()
                header = batch.header
                self._at.meet(header)
                receiving.batch = header.number
            if header.kind.trains:
                self._train(batch)
                if self._averages_ahead:
                    self.stage.begin_average(header.update_at)
                if self.way_back.waits(header) or self._replicas_wait:
                    self._waiting = batch
                    return True
                self._end_batch(batch)
            elif header.kind == Kind.EVALUATE:
                with self._action("evaluate"):
                    self._pass_on(header, self.evaluation.meet(batch, self._at.batch))
            else:
                with self._action("send"):
                    self._pass_on(header, {})  # first: the next stage need not wait for this one
                self._meet_marker(header)
                if header.kind == Kind.UPDATE and self._replicas_wait:
                    self._waiting = batch
                    return True
            batch.release()
        if header.kind.trains:
            self.records.trained(header)
        if header.kind == Kind.END and self.outgoing is not None:
            self.outgoing.drain()
        return header.kind != Kind.END

    def end(self) -> None:
        """End what flows back, after the end of the stream: the last stage first."""
        with self._at_work():
            self.way_back.end(self._at.number)

    def complete(self) -> None:
        """Do the rest of an event that waits for the next stage, or for replicas, if one does.

        Raises:
            StageError: the stage cannot continue; names stage and batch.
        """
        batch, self._waiting = self._waiting, None
        if batch is None:
            return
        header = batch.header
        with self._at_work():
            if header.kind == Kind.UPDATE:
                self._complete_update(header)
            else:
                if self.way_back.waits(header):
                    self.way_back.exchange(header, self._action)
                self._end_batch(batch)
            batch.release()
        if header.kind.trains:
            self.records.trained(header)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Count the time of a block, but for its waits; name stage and batch where it fails."""
        started, waited = time.perf_counter(), self._waited_s()
        with self._at.failures_named():
            yield
        self.records.throughput.add_busy(
            time.perf_counter() - started - (self._waited_s() - waited)
        )

    @property
    def _averages_ahead(self) -> bool:
        """Whether averaging begins once a stage's gradients are there, and the rank's next stages go on."""
        return self.stage.replicas.count > 1 and self.way_back.way is None

    @property
    def _replicas_wait(self) -> bool:
        """Whether every update waits until the rank's other stages have had their turn, as some batches may.

        All replicas must average the stages of a rank in the same order, whichever batches they have.
        """
        return self.stage.replicas.count > 1 and not self.way_back.late

    def _meet_marker(self, header: Header) -> None:
        if header.kind == Kind.UPDATE:
            if self.stage.updated_at < header.step:
                self._freeze_if_due()
            if self._averages_ahead:
                self.stage.begin_completing(header.step)
            if not self._replicas_wait:
                self._complete_update(header)
        elif header.kind == Kind.EPOCH:
            self._end_epoch(header)
        elif header.kind == Kind.SNAPSHOT:
            self._take_snapshot(header)
        elif header.kind == Kind.EVALUATED:
            figures = self.evaluation.finish(header.step)
            if self.evaluation.rows:  # there need not be any test data
                self.records.record("evaluate", header.epoch, **figures)
                event = EvaluationEnd(figures=figures, **self._whereabouts(header, header.step))
                for callback in self._callbacks:
                    callback.on_evaluation_end(event)
            self.records.throughput.evaluated()
        else:
            self.records.ended()

    def trouble(self) -> StageError | None:
        """Return the known failure of this stage's edges, if any."""
        after = self.outgoing.trouble() if self.outgoing is not None else None
        trouble = self.incoming.trouble() or after or self.way_back.trouble()
        return None if trouble is None else self._at.named(trouble)

    def close(self) -> None:
        """Close all edges."""
        self.incoming.close()
        if self.outgoing is not None:
            self.outgoing.close()
        self.way_back.close()

    def _train(self, batch: IncomingBatch) -> None:
        """Train on a batch, up to its update; or to where it waits for the next stage."""
        stage, outgoing, observed = self.stage, self.outgoing, self._observers
        messages = self._messages
        stage.steps = batch.header.step
        self._freeze_if_due()
        observed.begin(batch)
        reconciling = batch.header.kind == Kind.RECONCILE
        wants_delta = reconciling and stage.wants_delta
        sends_delta = reconciling and outgoing is not None and self._hearing.delta
        delta = None
        with observed.passes():
            with self._action("receive"):
                x, beside = messages.inputs(batch)
            with self._action("forward"):
                output = stage.forward(
                    x, beside, reconciled=wants_delta, relayed=messages.relayed_to(batch)
                )
            with self._action("receive"):
                target, ids = batch.get(messages.train_target), batch.get("ids")
            if outgoing is not None:
                with self._action("send"):
                    outgoing.begin(batch.header)
                    # Copies: the memory of received tensors is reused after this batch.
                    outgoing.send("ids", ids.clone())
                    outgoing.send(messages.train_target, target.clone())
                    send_all(outgoing, named_outputs(output, stage.beside))
                    if messages.relays:
                        send_all(outgoing, messages.passed_on(batch).items())
            with self._action("head"):
                if not self._hearing.runs_head:
                    pass
                elif stage.frozen and not sends_delta:
                    stage.local_loss(target)
                else:
                    delta = stage.output_gradient(target)
            if outgoing is not None:
                with self._action("send"):
                    if sends_delta:
                        assert delta is not None
                        outgoing.send("delta", self._encode_delta(delta))
                    outgoing.finish()
            if not stage.frozen:
                self._complete_gradients(batch, wants_delta=wants_delta)
            observed.gradients(batch, None if stage.frozen else delta)

    def _end_batch(self, batch: IncomingBatch) -> None:
        """Update with a batch's gradients."""
        stage, messages = self.stage, self._messages
        target = batch.get(messages.train_target)
        metrics = stage.metrics(target) if self._hearing.own else None
        if stage.replicas.count > 1:
            with self._action("average"):
                if not self._averages_ahead:
                    stage.begin_average(batch.header.update_at)
                stage.finish_average()
        before = stage.updated_at
        with self._action("step"):
            stage.update(batch.header.update_at or None)
        self._observers.trained(batch, metrics)
        self.way_back.updated(before, stage.updated_at, self._action)

    def _complete_gradients(self, batch: IncomingBatch, *, wants_delta: bool) -> None:
        if not wants_delta:
            with self._action("backward"):
                self.stage.reconcile(None)
            return
        with self._action("receive"):
            delta = batch.get("delta")
        with self._action("reconcile"):
            self.stage.reconcile(delta)

    def _action(self, name: str, batch: int | None = None) -> Action:
        return self._recorder.begin(self._lane, name, self._at.number if batch is None else batch)

    def _complete_update(self, header: Header) -> None:
        """Complete an update on replicas whose own batches did not trigger it."""
        before = self.stage.updated_at
        self.stage.complete_update(header.step)
        self.way_back.updated(before, self.stage.updated_at, self._action)
        self.records.report_if_due(header.epoch)

    def _end_epoch(self, header: Header) -> None:
        self.stage.steps = header.step
        loss = self._ended_loss = self.records.end_epoch(header)
        event = EpochEnd(loss=loss, **self._whereabouts(header, header.step))
        for callback in self._callbacks:
            callback.on_epoch_end(event)

    def _whereabouts(self, header: Header, step: int) -> dict[str, int]:
        return {"stage": self.stage.number, "epoch": header.epoch + 1, "step": step}

    def _freeze_if_due(self) -> None:
        """Freeze the stage if due; called before each batch or update, so that replicas agree."""
        stage, (ended, self._ended_loss) = self.stage, (self._ended_loss, None)
        if (
            self._freezing is not None
            and not stage.frozen
            and self._freezing.due(stage.updated_at, ended)
        ):
            stage.freeze()
            self._report({"event": "freeze", "stage": stage.number, "step": stage.frozen_at})

    def state_dict(self) -> dict[str, Any]:
        """Return the worker's state apart from its stage; call it between two training batches."""
        return {
            "records": self.records.state_dict(),
            "evaluation": self.evaluation.state_dict(),
            "ended_loss": self._ended_loss,
            "freezing": None if self._freezing is None else self._freezing.state_dict(),
            "way_back": self.way_back.state_dict(),
        }

    def load_state_dict(
        self, state: dict[str, Any], *, replica: int = 0, replicas: int = 1
    ) -> None:
        """Load a :meth:`state_dict` into one of ``replicas`` replicas."""
        if "way_back" in state:  # not in one of an earlier version
            self.way_back.load_state_dict(state["way_back"], self._device)
        self.records.load_state_dict(state["records"], replica=replica, replicas=replicas)
        self.evaluation.load_state_dict(state["evaluation"])
        self._ended_loss = state["ended_loss"]
        if self._freezing is not None and state["freezing"] is not None:
            self._freezing.load_state_dict(state["freezing"])

    def _take_snapshot(self, header: Header) -> None:
        assert self._save is not None, "the source sends markers only where they can be met"
        started = time.perf_counter()
        with self._action("snapshot"):
            self._save(self)
        self.records.record("snapshot", header.epoch, pause_s=time.perf_counter() - started)

    def _pass_on(self, header: Header, tensors: dict[str, Tensor]) -> None:
        if self.outgoing is not None:
            self.outgoing.begin(header)
            send_all(self.outgoing, tensors.items())
            self.outgoing.finish()

    def traffic(self) -> dict[str, int]:
        """Return the bytes that this stage has sent so far: to the next one, back, and to its replicas."""
        return {
            "sent_bytes": self.outgoing.sent_bytes if self.outgoing else 0,
            "backward_bytes": self.way_back.sent_bytes,
            "gradient_bytes": self.stage.replicas.sent_bytes,
        }

    def _waited_s(self) -> float:
        edges = self.incoming.waited_s + (self.outgoing.waited_s if self.outgoing else 0.0)
        return edges + self.way_back.waited_s + self.stage.replicas.waited_s


def run_stream(workers: Sequence[Worker], check: Check) -> None:
    """Run the stages of this rank in turns, one event each, until the stream ends.

    What waits for the next stage is done after its turn, from the last stage to the first.
    """
    running = True
    while running:
        check()
        for worker in workers:
            running = worker.advance()
        for worker in reversed(workers):
            worker.complete()
    for worker in reversed(workers):
        worker.end()
