"""What a Pipeline was given, and the models and runs that follow from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from pipelocal.api.arguments import described_model
from pipelocal.api.data import Data
from pipelocal.data.dataset import DataInfo
from pipelocal.errors import UserError
from pipelocal.models import Chain
from pipelocal.models.inputs import check_inputs
from pipelocal.options import names_that
from pipelocal.pipeline.callbacks import Callback
from pipelocal.run.blueprint import Blueprint
from pipelocal.run.costs import CutRequest
from pipelocal.run.options import RunOptions
from pipelocal.run.spec import Spec
from pipelocal.stage.recipe import Recipe

ANYWHERE = frozenset({"stages", "cut", "balance", "memory_limit", "speeds", "out"})
"""Recorded arguments that do not change the bits, like the command-line options of the same names."""


@dataclass(frozen=True, kw_only=True)
class Definition:
    """The arguments of a Pipeline; holds no ranks and nothing trained.

    Args:
        model: the network.
        input_shape: shape of one sample; None to take it from the data.
        recipe: what every stage is made of.
        cut: where the network is to be cut.
        options: options of all runs.
        text: the arguments as plain values.
    """

    model: nn.Sequential | Chain
    input_shape: tuple[int, ...] | None
    recipe: Recipe
    cut: CutRequest
    options: RunOptions
    text: Mapping[str, Any]

    def spec(
        self,
        options: RunOptions,
        text: Mapping[str, Any],
        data: Data,
        out: str | None,
        callbacks: tuple[Callback, ...],
        log: tuple[Any, ...],
    ) -> Spec:
        """Describe one training run.

        Args:
            options: options of this run.
            text: what the run folder records, from :meth:`written`.
            data: training and test data.
            out: run folder; None to write nothing.
            callbacks: called on this rank.
            log: loggers, and names of some.
        """
        opener = data.opener(self.recipe.seed, getattr(self.recipe.task, "classes", None))
        return Spec(
            recipe=replace(self.recipe, compute=options),
            options=options,
            cut=self.cut,
            chain=self.chain,
            info=opener.info,
            batches=opener.batches,
            describe_model=described_model,
            text=text,
            defaults=text,
            references={},
            named=frozenset(),
            anywhere=names_that(options, "of_the_bits") | ANYWHERE,
            own=names_that(options, "alike"),
            out=out,
            keeps=out is not None,
            callbacks=callbacks,
            log=log,
        )

    def written(self, options: RunOptions, data: Data) -> dict[str, Any]:
        """Describe a run for its folder; this alone is not enough to recreate the run."""
        model = self.model
        given = model.given if isinstance(model, Chain) else None
        return {
            "python": True,
            "model": type(model if given is None else given).__name__,
            **data.text,
            **self.text,
            **asdict(options),
        }

    def known_info(self) -> DataInfo:
        """Describe one sample without data.

        Raises:
            UserError: nobody has given its shape.
        """
        shape = self.model.input_shape if isinstance(self.model, Chain) else self.input_shape
        if shape is None:
            raise UserError(
                "the model's input shape is not known before it has seen data: give Pipeline(input_shape=)"
            )
        inputs = self.model.inputs if isinstance(self.model, Chain) else ()
        dtype = inputs[0].dtype if inputs else torch.float32
        return DataInfo(
            name="own", sample_shape=shape, classes=None, sample_dtype=dtype, beside=inputs[1:]
        )

    def check_columns(self, columns: Sequence[str] | None) -> None:
        """Check that columns called as a model's inputs are in their order.

        Args:
            columns: names of the inputs and, last, the target, of samples that are dicts.

        Raises:
            UserError: they are not, and each would be taken for another.
        """
        if columns is None or not isinstance(self.model, Chain):
            return
        names = [kind.name for kind in self.model.inputs]
        if sorted(columns[:-1]) == sorted(names) and list(columns[:-1]) != names:
            wanted = ", ".join(repr(name) for name in (*names, columns[-1]))
            raise UserError(
                f"columns={tuple(columns)}: the model takes its inputs in another order: give ({wanted})"
            )

    def chain(self, info: DataInfo) -> Chain:
        """Return the model for samples like these.

        Raises:
            UserError: the model is for other samples, or cannot be cut.
        """
        if isinstance(self.model, Chain):
            check_inputs(self.model.inputs, info.inputs)
            return self.model
        if not isinstance(self.model, nn.Sequential):
            raise UserError(
                f"model: {type(self.model).__name__} is no nn.Sequential: give "
                f"pipelocal.Chain.from_module(model, units=[...], input_shape={info.sample_shape}), with the "
                f"names of the submodules that are called in a row"
            )
        if self.input_shape not in (None, info.sample_shape):
            raise UserError(
                f"input_shape={self.input_shape}, and the data has {info.sample_shape}: leave it out"
            )
        return Chain.from_sequential(self.model, inputs=info.inputs)

    def draw(self, info: DataInfo) -> Blueprint:
        """Return the cut model; a cut that has yet to be measured has equal numbers of units for now.

        Raises:
            UserError: the model does not fit data or task.
        """
        return self._drawn(info).checked()

    def draw_alone(self) -> Blueprint:
        """Return the cut model before any data is known, or how the task's targets are shaped.

        Raises:
            UserError: nobody has given the shape of a sample.
        """
        return self._drawn(self.known_info())

    def _drawn(self, info: DataInfo) -> Blueprint:
        return self.cut.drawn(Blueprint.of(self.chain(info), self.recipe, info))
