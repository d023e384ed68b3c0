"""What travels on every edge of a run."""

from __future__ import annotations

from dataclasses import replace

import torch

from pipelocal.errors import UserError
from pipelocal.objective import WayBack
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
        self.way_back: WayBack | None = blueprint.way_back
        """What flows back; None for nothing."""
        self._check_back()
        edges = [self._contract(source, votes=True) for source in range(1, blueprint.stages)]
        self.votes = Votes.of(options.votes, edges)
        """Whether the heads' votes are sent over the edges."""

    def forward(self, source: int) -> Contract:
        """Return the contract of the edge from stage ``source`` to the next."""
        return self._contract(source, votes=self.votes.travel)

    def back(self, source: int) -> Contract:
        """Return the contract of the edge from stage ``source`` back to the one before."""
        way = self.way_back
        assert way is not None
        if way.weights:
            return contract_back(source=source, tensors=way.weights, after_update=True)
        return contract_back(
            source=source,
            tensors=[replace(self._blueprint.passed_on(source - 1)[0], name=way.name)],
            max_rows=self._batch_size,
            form=self._options.wire,
            channels_last=self._options.channels_last,
        )

    def bytes_back(self, source: int) -> float:
        """Return the bytes that stage ``source`` sends back in a full batch, as a mean over the batches."""
        if self.way_back is None or source == 1:
            return 0.0
        return self.back(source).batch_bytes / self._every

    def describe_back(self) -> str:
        """Say in a line what flows back, how often and how much."""
        stages = range(2, self._blueprint.stages + 1)
        if self.way_back is None or not stages:
            return "nothing flows back"
        way = self.way_back
        sizes = [format_bytes(self.back(source).batch_bytes) for source in stages]
        often = "every batch" if self._every == 1 else f"one batch in {self._every}"
        if way.weights:
            later = (
                "used with the next" if self._every == 1 else f"used {self._every} batches later"
            )
            return f"the classifier's weights flow back after {often}: {sizes[0]} over each edge, {later}"
        return (
            f"{way.name} flows back in {often}: {', '.join(sizes)} over the edges from stage 2 on"
        )

    @property
    def _every(self) -> int:
        """Batches, in the mean, between two that carry something back; weights flow after an update."""
        assert self.way_back is not None
        at_least = self._options.batches_an_update if self.way_back.weights else 1
        return max(self.way_back.every, at_least)

    def sends_delta(self, stage: int) -> bool:
        """Return whether a stage sends its output gradient on."""
        return self._reconciles and self._blueprint.has_delta(stage)

    def _check_back(self) -> None:
        """Refuse gradients for frozen stages, and over a cut that more than one tensor crosses.

        Raises:
            UserError: says which.
        """
        if self.way_back is None or self.way_back.weights:
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
