"""A stage that is trained by forward gradients."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pipelocal.closed_form import ClosedFormStage
from pipelocal.closed_form.run import BodyRun
from pipelocal.forward_gradient.program import Program
from pipelocal.forward_gradient.run import ForwardRun, Noise
from pipelocal.objective.lg_fg import ForwardGradient
from pipelocal.seeding import derive_seed


class ForwardGradientStage(ClosedFormStage):
    """Body and head with their local training: the body by forward gradients, the head by its exact formula.

    Args:
        stage: what :class:`~pipelocal.stage.stage.Stage` takes, such that
            :func:`~pipelocal.forward_gradient.program.check_stage` lets it pass; the task's loss is cross
            entropy.
    """

    objective: ForwardGradient

    def __init__(self, **stage: Any) -> None:
        super().__init__(**stage)
        self._program = Program.of(self.body)

    def _run_body(self, x: Tensor) -> BodyRun:
        options = self.objective.options
        seed = derive_seed(self._seed, "objective", self.number, self.steps)
        return ForwardRun(self._program, x, options, Noise(options.noise, seed))
