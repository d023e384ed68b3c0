"""What a stage holds of a training batch, from its forward pass to its update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from pipelocal.errors import StageError
from pipelocal.objective.local import LocalPass, Objective
from pipelocal.objective.residual import Residual
from pipelocal.stage.result import StepMetrics
from pipelocal.tasks import Task


@dataclass(kw_only=True)
class UnderWay:
    """A batch under way: its pass through the body, and what the steps after it have found so far."""

    local: LocalPass
    target: Tensor | None = None
    logits: Tensor | None = None
    """Of the head, detached; None until it has run."""
    loss: Tensor | None = None
    weight: Tensor | float = 0.0
    """What the loss is a mean over."""
    residual: Residual | None = None
    """None on a batch that is not reconciled."""
    figures: dict[str, Tensor] = field(default_factory=dict)
    """Those of the objective and of the transport penalty."""

    def target_of(self, rows: Tensor | None) -> Tensor:
        """Return the batch's labels, or those of some of its rows."""
        assert self.target is not None, "output_gradient comes first"
        return self.target if rows is None else self.target[rows]

    def metrics(self, task: Task, target: Tensor, *, stage: int) -> StepMetrics:
        """Return the metrics of the batch, with the sums of a task.

        Raises:
            StageError: a user's objective has not run the head.
        """
        if self.logits is None:
            raise StageError(
                "the objective has not run the head by local.task_loss, whose figures are reported: call it, "
                "or super().loss(local, out), in its loss()",
                stage=stage,
            )
        assert self.loss is not None
        return StepMetrics(
            loss=self.loss,
            weight=self.weight,
            sums=task.sums(self.logits, target),
            residual=self.residual,
            figures=self.figures,
        )


def said_figures(objective: Objective, names: Sequence[str], *, stage: int) -> dict[str, Tensor]:
    """Return what an objective reports of the batch that it has just trained on, detached.

    Raises:
        StageError: the figures are not those that the objective declared.
    """
    said: Mapping[str, Tensor] = getattr(objective, "figures", {})
    if said.keys() != set(names):
        raise StageError(
            f"the objective reports the figures {sorted(said)}, and announced {sorted(names)} as its "
            f"figure_names: make both the same",
            stage=stage,
        )
    return {name: said[name].detach() for name in names}
