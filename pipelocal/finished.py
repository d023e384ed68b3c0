"""A finished run, read back: options, model, weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipelocal.build import Blueprint
from pipelocal.checkpoint.run_folder import RunFolder
from pipelocal.config import TrainConfig
from pipelocal.errors import UserError
from pipelocal.stage import Stage


class FinishedRun:
    """What a run left.

    Args:
        path: the run's folder.
        averaged: take the averaged weights, of a run with ``--ema``.

    Raises:
        UserError: no finished run, or one without averaged weights where they are wanted.
    """

    def __init__(self, path: str, *, averaged: bool = False) -> None:
        self.folder = RunFolder.open(path)
        self.config: TrainConfig = self.folder.config()
        self.blueprint = Blueprint.draw(self.config)
        self._averaged = averaged
        if averaged and self.config.ema is None:
            raise UserError(
                f"the run in {path} was trained without --ema: leave averaged out, or train with it"
            )

    def stage(self, number: int, device: torch.device) -> Stage:
        """One stage, from 1, with its weights.

        Raises:
            UserError: a damaged file.
        """
        stage = self.blueprint.build_stage(number, self.config, device=device, total_steps=1)
        self.blueprint.load_weights(stage, self._weights(number))
        return stage

    def stages(self, device: torch.device) -> list[Stage]:
        """All stages, likewise."""
        return [self.stage(number, device) for number in self._numbers]

    def plain_state(self) -> dict[str, Tensor]:
        """The uncut model's state dict, by its own names and without auxiliary heads.

        Raises:
            UserError: a damaged file.
        """
        return self.blueprint.plain_state(self._weights(number) for number in self._numbers)

    def auxiliary_heads(self) -> dict[str, Tensor]:
        """The heads of all stages but the last, each as ``heads.STAGE.NAME``."""
        return {
            f"heads.{number}.{name}": value
            for number in self._numbers[:-1]
            for name, value in self._weights(number)["head"].items()
        }

    @property
    def _numbers(self) -> range:
        return range(1, self.blueprint.stages + 1)

    def _weights(self, number: int) -> dict[str, Any]:
        state = self.folder.load_stage(number)
        weights: dict[str, Any] = state["averaged"] if self._averaged else state
        return weights
