"""From options to stages: what is computed where."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from pipelocal.config import TrainConfig
from pipelocal.data import data_info
from pipelocal.errors import UserError
from pipelocal.models import Chain, Shape, build_chain
from pipelocal.objective import DISTANCES, HEADS, OBJECTIVES
from pipelocal.optim import OPTIMIZERS, SCHEDULES, learning_rate_factor
from pipelocal.partition import Cut, by_count
from pipelocal.seeding import seeded
from pipelocal.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """The cut model, of which a rank builds only its own stages."""

    chain: Chain
    cuts: list[Cut]
    shapes: list[Shape]
    """Output shape of each unit, without the batch dimension."""

    @classmethod
    def draw(cls, config: TrainConfig) -> Blueprint:
        """Cut the model as the options say; holds no parameters.

        Raises:
            UserError: the model cannot be made for this data, or not be cut like that.
        """
        info = data_info(config.data)
        chain = build_chain(
            config.model, input_shape=info.sample_shape, classes=info.classes, seed=config.seed
        )
        cuts = by_count(chain, config.stage_count)
        return cls(chain=chain, cuts=cuts, shapes=chain.shapes())

    def output_shape(self, stage: int) -> Shape:
        """Shape of one row of a stage's output; of the samples for stage 0."""
        return self.shapes[self.cuts[stage - 1].stop - 1] if stage else self.chain.input_shape

    def units(self, stage: int) -> str:
        """The names of a stage's first and last unit."""
        return self.cuts[stage - 1].describe(self.chain)

    def stage_state(self, stage: Stage) -> dict[str, Any]:
        """A stage's state with its body under the whole model's names.

        ``body`` and ``head`` are state dicts, ``optimizer`` and ``steps`` the training's state.
        """
        cut = self.cuts[stage.number - 1]
        body = self.chain.whole_state(stage.body, cut.start, cut.stop)
        return stage.state_dict() | {"body": body}

    def load_weights(self, stage: Stage, state: dict[str, Any]) -> None:
        """Body and head from :meth:`stage_state`.

        Raises:
            UserError: they do not fit.
        """
        cut = self.cuts[stage.number - 1]
        self.chain.load_whole_state(stage.body, cut.start, cut.stop, state["body"])
        try:
            stage.head.load_state_dict(state["head"])
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"the head of stage {stage.number} cannot be loaded: {reason}"
            ) from error

    def plain_state(self, stages: Iterable[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """The whole model's state dict from all stages' :meth:`stage_state`, in order.

        Auxiliary heads are left out; the last stage's head is the model's classifier.
        """
        plain: dict[str, torch.Tensor] = {}
        for state in stages:
            plain |= state["body"]
            head = state["head"]
        classifier = self.chain.classifier
        return plain | {classifier.whole_name(name): value for name, value in head.items()}

    def build_stage(
        self, number: int, config: TrainConfig, *, device: torch.device, total_steps: int
    ) -> Stage:
        """Build one stage with fresh parameters that depend on the seed and the units alone.

        Raises:
            UserError: the stage has nothing to train.
        """
        cut = self.cuts[number - 1]
        body = self.chain.build(cut.start, cut.stop, seed=config.seed)
        if number == len(self.cuts):
            head = self.chain.build_classifier(seed=config.seed)
        else:
            with seeded(config.seed, "head", self.chain.units[cut.stop - 1].name):
                head = HEADS.get(config.head)(self.output_shape(number), self.chain.classes)
        body.to(device)
        head.to(device)
        objective = OBJECTIVES.get(config.objective)(
            number, DISTANCES.get(config.distance), config.reconcile_weight
        )
        parameters = [*body.parameters(), *head.parameters()]
        if not parameters:
            raise UserError(f"stage {number} ({self.units(number)}) has no parameters to train")
        optimizer = OPTIMIZERS.get(config.optimizer)(
            parameters, config.lr, config.weight_decay, config.momentum
        )
        factor = learning_rate_factor(
            SCHEDULES.get(config.schedule),
            total_steps=total_steps,
            warmup_steps=config.warmup_steps,
        )
        return Stage(
            number=number,
            body=body,
            head=head,
            objective=objective,
            optimizer=optimizer,
            scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, factor),
            seed=config.seed,
        )
