"""Evaluates a stage on the batches of an evaluation: its head's metrics, and the heads' votes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from pipelocal.errors import StageError
from pipelocal.pipeline.hearing import EVERYBODY, Hearing
from pipelocal.pipeline.messages import PLAIN, Messages, named_outputs
from pipelocal.pipeline.tally import Reading, Tally
from pipelocal.stage.stage import Stage
from pipelocal.transport.edge import IncomingBatch


class Evaluation:
    """Runs the evaluations of one stage.

    Args:
        stage: the stage.
        device: where the stage computes.
        last: whether it is the last stage, which computes the ensemble of all heads.
        votes: whether the heads' votes are sent along, which the ensemble needs.
        hearing: which heads are heard.
        messages: names of the tensors that come in.
    """

    def __init__(
        self,
        stage: Stage,
        device: torch.device,
        *,
        last: bool,
        votes: bool = True,
        hearing: Hearing = EVERYBODY,
        messages: Messages = PLAIN,
    ) -> None:
        self._messages = messages
        self.reading: Reading | None = None
        """Reading of the last completed evaluation; None before."""
        self.ensemble: dict[str, float | None] | None = None
        """The ensemble's metrics in the last completed evaluation, on the last stage; None without votes."""
        self.step: int | None = None
        """Training batches before the last completed evaluation."""
        self._stage = stage
        self._votes = votes
        self._heard = hearing.own
        self._voters = stage.number if hearing.heads is None else hearing.heads
        self._last = last
        self._bad_input = torch.zeros((), dtype=torch.bool, device=device)
        self._tally, self._ensemble = (
            Tally(device, task=stage.task, shapes=stage.sum_shapes, each=self._each)
            for _ in range(2)
        )

    def meet(self, batch: IncomingBatch, number: int) -> dict[str, Tensor]:
        """Evaluate the ``number``-th batch; return the next stage's tensors, in the order of the contract."""
        x, beside = self._messages.inputs(batch)
        target = batch.get("target")
        if self._stage.number > 1:
            self._bad_input |= ~torch.isfinite(x).all()
        output, logits = self._stage.evaluate(x, beside)
        if self._heard:
            self._add(self._tally, batch, number, logits, target)
        # A copy: the received tensor's memory is reused after this batch.
        found = {"target": target.clone(), **dict(named_outputs(output, self._stage.beside))}
        found |= self._messages.passed_on(batch)
        if self._votes:
            votes = self._stage.task.votes(logits).float()  # also of a model in another precision
            if not self._heard:
                votes = torch.zeros_like(votes)
            if self._stage.number > 1:
                votes += batch.get("votes")
            if self._last:
                mean = self._stage.task.from_votes(votes / self._voters)
                self._add(self._ensemble, batch, number, mean, target)
            found["votes"] = votes
        return found

    def finish(self, step: int) -> dict[str, Any]:
        """End the evaluation after ``step`` training batches; return the figures for its record.

        Raises:
            StageError: a loss is NaN or infinite. The accuracy is then meaningless: the argmax of NaN logits
                is the first class, which may look correct.
        """
        bad = self._tally.first_bad_batch()
        if bad is not None:
            raise StageError(
                f"in the evaluation{f' after batch {step}' if step else ''} the loss is NaN or infinite: "
                f"lower --lr, add --warmup-steps, or look at the data",
                stage=self._stage.number,
                batch=bad,
                test=True,
                # A non-finite input is the previous stage's fault, which reports it itself.
                symptom=bool(self._bad_input),
            )
        self.step = step
        self.reading = self._tally.read_and_reset()
        if self._last and self._votes:
            self.ensemble = self._ensemble.read_and_reset().metrics
        return self.figures

    @property
    def figures_of_head(self) -> dict[str, float | None]:
        """Loss and metrics of the last completed evaluation."""
        assert self.reading is not None, "an evaluation has ended"
        return {"loss": self.reading.loss, **self.reading.metrics}

    @property
    def figures(self) -> dict[str, Any]:
        """The same, and on the last stage the ensemble's."""
        if not self._last:
            return self.figures_of_head
        return self.figures_of_head | ensemble_figures(self.ensemble, self._stage.task.metrics)

    @property
    def rows(self) -> int:
        """Number of rows in the last completed evaluation."""
        return 0 if self.reading is None else self.reading.rows

    def state_dict(self) -> dict[str, Any]:
        """Return the result of the last evaluation."""
        return {
            "step": self.step,
            "reading": None if self.reading is None else asdict(self.reading),
            "ensemble": self.ensemble,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a :meth:`state_dict`."""
        self.step, reading = state["step"], state["reading"]
        self.reading = None if reading is None else Reading.of_state(reading)
        if "ensemble" in state:
            self.ensemble = state["ensemble"]
        elif state["ensemble_accuracy"] is not None:  # of an earlier version
            self.ensemble = {"accuracy": state["ensemble_accuracy"]}

    def _each(self, values: Tensor) -> Tensor:
        return self._stage.replicas.each(values)

    def _add(
        self, tally: Tally, batch: IncomingBatch, number: int, output: Tensor, target: Tensor
    ) -> None:
        task = self._stage.task
        tally.add(
            batch=number,
            rows=batch.header.rows,
            loss=task.loss(output, target),
            sums=task.sums(output, target),
        )


def ensemble_figures(
    ensemble: Mapping[str, float | None] | None, names: Sequence[str]
) -> dict[str, Any]:
    """Return the ensemble's part of a record: every metric, and accuracy by a name of its own."""
    found: dict[str, Any] = {"ensemble": None if ensemble is None else dict(ensemble)}
    if "accuracy" in names:
        found["ensemble_accuracy"] = None if ensemble is None else ensemble["accuracy"]
    return found
