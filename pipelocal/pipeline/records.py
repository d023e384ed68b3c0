"""Reports a stage's training at intervals, for all of its replicas together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from pipelocal.errors import StageError
from pipelocal.pipeline.tally import Reading, Tally
from pipelocal.pipeline.throughput import Throughput
from pipelocal.stage.result import StepMetrics
from pipelocal.stage.stage import Stage
from pipelocal.tasks import Loss
from pipelocal.transport.header import Header

Report = Callable[[dict[str, Any]], None]

NO_NUMBER = "the loss is NaN or infinite: lower --lr, add --warmup-steps, or look at the data"
"""Why a stage cannot go on."""
RECORD, EPOCH = 0, 1
"""Windows of the tally: since the last record, and since the epoch began."""


class Records:
    """Sums the metrics of training batches, and reports them.

    Args:
        stage: the stage.
        device: where the stage computes.
        report: receives the records.
        log_every: training batches between two records.
        traffic: returns the bytes that this stage has sent so far, by name.
    """

    def __init__(
        self,
        stage: Stage,
        device: torch.device,
        report: Report,
        *,
        log_every: int,
        traffic: Callable[[], dict[str, int]] = dict,
    ) -> None:
        self.throughput = Throughput()
        self.last_epoch: Reading | None = None
        """Reading of the last completed epoch; None before."""
        self.peak_memory_bytes: int | None = None
        self.learning_rate = 0.0
        self._stage = stage
        self._report = report
        self._log_every = log_every
        # Reading a loss makes the host wait for a CUDA device, so it is done rarely there.
        self._looks_always = device.type == "cpu"
        self._tally = Tally(
            device,
            task=stage.task,
            shapes=stage.sum_shapes,
            windows=2,
            figures=stage.figure_names,
            each=lambda values: stage.replicas.each(values),
        )
        self._reported = 0
        self._traffic = traffic
        self._traffic_before: dict[str, int] = {}
        """What was sent before the last record; negative for what an earlier process sent after it."""
        self.began_at = 0
        """Batches of the run before this process, whose seconds and bytes are not counted."""

    def add(self, header: Header, metrics: StepMetrics, x: Tensor) -> None:
        """Add the metrics of a training batch; its input is checked if something went wrong.

        Raises:
            StageError: a loss is NaN or infinite.
        """
        self._tally.add(
            batch=header.step + 1,
            rows=header.rows,
            loss=Loss(metrics.loss, metrics.weight),
            sums=metrics.sums,
            residual=metrics.residual,
            figures=metrics.figures,
        )
        if self._looks_always or self._due:
            self._check_finite(x, metrics)

    def trained(self, header: Header) -> None:
        """Count a finished training batch, and report if due."""
        self.throughput.trained(header.rows)
        self.report_if_due(header.epoch)

    def report_if_due(self, epoch: int) -> None:
        """Report if a record is due."""
        if self._due:
            self._report_training(epoch)

    def end_epoch(self, header: Header) -> float | None:
        """Report the rest of an epoch; return its mean loss, None if there was no batch.

        Raises:
            StageError: a loss was NaN or infinite.
        """
        if self._reported < header.step:
            self._check_finite(None, None)
            self._report_training(header.epoch)
        self.last_epoch = self._tally.read_and_reset(EPOCH)
        return self.last_epoch.loss

    def ended(self) -> None:
        """Stop counting, at the end of the stream: what a run's end holds does not depend on its ranks."""
        self.throughput.ended()
        self._traffic_before = self._traffic()

    def record(self, event: str, epoch: int, **figures: Any) -> None:
        """Report an event of this stage."""
        where = {"stage": self._stage.number, "epoch": epoch + 1, "step": self._stage.steps}
        self._report({"event": event, **where, **figures})

    def state_dict(self) -> dict[str, Any]:
        """Return what is not reported yet; call it between two training batches."""
        return {
            "tally": self._tally.state_dict(),
            "reported": self._reported,
            "traffic": self._new_traffic(),
            "last_epoch": None if self.last_epoch is None else asdict(self.last_epoch),
        }

    def load_state_dict(self, state: dict[str, Any], *, replica: int, replicas: int) -> None:
        """Load a :meth:`state_dict` into one of ``replicas`` replicas."""
        self._tally.load_state_dict(state["tally"], replica=replica, replicas=replicas)
        self._reported = state["reported"]
        # What was under way back has been sent again already, and is in the state's traffic.
        now = self._traffic()
        self._traffic_before = {n: now[n] - sent for n, sent in state.get("traffic", {}).items()}
        last = state["last_epoch"]
        self.last_epoch = None if last is None else Reading.of_state(last)

    def continue_from(self, step: int) -> None:
        """Continue after ``step`` batches with a stage that did not exist before; its sums start at zero."""
        self._reported = step

    @property
    def _due(self) -> bool:
        stage = self._stage
        if stage.replicas.count > 1 and stage.steps != stage.updated_at:
            return False  # replicas report together, once all have processed the record's batches
        return stage.steps // self._log_every > self._reported // self._log_every

    def _check_finite(self, x: Tensor | None, metrics: StepMetrics | None) -> None:
        bad = self._tally.first_bad_batch()
        if bad is not None:
            number = self._stage.number
            reason = NO_NUMBER
            if metrics is not None and bool(torch.isfinite(metrics.loss)):
                reason = (
                    "the distance of the reconciliation is NaN or infinite, and the loss is not: choose "
                    "--distance cosine, lower --lr, or choose --objective greedy"
                )
            raise StageError(
                reason,
                stage=number,
                batch=bad,
                # A non-finite input is the previous stage's fault, which reports it itself.
                symptom=number > 1 and (x is None or not bool(torch.isfinite(x).all())),
            )

    def _new_traffic(self) -> dict[str, int]:
        """Return the bytes that were sent since the last record."""
        return {n: sent - self._traffic_before.get(n, 0) for n, sent in self._traffic().items()}

    def _report_training(self, epoch: int) -> None:
        self._reported = self._stage.steps
        reading = self._tally.read_and_reset(RECORD)
        rate, busy = self.throughput.read_window()
        traffic = self._new_traffic()
        self._traffic_before = self._traffic()
        replicas = self._stage.replicas.count
        self.record(
            "train",
            epoch,
            loss=reading.loss,
            **reading.metrics,
            reconciliation=reading.reconciliation,
            cosine=reading.cosine,
            residual=reading.residual,
            cap=reading.cap,
            learning_rate=self.learning_rate,
            samples_per_second=rate * replicas,
            busy_fraction=busy,
            peak_memory_bytes=self.peak_memory_bytes,
            **{name: sent * replicas for name, sent in traffic.items()},
            **reading.figures,
        )
