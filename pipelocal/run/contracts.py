"""What travels on every edge of a run."""

from __future__ import annotations

import torch

from pipelocal.errors import UserError
from pipelocal.objective import WayBack, way_back_of
from pipelocal.pipeline.votes import Votes
from pipelocal.run.blueprint import Blueprint
from pipelocal.run.options import RunOptions
from pipelocal.telemetry.formats import format_bytes
from pipelocal.transport.contract import Contract, contract_back, edge_contract


class Contracts:
    """The contracts of all edges; they depend only on options and shapes, so that all ranks agree.

    Args:
        options: the run's options.
        blueprint: the cut model.
        batch_size: number of rows in the largest batch.
    """

    def __init__(self, options: RunOptions, blueprint: Blueprint, *, batch_size: int) -> None:
        self._options = options
        self._blueprint = blueprint
        self._batch_size = batch_size
        self._reconciles = blueprint.recipe.objective.reconcile_every is not None
        self.way_back: WayBack | None = way_back_of(blueprint.recipe.objective)
        """What the objective sends back; None for nothing."""
        self._check_back()
        edges = [self._contract(source, votes=True) for source in range(1, blueprint.stages)]
        self.votes = Votes.of(options.votes, edges)
        """Whether the heads' votes are sent over the edges."""

    def forward(self, source: int) -> Contract:
        """Return the contract of the edge from stage ``source`` to the next."""
        return self._contract(source, votes=self.votes.travel)

    def back(self, source: int) -> Contract:
        """Return the contract of the edge from stage ``source`` back to the one before."""
        assert self.way_back is not None
        return contract_back(
            source=source,
            name=self.way_back.name,
            kind=self._blueprint.passed_on(source - 1)[0],
            max_rows=self._batch_size,
            form=self._options.wire,
            channels_last=self._options.channels_last,
        )

    def bytes_back(self, source: int) -> float:
        """Return the bytes that stage ``source`` sends back in a full batch, as a mean over the batches."""
        if self.way_back is None or source == 1:
            return 0.0
        return self.back(source).batch_bytes / self.way_back.every

    def describe_back(self) -> str:
        """Say in a line what flows back, how often and how much."""
        stages = range(2, self._blueprint.stages + 1)
        if self.way_back is None or not stages:
            return "nothing flows back"
        way = self.way_back
        sizes = ", ".join(format_bytes(self.back(source).batch_bytes) for source in stages)
        often = "every batch" if way.every == 1 else f"one batch in {way.every}"
        return f"{way.name} flows back in {often}: {sizes} over the edges from stage 2 on"

    def sends_delta(self, stage: int) -> bool:
        """Return whether a stage sends its output gradient on."""
        return self._reconciles and self._blueprint.has_delta(stage)

    def _check_back(self) -> None:
        """Refuse a way back to frozen stages, and over a cut that more than one tensor crosses.

        Raises:
            UserError: says which.
        """
        if self.way_back is None:
            return
        blueprint = self._blueprint
        name = type(blueprint.recipe.objective).__name__
        if blueprint.recipe.freezing(blueprint.stages):
            raise UserError(
                f"--freeze-stage is for stages to which nothing comes back, and {name} sends something back: "
                f"leave it out"
            )
        for source in range(2, blueprint.stages + 1):
            crossing = len(blueprint.passed_on(source - 1))
            if crossing > 1:
                raise UserError(
                    f"{name} sends back a gradient for one tensor, and {crossing} cross the cut before stage "
                    f"{source} ({blueprint.units(source)}): choose another --cut, or another objective"
                )

    def _contract(self, source: int, *, votes: bool) -> Contract:
        summary = self._blueprint.summary(source) if self.sends_delta(source) else None
        return edge_contract(
            source=source,
            x=self._blueprint.passed_on(source),
            target=self._blueprint.info.target,
            train_target=self._blueprint.info.train_target,
            output_shape=self._blueprint.model_output,
            max_rows=self._batch_size,
            form=self._options.wire,
            channels_last=self._options.channels_last,
            delta_shape=None if summary is None else summary.shape,
            delta_dtype=torch.float32 if summary is None else summary.dtype,
            votes=votes,
            relayed=self._blueprint.relayed(source),
        )
