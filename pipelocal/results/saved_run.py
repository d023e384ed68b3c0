"""Reads a saved run: options, model and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipelocal.checkpoint.description import ModelDescription, changed_code, own_code
from pipelocal.checkpoint.pick_snapshot import read_weights, run_of
from pipelocal.checkpoint.run_folder import RunFolder
from pipelocal.checkpoint.snapshot import SnapshotFolder
from pipelocal.config.named import references
from pipelocal.config.resolve import blueprint_of
from pipelocal.config.saved import located, options_of
from pipelocal.errors import UserError
from pipelocal.stage.stage import Stage
from pipelocal.stage.state import load_stage_weights, plain_state, unsaved_of_model, whole_model
from pipelocal.system.streams import tell


class FinishedRun:
    """A saved run: its final state, or its newest good snapshot if it did not finish.

    It reports on standard error which snapshot that is.

    Args:
        path: the run's folder, or that of one of its snapshots, or ``RUN/snapshots/best``.
        averaged: whether to use the averaged weights of a run with ``--ema``.

    Raises:
        UserError: there is no run, or it has no weights, or no averaged weights if those are requested.
    """

    def __init__(self, path: str, *, averaged: bool = False) -> None:
        at = Path(path)
        self.folder = RunFolder.open(str(run_of(at)))
        config = options_of(self.folder)
        weights = read_weights(at, tell)
        if weights is None:
            raise UserError(_nothing_left(at, self.folder.path))
        manifest, self._states = weights.chosen.manifest, weights.states
        self.evaluated = manifest.evaluated if manifest.after_evaluation else None
        """Figures of the last head in the run's evaluation of these weights; None without one."""
        self.at_end = weights.chosen.folder == SnapshotFolder(self.folder.path).end
        if not self.at_end:
            tell(f"{at}: the weights after batch {manifest.step}, before the end of the run")
        self.description = self.folder.description()
        then = self.description.model
        self.config = located(config, self.folder)
        # The description records the model's input, so the data need not be available.
        blueprint = blueprint_of(self.config, info=self.description.info)
        changed = then.differences(ModelDescription.of(self.config.model, blueprint.chain))
        if changed:
            tell(f"since the run in {path} was trained, {changed[0]} changed: {self.config.model}")
        self.blueprint = blueprint.cut_at(manifest.cut)
        self._averaged = averaged
        if averaged and self.config.ema is None:
            raise UserError(
                f"the run in {path} was trained without --ema: leave averaged out, or train with it"
            )

    def stages(self, device: torch.device) -> list[Stage]:
        """Build all stages with their weights, for evaluation.

        Raises:
            UserError: a damaged file.
        """
        changed = changed_code(self.description.references, own_code(references(self.config)))
        if "--head" in changed and self.blueprint.stages > 1:
            path, head = self.folder.path, self.config.head
            tell(f"since the run in {path} was trained, the code of --head changed: {head}")
        stages = []
        for number in self._numbers:
            stage = self.blueprint.stage_to_evaluate(number, device=device)
            chain, cut = self.blueprint.network, self.blueprint.cuts[number - 1]
            load_stage_weights(chain, cut, stage, self._weights(number))
            stages.append(stage)
        return stages

    def plain_state(self) -> dict[str, Tensor]:
        """Return the uncut model's state dict, by its own names and without auxiliary heads.

        Raises:
            UserError: a damaged file.
        """
        return plain_state(self.blueprint.network, self._all_weights())

    def whole(self) -> nn.Module:
        """Return the uncut model, with buffers that :meth:`plain_state` cannot hold.

        Raises:
            UserError: a damaged file.
        """
        return whole_model(self.blueprint.network, self._all_weights())

    def changed_buffers(self) -> list[str]:
        """Return the names of buffers which training changed, and which :meth:`plain_state` cannot hold."""
        return sorted(unsaved_of_model(self.blueprint.network, self._all_weights()))

    def _all_weights(self) -> list[dict[str, Any]]:
        return [self._weights(number) for number in self._numbers]

    def check_stage(self, stage: int, *, option: str = "--stage") -> None:
        """Refuse a stage behind which nothing can answer.

        Args:
            stage: its number, from 1.
            option: how it was given, for the error.

        Raises:
            UserError: there is no such stage, or its head never learnt anything.
        """
        path, stages = self.folder.path, self.blueprint.stages
        if not isinstance(stage, int) or not 1 <= stage <= stages:
            raise UserError(
                f"{option} {stage}: the run in {path} has {stages} stage(s): give 1 to {stages}"
            )
        if self.blueprint.silent(stage):
            raise UserError(
                f"{option} {stage}: in the run in {path} the head of this stage never learnt anything, as "
                f"--freeze-stage {stage}:0 wanted: give another stage"
            )

    def state_up_to(self, stage: int) -> dict[str, Tensor]:
        """Return the state dict of the network up to a stage before the last, with its auxiliary head.

        The bodies have the uncut model's names, and the head ``heads.STAGE.NAME``.

        Raises:
            UserError: a damaged file.
        """
        weights = [self._weights(number) for number in self._numbers[:stage]]
        bodies = self.blueprint.network.joined_state([each["body"] for each in weights])
        bodies.update(_named_head(stage, weights[-1]))  # which keeps the module versions
        return bodies

    def auxiliary_heads(self) -> dict[str, Tensor]:
        """Return the parameters of the auxiliary heads that were trained, as ``heads.STAGE.NAME``."""
        heads: dict[str, Tensor] = {}
        for number in (n for n in self._numbers[:-1] if not self.blueprint.silent(n)):
            heads |= _named_head(number, self._weights(number))
        return heads

    @property
    def _numbers(self) -> range:
        return range(1, self.blueprint.stages + 1)

    def _weights(self, number: int) -> dict[str, Any]:
        state: dict[str, Any] = self._states[number - 1]
        return {**state, **(state["averaged"] if self._averaged else {})}


def _named_head(stage: int, weights: dict[str, Any]) -> dict[str, Tensor]:
    return {f"heads.{stage}.{name}": value for name, value in weights["head"].items()}


def _nothing_left(path: Path, run: Path) -> str:
    if path != run:
        return f"{path}: no snapshot of {run} that is left was evaluated: give {run} for the newest one"
    return (
        f"the run in {run} did not end, and left no snapshot yet: wait for one, or go on with it by the "
        f"command that began it"
    )
